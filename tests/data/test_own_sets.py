"""One's own images as three jsons: every format, what is held out, what is no unlabelled image."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from sed.data.catalog import load_dataset
from sed.data.coco import load_coco
from sed.data.errors import DataError
from sed.data.own_sets import hold_out, make_sets
from sed.data.records import Dataset
from tests.data.test_layouts import DATA, assert_same, boxes
from tests.reference.formats import FORMATS, roboflow
from tests.reference.small_data import Small


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    small = Small(tmp_path_factory.mktemp("own") / "set")
    small.names = small.write()
    return small


@pytest.fixture
def make(tmp_path):
    def call(data, val="", unlabeled=()):
        told = []
        make_sets(str(data), str(val), [str(path) for path in unlabeled], tmp_path / "run" / "sets", told.append)
        paths = [p for p in (tmp_path / "run" / "sets").iterdir() if p.stem != "classes"]
        found = {p.stem: load_coco(p, labeled=p.stem != "unlabeled") for p in paths}
        return found, told

    return call


@pytest.mark.parametrize("tool", FORMATS)
def test_every_format_gives_the_same_records(small, tool, tmp_path, make):
    made = load_dataset(small.names["labelled"][0])
    FORMATS[tool](made, tmp_path / "data")
    found, told = make(tmp_path / "data")
    assert_same(boxes(found["train"]) | boxes(found["val"]), boxes(made))
    assert set(boxes(found["train"])).isdisjoint(boxes(found["val"]))
    assert "a fifth of the labelled images, 3 images" in told[-1]


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs ../shared/data ({DATA} is not there)")
@pytest.mark.parametrize("name", ["bccd", "aquarium"])
@pytest.mark.parametrize("tool", FORMATS)
def test_public_sets_in_every_format(name, tool, tmp_path, make):
    made = load_dataset(str(DATA / name / "val.json"))
    FORMATS[tool](made, tmp_path / "data")
    found, _ = make(tmp_path / "data")
    assert_same(boxes(found["train"]) | boxes(found["val"]), boxes(made))


def test_the_own_validation_split_is_evaluated_on(small, tmp_path, make):
    made, other = (load_dataset(small.names[role][0]) for role in ("labelled", "test"))
    roboflow(made, tmp_path / "data")
    roboflow(other, tmp_path / "other")
    shutil.move(tmp_path / "other" / "train", tmp_path / "data" / "valid")
    found, told = make(tmp_path / "data")
    assert_same(boxes(found["train"]), boxes(made))
    assert_same(boxes(found["val"]), boxes(other))
    assert told[1].startswith(f"to evaluate on: {tmp_path}/data:val, 6 images")


def test_another_val_is_matched_by_the_names_of_its_classes(small, tmp_path, make):
    content = json.loads(Path(small.names["test"][0]).read_text())
    content["categories"] = [{"id": c["id"] + 10, "name": c["name"]} for c in content["categories"][::-1]]
    content["annotations"] = [{**a, "category_id": a["category_id"] + 10} for a in content["annotations"]]
    root = Path(small.names["test"][0]).parent
    content["images"] = [{**i, "file_name": os.path.abspath(root / i["file_name"])} for i in content["images"]]
    (tmp_path / "val.json").write_text(json.dumps(content))
    found, _ = make(small.names["labelled"][0], tmp_path / "val.json")
    assert found["val"].classes == found["train"].classes == ("cat", "dog", "owl")
    assert_same(boxes(found["val"]), boxes(load_dataset(small.names["test"][0])))


def test_held_out_is_a_seeded_fifth_and_no_class_is_lost():
    def record(i, *classes):
        return {"file_name": f"{i:02d}.jpg", "image_id": i, "annotations": [{"category_id": c} for c in classes]}

    records = [record(i, 0) for i in range(18)] + [record(18, 1), record(19, 0, 1), record(20)]
    train, val = hold_out(Dataset("x", records, ("a", "b")), str)
    assert len(val) == 4
    assert len(train) == 17
    assert any(a["category_id"] == 1 for r in train.records for a in r["annotations"])
    again = hold_out(Dataset("x", records[::-1], ("a", "b")), str)[1]
    assert {r["image_id"] for r in again.records} == {r["image_id"] for r in val.records}
    assert records[20] in train.records  # background is not evaluated on
    with pytest.raises(DataError, match="4 images with boxes; expected 5 or more"):
        hold_out(Dataset("x", records[:4], ("a", "b")), str)
    with pytest.raises(DataError, match="the only object of a class"):
        hold_out(Dataset("x", [record(i, i) for i in range(6)], tuple("abcdef")), str)


def test_unlabelled_images_come_from_all_kinds_of_sources_once(small, tmp_path, make):
    photos = sorted((small.folder / "photos").iterdir())
    (tmp_path / "list.txt").write_text(f"# some\n{photos[0]}\n\n{photos[1]}\n")
    rows = [{"id": 1, "file_name": str(photos[2]), "height": 96, "width": 128}]
    (tmp_path / "more.json").write_text(json.dumps({"images": rows}))
    sources = [tmp_path / "list.txt", tmp_path / "more.json", photos[3], small.folder / "photos"]
    found, told = make(small.names["labelled"][0], unlabeled=sources)
    assert sorted(r["file_name"] for r in found["unlabeled"].records) == [str(p) for p in photos]
    assert told[-1] == "unlabelled: 8 images"


def test_labelled_images_and_their_copies_are_no_unlabelled_ones(small, tmp_path, make):
    made = load_dataset(small.names["labelled"][0])
    shutil.copytree(small.folder / "photos", tmp_path / "photos")
    shutil.copy(made.records[0]["file_name"], tmp_path / "photos" / "copy.jpg")
    os.symlink(made.records[1]["file_name"], tmp_path / "photos" / "link.jpg")
    found, told = make(small.names["labelled"][0], unlabeled=[tmp_path / "photos"])
    assert len(found["unlabeled"]) == 8
    assert "1 unlabelled images are copies of labelled ones and were left out" in told


@pytest.mark.parametrize(
    ("source", "text", "message"),
    [
        ("nowhere", None, "no such file or folder"),
        ("notes.md", "x", "expected a folder, a COCO json"),
        ("list.txt", "a.jpg\n", r"list\.txt: line 1: no such file: a\.jpg"),
        ("empty.txt", "\n# nothing\n", r"empty\.txt: an empty list"),
        ("bad.mp4", "no video", "OpenCV cannot open this video"),
    ],
)
def test_what_is_no_source_is_one_error(small, tmp_path, make, source, text, message):
    if text is not None:
        (tmp_path / source).write_text(text)
    with pytest.raises(DataError, match=message):
        make(small.names["labelled"][0], unlabeled=[tmp_path / source])
    assert not (tmp_path / "run" / "sets").exists()


def test_a_class_that_is_only_evaluated_on_is_told(small, tmp_path, make):
    content = json.loads(Path(small.names["labelled"][0]).read_text())
    root = Path(small.names["labelled"][0]).parent
    content["images"] = [{**i, "file_name": os.path.abspath(root / i["file_name"])} for i in content["images"]]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 5]
    (tmp_path / "train.json").write_text(json.dumps(content))
    _, told = make(tmp_path / "train.json", small.names["test"][0])
    assert "warning: owl: only in images to evaluate on, none to learn from" in told


def video(path, pictures, rate=10):
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, (width, height))
    for picture in pictures:
        writer.write(picture)
    writer.release()
    return path


def test_frames_of_a_video_two_a_second_without_near_duplicates(small, tmp_path, make):
    rng = np.random.default_rng(0)
    scenes = [cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (128, 96)) for _ in range(3)]
    clip = video(tmp_path / "clip.mp4", [scene for scene in scenes for _ in range(30)])  # 3 s each
    found, told = make(small.names["labelled"][0], unlabeled=[clip])
    names = [Path(r["file_name"]) for r in found["unlabeled"].records]
    assert {p.parent.parent for p in names} == {tmp_path / "run" / "frames"}
    assert names[0].parent.name.startswith("clip_")
    assert [p.name for p in names] == ["000000.jpg", "000030.jpg", "000060.jpg"]
    assert any("3 frames of 18, 2 a second" in line for line in told)


def test_videos_of_equal_names_do_not_mix(small, tmp_path, make):
    rng = np.random.default_rng(0)
    clips = []
    for folder in "ab":
        (tmp_path / folder).mkdir()
        scene = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (128, 96))
        clips.append(video(tmp_path / folder / "clip.mp4", [scene] * 10))
    found, _ = make(small.names["labelled"][0], unlabeled=clips)
    assert len(found["unlabeled"]) == 2


def test_equal_images_are_held_out_together():
    records = [
        {"file_name": f"{i:02d}.jpg", "image_id": i, "annotations": [{"category_id": 0}]} for i in range(20)
    ]  # each file twice
    train, val = hold_out(Dataset("x", records, ("a",)), lambda name: str(int(name[:2]) // 2))
    pairs = [{r["image_id"] // 2 for r in part.records} for part in (train, val)]
    assert pairs[0].isdisjoint(pairs[1])
    assert len(val) == 4


def test_labelled_images_without_a_box_may_be_unlabelled_ones(small, tmp_path, make):
    content = json.loads(Path(small.names["labelled"][0]).read_text())
    root = Path(small.names["labelled"][0]).parent
    content["images"] = [{**i, "file_name": os.path.abspath(root / i["file_name"])} for i in content["images"]]
    first = content["images"][0]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != first["id"]]
    (tmp_path / "train.json").write_text(json.dumps(content))
    (tmp_path / "photos").mkdir()
    for image in content["images"]:
        os.symlink(image["file_name"], tmp_path / "photos" / os.path.basename(image["file_name"]))
    found, told = make(tmp_path / "train.json", small.names["test"][0], [tmp_path / "photos"])
    assert [os.path.basename(r["file_name"]) for r in found["unlabeled"].records] == [
        os.path.basename(first["file_name"])
    ]
    assert any(line.startswith("1 labelled images have no box") for line in told)


def test_categories_keep_the_ids_of_the_labelled_set(small, tmp_path, make):
    content = json.loads(Path(small.names["test"][0]).read_text())
    root = Path(small.names["test"][0]).parent
    content["categories"] = [{"id": 9, "name": "owl"}]
    content["annotations"] = [{**a, "category_id": 9} for a in content["annotations"] if a["category_id"] == 5]
    content["images"] = [{**i, "file_name": os.path.abspath(root / i["file_name"])} for i in content["images"]]
    (tmp_path / "val.json").write_text(json.dumps(content))
    found, _ = make(small.names["labelled"][0], tmp_path / "val.json")
    assert found["val"].category_ids == found["train"].category_ids == (1, 2, 5)
    rows = json.loads((tmp_path / "run" / "sets" / "classes.json").read_text())
    assert rows == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 5, "name": "owl"}]
