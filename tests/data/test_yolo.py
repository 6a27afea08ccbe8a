"""YOLO sets: what is read, and one clear error for what is none."""

from __future__ import annotations

import logging

import pytest

from sed.data.catalog import load_dataset
from sed.data.errors import DataError
from sed.data.yolo import label_file, load_yolo
from tests.reference.small_data import Small

YAML = "path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n"


@pytest.fixture
def folder(tmp_path):
    """Two images of 128 x 96 pixels to train on, one to validate on."""
    small = Small(tmp_path / "other")
    for name in ("train/a", "train/b", "val/c"):
        small.picture(tmp_path / "images" / f"{name}.jpg")
        (tmp_path / "labels" / name).with_suffix(".txt").parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "labels/train/a.txt").write_text("1 0.5 0.5 0.25 0.5\n0 0.1 0.1 0.3 0.1 0.3 0.5\n")
    (tmp_path / "labels/train/b.txt").write_text("")
    (tmp_path / "labels/val/c.txt").write_text("0 0.5 0.5 1 1\n")
    (tmp_path / "data.yaml").write_text(YAML)
    return tmp_path


def test_boxes_and_polygons(folder):
    data = load_dataset(str(folder))
    assert data.classes == ("cat", "dog")
    assert [r["image_id"] for r in data.records] == ["images/train/a.jpg", "images/train/b.jpg"]
    first = data.records[0]
    assert (first["width"], first["height"]) == (128, 96)
    boxes = [(a["category_id"], [round(v, 6) for v in a["bbox"]]) for a in first["annotations"]]
    assert boxes == [(1, [48, 24, 32, 48]), (0, [12.8, 9.6, 25.6, 38.4])]
    assert [a["area"] for a in first["annotations"]] == pytest.approx([32 * 48, 25.6 * 38.4])
    assert data.records[1]["annotations"] == []


@pytest.mark.parametrize("source", ["", "/data.yaml"])
def test_splits_by_name(folder, source):
    data = load_dataset(f"{folder}{source}:val")
    assert [r["image_id"] for r in data.records] == ["images/val/c.jpg"]
    assert data.name == f"{folder}{source}:val"
    with pytest.raises(DataError, match=r"data\.yaml: it has no test images; it names train, val"):
        load_dataset(f"{folder}{source}:test")


def test_without_labels_no_label_file_is_opened(folder):
    (folder / "labels/train/a.txt").write_text("nonsense")
    data = load_dataset(f"{folder}/data.yaml", labeled=False)
    assert len(data) == 2
    assert all("annotations" not in r for r in data.records)


def test_folder_with_a_class_list(folder):
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text("cat\ndog\n\n")
    assert [len(r["annotations"]) for r in load_dataset(str(folder)).records] == [2, 0]
    assert len(load_dataset(f"{folder}:val")) == 1


def test_paths_of_another_machine(folder, caplog):
    (folder / "data.yaml").write_text(YAML.replace("images/train", "/home/someone/set/images/train"))
    with caplog.at_level(logging.WARNING):
        assert len(load_yolo(folder)) == 2
    assert "which is not there; took" in caplog.text
    (folder / "data.yaml").write_text(YAML.replace("images/train", "C:\\Users\\someone\\photos"))
    with pytest.raises(DataError, match=r"data\.yaml: train is .*photos, which is not there; looked for"):
        load_yolo(folder)


def test_a_list_of_images(folder):
    (folder / "train.txt").write_text("images/train/b.jpg\n./images/train/a.jpg\n")
    (folder / "data.yaml").write_text(YAML.replace("train: images/train", "train: train.txt"))
    assert [len(r["annotations"]) for r in load_yolo(folder).records] == [2, 0]
    (folder / "train.txt").write_text("images/train/b.jpg\nimages/train/z.jpg\n")
    with pytest.raises(DataError, match=r"train\.txt: line 2 is 'images/train/z\.jpg'; expected an image file"):
        load_yolo(folder)


def test_label_files_lie_in_the_last_labels_folder(tmp_path):
    assert label_file(tmp_path / "images/set/images/train/a.jpg") == tmp_path / "images/set/labels/train/a.txt"
    assert label_file(tmp_path / "flat" / "a.jpg").name == "a.txt"


def test_what_is_left_out_is_counted_once(folder, caplog):
    (folder / "labels/train/b.txt").unlink()
    (folder / "labels/train/z.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with caplog.at_level(logging.WARNING):
        assert [len(r["annotations"]) for r in load_yolo(folder).records] == [2, 0]
    (told,) = caplog.messages
    assert "1 images have no label file and are background" in told
    assert "1 label files have no image and were left out (z.txt)" in told


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("2 0.5 0.5 0.1 0.1", r"the class is 2; data\.yaml has the numbers 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", "the class is -1"),
        ("0.5 0.5 0.5 0.1 0.1", r"the class is 0\.5"),
        ("nan 0.5 0.5 0.1 0.1", "the class is nan"),
        ("0 64 48 32 48", "are they pixels? The image is 128 x 96"),
        ("0 0.5 0.5 0.1", "it has 4 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9", "it has 6 numbers"),
        ("cat 0.5 0.5 0.1 0.1", "expected numbers: class cx cy w h"),
        ("0 0.5 0.5 inf 0.1", "expected finite numbers"),
    ],
)
def test_a_line_that_is_none(folder, line, told):
    (folder / "labels/train/a.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(DataError) as error:
        load_yolo(folder)
    assert f"{folder}/labels/train/a.txt: line 2 (" in str(error.value)
    assert told.replace("\\", "") in str(error.value)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("names: {0: cat, 2: dog}", "names has the numbers [0, 2]; expected 0 to 1"),
        ("names: cat", "names is 'cat'; expected the classes"),
        ("names: []", "names is []; expected"),
        ("names: [cat, cat]", "the class 'cat' occurs twice"),
        ("names: [cat, null]", "the name of class 1 is None; expected"),
        ("nc: 2", "expected the keys names and train"),
        ("names: [cat", "not a YAML file"),
    ],
)
def test_a_description_that_is_none(folder, names, told):
    (folder / "data.yaml").write_text(f"train: images/train\n{names}\n")
    with pytest.raises(DataError) as error:
        load_yolo(folder)
    assert str(error.value).startswith(f"{folder}/data.yaml: ")
    assert told in str(error.value)


def test_no_label_file_at_all(folder):
    for path in (folder / "labels/train").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"none of its 2 images has a label file; looked for .*labels/train/a\.txt"):
        load_yolo(folder)


def test_the_training_images_are_those_of_their_folder(folder):
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text("\ufeffcat\ndog\n", encoding="utf-8")
    train, val = (load_dataset(f"{folder}{split}") for split in ("", ":val"))
    assert train.classes == ("cat", "dog")
    assert [len(train), len(val)] == [2, 1]


def test_keypoints_are_refused(folder):
    (folder / "data.yaml").write_text(YAML + "kpt_shape: [3, 2]\n")
    with pytest.raises(DataError, match=r"data\.yaml: it is of keypoints \(kpt_shape\); export boxes"):
        load_yolo(folder)


def test_labels_of_another_list_are_not_alone(folder, caplog):
    for name, split in (("b", "train"), ("a", "val")):
        (folder / f"{split}.txt").write_text(f"images/train/{name}.jpg\n")
    (folder / "data.yaml").write_text("train: val.txt\nnames: [cat, dog]\n")
    with caplog.at_level(logging.WARNING):
        assert len(load_yolo(folder)) == 1
    assert "have no image" not in caplog.text
