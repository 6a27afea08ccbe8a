"""Reading Pascal VOC folders: Detectron2's boxes and order, difficult objects, every fault, the published counts."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace

import pytest

from sed.checks.check import check_data
from sed.config import load_config
from sed.data.catalog import VOC, known_names, load_dataset
from sed.data.errors import DataError
from sed.data.mapper import Mapper
from sed.data.voc import CLASSES, load_voc, parse
from sed.engine.build import read_data
from tests.reference.small_data import SETUP
from tests.reference.voc import Object, make_folder, write_annotation, write_split

CAT, DOG = Object("cat", (1, 1, 64, 48)), Object("dog", (11, 21, 30, 40), 1)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def folder(root):
    folder = make_folder(root, 2007)
    write_split(folder, "trainval", {"000012": [CAT, DOG], "000005": [], "000007": [DOG]}, (48, 64))
    return folder


def test_records_are_detectron2s_with_what_is_difficult(folder) -> None:
    dataset = load_dataset("voc_2007_trainval")
    assert (dataset.name, dataset.classes, dataset.category_ids) == ("voc_2007_trainval", CLASSES, tuple(range(20)))
    assert [record["image_id"] for record in dataset.records] == ["000012", "000005", "000007"]  # as listed
    box = {"bbox_mode": 1, "iscrowd": 0}
    assert dataset.records[0] == {
        "file_name": f"{folder}/JPEGImages/000012.jpg",
        "image_id": "000012",
        "height": 48,
        "width": 64,
        "annotations": [
            {**box, "bbox": [0, 0, 64, 48], "category_id": 7, "area": 64 * 48, "difficult": 0},
            {**box, "bbox": [10, 20, 20, 20], "category_id": 11, "area": 400, "difficult": 1},
        ],
    }
    assert dataset.records[1]["annotations"] == []


def test_the_classes_are_vocs_in_alphabetical_order() -> None:
    assert len(set(CLASSES)) == 20
    assert list(CLASSES) == sorted(CLASSES)


def test_difficult_objects_are_trained_on(folder) -> None:
    record = load_dataset("voc_2007_trainval").records[2]
    _, targets = Mapper((48, 48), 100, flip=False).labeled(record, 0)
    assert targets.classes.tolist() == [11]
    assert targets.boxes.tolist() == [[10, 20, 30, 40]]


def test_unlabelled_images_need_no_annotation_file_and_none_is_read(folder) -> None:
    labeled = load_dataset("voc_2007_trainval").records
    for path in (folder / "Annotations").iterdir():
        path.unlink()
    unlabeled = load_dataset("voc_2007_trainval", labeled=False)
    assert unlabeled.classes == CLASSES
    assert unlabeled.records == [{k: v for k, v in r.items() if k != "annotations"} for r in labeled]


def test_names_are_detectron2s_builtin_ones(root) -> None:
    assert set(VOC) <= set(known_names())
    for name in VOC:
        _, year, split = name.split("_")
        folder = make_folder(root, int(year))
        write_split(folder, split, {f"{name}_1": [CAT]})
        assert [r["image_id"] for r in load_dataset(name).records] == [f"{name}_1"]


def test_voc07_labelled_and_voc12_unlabelled(folder, root) -> None:
    write_split(make_folder(root, 2012), "trainval", {"2008_000002": [CAT], "2008_000007": []})
    write_split(folder, "test", {"000001": [DOG]})
    names = ["DATASETS.TRAIN", "['voc_2007_trainval']", "DATASETS.UNLABELED", "['voc_2012_trainval']"]
    data = read_data(load_config("configs/voc_detr.yaml", ["ENGINE", "torchvision", *names]))
    assert [r["image_id"] for r in data.labeled.records] == ["000012", "000007"]  # one has no box
    assert [r["image_id"] for r in data.unlabeled] == ["2008_000002", "2008_000007"]
    assert not any("annotations" in r for r in data.unlabeled)
    assert data.tests[0].records[0]["annotations"][0]["difficult"] == 1


# ------------------------------------------------------------------------------------------ faults
def objects(**fields: str) -> str:
    """An annotation of one cat; None leaves a field out."""
    values = {"name": "cat", "difficult": "0", "xmin": "2", "ymin": "3", "xmax": "20", "ymax": "30", **fields}
    tags = {tag: "" if text is None else f"<{tag}>{text}</{tag}>" for tag, text in values.items()}
    box = "".join(tags.pop(tag) for tag in ("xmin", "ymin", "xmax", "ymax"))
    return f"<object>{''.join(tags.values())}<bndbox>{box}</bndbox></object>"


SIZE = "<size><width>64</width><height>48</height></size>"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<object>", "not an XML file"),
        (
            SIZE.replace("48", "-3") + objects(),
            "its <size> has <height> '-3'; expected .* pixels, 1 to 100000",
        ),
        (SIZE.replace("64", "1e9") + objects(), "its <size> has <width> '1e9'; expected a number of pixels"),
        (SIZE.replace("48", "tall") + objects(), "its <size> has <height> 'tall'; expected a number"),
        (
            SIZE + objects(name="zebra"),
            r"object 1 \(zebra\) is of an unknown class; known are .*give its folder",
        ),
        (SIZE + objects() + objects(name=None), r"object 2 \(no name\) is of an unknown class"),
        (SIZE + objects(difficult="rather"), "<difficult> 'rather'; expected 0 or 1"),
    ],
)
def test_annotation_files_that_cannot_be_used(folder, body: str, message: str) -> None:
    path = folder / "Annotations" / "000007.xml"
    path.write_text(f"<annotation>{body}</annotation>")
    with pytest.raises(DataError, match=message) as error:
        load_dataset("voc_2007_trainval")
    assert str(error.value).startswith(f"{path}: ")


def test_the_error_for_a_missing_folder_names_where_it_belongs(root) -> None:
    with pytest.raises(DataError, match=r"VOC2012/ImageSets/Main/val\.txt: no such file; .*DETECTRON2_DATASETS"):
        load_dataset("voc_2012_val")


def test_missing_files_are_named(folder) -> None:
    (folder / "JPEGImages" / "000005.jpg").unlink()
    with pytest.raises(DataError, match=r"000005\.jpg is missing \(1 of 3 are\)"):
        load_dataset("voc_2007_trainval", labeled=False)
    write_split(folder, "trainval", {"000012": [CAT]})
    (folder / "Annotations" / "000012.xml").unlink()
    with pytest.raises(DataError, match=r"000012\.xml: no such file; .*DATASETS\.UNLABELED, which needs none"):
        load_dataset("voc_2007_trainval")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it lists no image"),
        ("000012\n000005\n000012\n", "image id 000012 occurs twice"),
        ("000012 1\n000005 -1\n", "line 1 is '000012 1'; expected one image id a line"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
    ],
)
def test_invalid_lists_of_ids(folder, text: str | bytes, message: str) -> None:
    path = folder / "ImageSets/Main/trainval.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError, match=message) as error:
        load_dataset("voc_2007_trainval")
    assert str(error.value).startswith(f"{path}: ")


def test_boxes_without_size_are_dropped_and_counted_once(folder, caplog) -> None:
    wrong = [Object("cat", (30, 10, 29, 20)), Object("cat", (80, 10, 90, 20)), Object("dog", (50, 40, 70, 60))]
    write_annotation(folder, "000005", [CAT, *wrong], (48, 64))
    with caplog.at_level(logging.WARNING):
        dataset = load_dataset("voc_2007_trainval")
    assert [a["bbox"] for a in dataset.records[1]["annotations"]] == [[0, 0, 64, 48], [49, 39, 15, 9]]
    (line,) = caplog.messages
    assert "trainval.txt: dropped 2 boxes of zero size or outside the image (annotation 000005.xml, object 2)" in line
    assert "clipped 1 boxes" in line


def test_a_labelled_split_without_any_box(folder) -> None:
    write_split(folder, "trainval", {"000012": [], "000005": []})
    with pytest.raises(DataError, match="no usable box in its 2 images"):
        load_dataset("voc_2007_trainval")


def test_fractions_of_pixels_and_a_missing_difficult(folder) -> None:
    """Two files of VOC2012 have fractions; other tools leave <difficult> out."""
    text = SIZE + objects(ymin="45.5", ymax="47.25", difficult=None)
    (folder / "Annotations" / "000005.xml").write_text(f"<annotation>{text}</annotation>")
    (found,) = load_dataset("voc_2007_trainval").records[1]["annotations"]
    assert (found["bbox"], found["difficult"]) == ([1, 44.5, 19, 2.75], 0)


@pytest.mark.parametrize(
    "fields",
    [{"ymax": None}, {"ymax": "nan"}, {"xmin": "left"}, {"xmax": "1e9"}, {"xmax": "-inf"}, {"xmax": "9" * 5000}],
)
def test_one_box_that_is_none_is_dropped_and_counted(folder, caplog, fields) -> None:
    (folder / "Annotations" / "000005.xml").write_text(f"<annotation>{SIZE}{objects()}{objects(**fields)}</annotation>")
    with caplog.at_level(logging.WARNING):
        assert len(load_dataset("voc_2007_trainval").records[1]["annotations"]) == 1
    (line,) = set(caplog.messages)
    assert (
        "trainval.txt: dropped 1 boxes that are not [x, y, width, height] in pixels (annotation 000005.xml, obj" in line
    )
    assert len(line) < 400


@pytest.mark.parametrize("size", ["", "<size/>", SIZE.replace("48", "0"), SIZE.replace("64", "")])
def test_a_size_that_is_missing_is_read_from_the_image(folder, caplog, size) -> None:
    (folder / "Annotations" / "000005.xml").write_text(f"<annotation>{size}{objects()}</annotation>")
    with caplog.at_level(logging.WARNING):
        record = load_dataset("voc_2007_trainval").records[1]
    assert (record["height"], record["width"]) == (48, 64)
    assert "trainval.txt: read 1 sizes from the images, 000005.xml has none" in caplog.text


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [
        *((e, e) for e in ("utf-8", "utf-8-sig", "utf-16", "latin-1", "iso-8859-15", "cp1252", "gbk", "shift_jis")),
        *(("utf-16-le", "utf-16"), ("utf-16-be", "utf-16"), ("utf-16", ""), ("utf-8-sig", ""), ("utf-8", "utf-16")),
    ],
)
def test_encodings(folder, encoding, declared) -> None:
    head = f'<?xml version="1.0" encoding="{declared.removesuffix("-sig")}"?>' if declared else ""
    letter = "\u4eba" if encoding in ("gbk", "shift_jis") else "\u00fc"
    text = f"{head}<annotation><filename>{letter}.jpg</filename>{SIZE}{objects()}</annotation>"
    path = folder / "Annotations" / "000005.xml"
    path.write_bytes(text.encode(encoding))
    assert len(load_dataset("voc_2007_trainval").records[1]["annotations"]) == 1
    assert parse(path).findtext("filename") == f"{letter}.jpg"


LOL = f"""<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "{"&a;" * 10}"><!ENTITY i "{"&b;" * 10}">]>"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{LOL}<annotation>&i;</annotation>", "declares entities"),
        (f"<?xml version='1.0'?>{LOL}<annotation>&i;</annotation>".encode("utf-16"), "declares entities"),
        ('<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation>&e;</annotation>', "declares entities"),
        ("<annotation>&e;</annotation>", "not an XML file .*entity"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "not an XML file .*unknown encoding: klingon"),
        ('<?xml version="1.0" encoding="hex"?><annotation/>', "not an XML file .*'hex' is not a text encoding"),
        ("<annotation>\u00fc</annotation>".encode("latin-1"), "not an XML file .*invalid token"),
        ("", "not an XML file .*no element found"),
        (b"\xff\xd8\xff\xe0", "not an XML file"),
        ("<html><body/></html>", "it is a <html>; expected an <annotation>"),
        ("<annotation>" + "<a>" * 200_000, "not an XML file"),
    ],
    ids=range(11),
)
def test_what_is_no_annotation_file(folder, text, message) -> None:
    path = folder / "Annotations" / "000005.xml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError, match=message) as error:
        load_dataset("voc_2007_trainval")
    assert str(error.value).startswith(f"{path}: ")


def test_pipes_and_folders_are_not_read(folder) -> None:
    path = folder / "Annotations" / "000005.xml"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"000005\.xml: cannot be read: it is a pipe"):
        load_dataset("voc_2007_trainval")
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"000005\.xml: cannot be read: it is a folder"):
        load_dataset("voc_2007_trainval")


def test_the_check_tells_what_is_left_out(folder) -> None:
    (folder / "Annotations" / "000005.xml").write_text(f"<annotation>{SIZE}{objects(xmin='left')}</annotation>")
    names = {"labelled": ["voc_2007_trainval"], "test": [], "unlabelled": ["voc_2007_trainval"]}
    found = check_data(names, replace(SETUP, num_classes=20)).found
    assert any(f.code == "told" and "dropped 1 boxes" in f.text for f in found.kept)
    (folder / "Annotations" / "000005.xml").write_text("<annotation>")
    found = check_data(names, replace(SETUP, num_classes=20)).found
    (refused,) = [f for f in found.kept if f.code == "refused"]
    assert "000005.xml: not an XML file" in refused.text


# ------------------------------------------------------------------------------------------ counts
@pytest.mark.parametrize(("year", "count", "labeled"), [(2007, 5011, True), (2012, 11540, False)])
def test_the_published_numbers_of_images(root, year: int, count: int, labeled: bool) -> None:
    """VOC07 trainval labelled, VOC12 trainval unlabelled; every image and annotation is one file under many names."""
    folder = make_folder(root, year)
    write_split(folder, "one", {"one": [CAT, DOG, CAT]}, (375, 500))
    ids = [f"{number:06d}" for number in range(count)]
    for i in ids:
        (folder / "JPEGImages" / f"{i}.jpg").symlink_to("one.jpg")
        if labeled:
            (folder / "Annotations" / f"{i}.xml").symlink_to("one.xml")
    (folder / "ImageSets/Main/trainval.txt").write_text("\n".join(ids) + "\n")
    began = time.process_time()
    dataset = load_voc(folder, "trainval", labeled=labeled)
    assert time.process_time() - began < 10  # measured: 0.4 s
    assert [record["image_id"] for record in dataset.records] == ids
    assert sum(len(record.get("annotations", ())) for record in dataset.records) == 3 * count * labeled
