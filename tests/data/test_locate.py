"""Images of a json are found where annotation tools put them, under the names that they write."""

from __future__ import annotations

import logging
import shutil
import unicodedata
from pathlib import Path

import pytest

from sed.data.coco import load_coco
from sed.data.errors import DataError
from sed.data.locate import locate_images


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


@pytest.mark.parametrize(
    ("json", "images"),
    [
        ("set.json", ""),
        ("set.json", "images"),
        ("set.json", "set"),
        ("set.json", "images/set"),
        ("annotations/instances_train.json", "images"),  # CVAT's and COCO's folders
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_val.json", "images/val"),
        ("annotations/instances_default.json", "images/default"),
        ("annotations/image_info_unlabeled2017.json", "unlabeled2017"),
        ("annotations/train.json", ""),
        ("annotations/train.json", "train/images"),
        ("Annotations/train.json", "images/train"),
    ],
)
def test_folders_of_tools(tmp_path, json, images):
    touch(tmp_path / images, "a.jpg", "sub/b.jpg")
    files, _, renamed = locate_images(tmp_path / json, "", ["a.jpg", "sub/b.jpg"])
    assert files == [str(tmp_path / images / name) for name in ("a.jpg", "sub/b.jpg")]
    assert not renamed


def test_the_folder_above_is_looked_in_for_annotations_alone(tmp_path):
    """Elsewhere a file of that name is likely another image."""
    touch(tmp_path, "a.jpg")
    assert locate_images(tmp_path / "annotations/x.json", "", ["a.jpg"]).files == [str(tmp_path / "a.jpg")]
    assert locate_images(tmp_path / "second/x.json", "", ["a.jpg"]).files == [""]


def test_a_root_that_is_given_is_the_only_one(tmp_path):
    touch(tmp_path, "a.jpg", "root/train/b.jpg")
    assert locate_images(tmp_path / "annotations/x.json", tmp_path / "root", ["a.jpg"]).files == [""]
    found = locate_images(tmp_path / "annotations/instances_train.json", tmp_path / "root", ["b.jpg"])
    assert found.files == [str(tmp_path / "root/train/b.jpg")]


NFC = unicodedata.normalize("NFC", "Zelle_\u00fc_\ud55c.jpg")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("images\\a.jpg", "images/a.jpg"),
        ("images\\1\\a.jpg", "images/1/a.jpg"),
        ("images/1/a.jpg", "a.jpg"),
        ("..\\..\\label-studio\\label-studio\\media\\upload\\4\\a.jpg", "a.jpg"),
        ("/data/upload/1/5f3c0a1b-name.jpg", "images/5f3c0a1b-name.jpg"),
        ("/data/upload/1/5f3c0a1b-name.jpg", "images/name.jpg"),  # the file before it was uploaded
        ("/data/local-files/?d=folder%2Fname%20x.jpg", "folder/name x.jpg"),
        ("https://example.org/data/upload/1/a%20b.jpg", "a b.jpg"),
        ("s3://bucket/deep/a.jpg", "deep/a.jpg"),
        ("file:///home/me/images/a.jpg", "images/a.jpg"),
        ("C:\\Users\\me\\data\\images\\a.jpg", "images/a.jpg"),
        ("/home/other/data/a.jpg", "a.jpg"),
        ("Blood%20Image%20%281%29%20%C3%A4.jpg", "Blood Image (1) \u00e4.jpg"),
        (NFC, unicodedata.normalize("NFD", NFC)),
        (unicodedata.normalize("NFD", NFC), NFC),
        ("a.JPG", "a.jpg"),
        ("Train/A.jpg", "train/a.JPG"),
        ("../x/a.jpg", "a.jpg"),
    ],
)
def test_names_of_tools(tmp_path, name, file):
    touch(tmp_path, file, "other.jpg", "a/other.jpg")
    found = locate_images(tmp_path / "set.json", "", [name, "other.jpg"])
    assert found.files == [str(tmp_path / file), str(tmp_path / "other.jpg")]
    assert found.renamed == [(name, str(tmp_path / file))]


def test_an_exact_name_comes_first(tmp_path):
    names = ["a%20b.jpg", "A.jpg", "5f3c0a1b-name.jpg", "x\\a.jpg"]
    touch(tmp_path, *names, "a b.jpg", "a.jpg", "name.jpg")
    assert locate_images(tmp_path / "set.json", "", names).files == [str(tmp_path / name) for name in names]


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["a/1.jpg", "b/1.jpg"], ["1.jpg"]),  # two images, one file
        (["x/1.jpg", "1.jpg"], ["1.jpg"]),
        (["a.Jpg"], ["a.JPG", "a.jpg"]),  # two files, each as good
        (["a.jpg"], ["b.jpg", "a.jpg/b.jpg"]),  # a folder
        (["", "..", "/", "\\", "%", "?d=", "C:", "http://"], []),
    ],
)
def test_no_image_is_taken_for_another(tmp_path, names, files):
    touch(tmp_path, *files)
    found = locate_images(tmp_path / "set.json", "", names)
    assert [Path(file).name for file in found.files if file] == [name for name in names if name in files]
    assert not found.renamed


def test_the_log_counts_them_and_the_error_says_what_was_looked_for_and_where(make_coco, caplog, tmp_path):
    coco = make_coco()
    shutil.move(coco.folder, tmp_path / "moved")
    coco.folder.mkdir()
    for image in coco.content["images"]:
        image["file_name"] = f"/data/upload/1/0123abcd-{image['file_name']}"
    with caplog.at_level(logging.WARNING):
        found = load_coco(coco.write(), tmp_path / "moved")
    assert [record["file_name"] for record in found.records] == [str(tmp_path / f"moved/{i}.jpg") for i in range(3)]
    (message,) = {record.getMessage() for record in caplog.records}
    first = f"/data/upload/1/0123abcd-0.jpg as {tmp_path / 'moved/0.jpg'}"
    assert f"3 images were found under another name or folder than the json's, such as {first}" in message
    (tmp_path / "moved/1.jpg").unlink()
    with pytest.raises(DataError) as error:
        load_coco(coco.write(), tmp_path / "moved")
    for part in ("set.json: image file /data/upload/1/0123abcd-1.jpg is missing (1 of 3 are)", "looked for", " 1.jpg"):
        assert part in str(error.value)
    assert f"in {tmp_path / 'moved'}, {tmp_path / 'moved/images'}" in str(error.value)
    assert "DATASETS.IMAGE_ROOT" in str(error.value)
