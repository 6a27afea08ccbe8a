"""The same set in the layouts of ten tools: the same records, image by image and box by box."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from sed.checks.check import check_data
from sed.checks.findings import ERROR
from sed.data.catalog import load_dataset
from sed.data.errors import DataError
from sed.data.layouts import find_layout, split_of
from tests.reference.formats import FORMATS, cvat, roboflow, voc, yolo
from tests.reference.small_data import SETUP, Small

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    small = Small(tmp_path_factory.mktemp("layouts") / "set")
    return load_dataset(small.write()["labelled"][0])


def boxes(dataset):
    """File name -> its size and its objects, each with the name of its class and two corners."""
    return {
        os.path.basename(r["file_name"]): (
            (r["width"], r["height"]),
            [(dataset.classes[a["category_id"]], corners(*a["bbox"]), a["iscrowd"]) for a in r["annotations"]],
        )
        for r in dataset.records
    }


def corners(x, y, w, h):
    return x, y, x + w, y + h


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, (size, rows) in expected.items():
        assert found[name][0] == size
        for one, other in zip(found[name][1], rows, strict=True):
            assert (one[0], one[2]) == (other[0], other[2])
            assert one[1] == pytest.approx(other[1], abs=0.51)


@pytest.mark.parametrize("tool", FORMATS)
def test_the_same_records_in_every_format(made, tool, tmp_path, caplog):
    FORMATS[tool](made, tmp_path)
    caplog.clear()
    assert_same(boxes(load_dataset(str(tmp_path))), boxes(made))
    assert [r.message for r in caplog.records if r.levelname == "WARNING" and "took" not in r.message] == []


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs ../shared/data ({DATA} is not there)")
@pytest.mark.parametrize("name", ["bccd", "aquarium"])
@pytest.mark.parametrize("tool", FORMATS)
def test_photographs_in_every_format(name, tool, tmp_path):
    original = load_dataset(str(DATA / name / "val.json"))
    FORMATS[tool](original, tmp_path)
    assert_same(boxes(load_dataset(str(tmp_path))), boxes(original))


def test_what_it_was_taken_for_is_said(made, tmp_path, caplog):
    roboflow(made, tmp_path)
    with caplog.at_level("INFO"):
        load_dataset(str(tmp_path))
    assert f"{tmp_path}: taken for COCO ({tmp_path}/train/_annotations.coco.json)" in caplog.text


def test_two_formats_in_one_folder(made, tmp_path):
    voc(made, tmp_path)
    yolo(made, tmp_path)
    with pytest.raises(DataError, match=r"it holds YOLO \(.*data\.yaml, train\) and VOC \(.*\); name the file"):
        load_dataset(str(tmp_path))


def test_no_annotations(tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(DataError, match=r"no annotations in this folder; looked for a COCO json, YOLO's data\.yaml"):
        load_dataset(str(tmp_path))
    with pytest.raises(DataError, match="no annotations of the val split in this folder"):
        find_layout(tmp_path, "val")


def test_splits_of_a_folder(made, tmp_path):
    cvat(made, tmp_path / "one")
    assert find_layout(tmp_path / "one").path.name == "instances_default.json"
    roboflow(made, tmp_path / "three")
    (tmp_path / "three" / "train").rename(tmp_path / "three" / "valid")
    roboflow(made, tmp_path / "three")
    assert len(load_dataset(f"{tmp_path}/three:val")) == len(made)
    folder = tmp_path / "coco" / "annotations"
    folder.mkdir(parents=True)
    for name in ("instances_train2017", "captions_train2017", "instances_val2017"):
        (folder / f"{name}.json").touch()
    assert find_layout(tmp_path / "coco").path.name == "instances_train2017.json"
    assert find_layout(tmp_path / "coco", "val").path.name == "instances_val2017.json"


def test_a_split_at_the_end_of_a_source(tmp_path):
    assert split_of("a/b:val") == ("a/b", "val")
    assert split_of("a/b") == ("a/b", "")
    assert split_of("C:/photos") == ("C:/photos", "")
    (tmp_path / "odd:val").mkdir()
    assert split_of(f"{tmp_path}/odd:val") == (f"{tmp_path}/odd:val", "")


def test_voc_names_image_and_annotation(made, tmp_path, caplog):
    voc(made, tmp_path)
    first = sorted((tmp_path / "JPEGImages").iterdir())[0]
    xml = tmp_path / "Annotations" / f"{first.stem}.xml"
    text = xml.read_text()
    xml.unlink()
    data = load_dataset(str(tmp_path))
    assert len(data) == len(made) - 1
    assert f"1 images have no annotation file and are left out ({first.stem})" in caplog.text
    xml.write_text(text)
    first.unlink()
    with pytest.raises(DataError, match=rf"{first.stem}\.xml: there is no image of this name \(1 of 14 have none\)"):
        load_dataset(str(tmp_path))
    with pytest.raises(DataError, match=rf"looked in {re.escape(str(xml.parent))} for \.jpg"):
        load_dataset(str(xml.parent))


def test_voc_lists(made, tmp_path):
    voc(made, tmp_path)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("1\n2\n")
    (lists / "val.txt").write_text("3\n")
    assert [r["image_id"] for r in load_dataset(str(tmp_path)).records] == ["1", "2"]
    assert [r["image_id"] for r in load_dataset(f"{tmp_path}:val").records] == ["3"]


@pytest.mark.parametrize("tool", ["roboflow", "yolo", "voc"])
def test_the_check_reads_what_training_reads(tool, tmp_path):
    small = Small(tmp_path / "set")
    names = small.write()
    FORMATS[tool](load_dataset(names["labelled"][0]), tmp_path / "export")
    names["labelled"] = [str(tmp_path / "export")]
    report = check_data(names, SETUP)
    assert not report.found.has(ERROR)
    labelled = next(row for row in report.sets if row["role"] == "labelled")
    assert (labelled["images"], labelled["boxes"]) == (14, 28)


def test_the_check_names_the_line_that_training_refuses(made, tmp_path):
    yolo(made, tmp_path / "export")
    label = sorted((tmp_path / "export" / "labels" / "train").iterdir())[0]
    label.write_text("0 64 48 32 48\n")
    names = Small(tmp_path / "set").write() | {"labelled": [str(tmp_path / "export")]}
    told = [finding.text for *_, kept in check_data(names, SETUP).found.groups() for finding in kept]
    with pytest.raises(DataError) as error:
        load_dataset(str(tmp_path / "export"))
    assert str(error.value).startswith(f"{label}: line 1 ('0 64 48 32 48'): ")
    assert str(error.value) in told


def test_unlabelled_voc_needs_no_annotation(made, tmp_path):
    voc(made, tmp_path)
    for path in (tmp_path / "Annotations").iterdir():
        path.write_text("no annotation")
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "test.txt").write_text("1\n2\n")
    data = load_dataset(f"{tmp_path}:test", labeled=False)
    assert [r["image_id"] for r in data.records] == ["1", "2"]
    assert all("annotations" not in r for r in data.records)
