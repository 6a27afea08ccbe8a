"""A COCO json with numbers as text, ids of two kinds, and values that can be nothing."""

from __future__ import annotations

import json
import logging
import math
import os
import re

import pytest

from sed.data.coco import load_coco
from sed.data.errors import DataError


def rows(dataset):
    return [(r["image_id"], [(a["category_id"], a["bbox"]) for a in r["annotations"]]) for r in dataset.records]


@pytest.fixture
def plain(make_coco):
    return load_coco(make_coco(name="plain").write())


@pytest.mark.parametrize(
    "change",
    [
        lambda c: [a.update(category_id=str(a["category_id"])) for a in c["annotations"]],
        lambda c: [a.update(category_id=float(a["category_id"])) for a in c["annotations"]],
        lambda c: [a.update(id=str(a["id"])) for a in c["categories"]],
        lambda c: [a.update(id=f" {a['id']}.0 ") for a in c["categories"]],
        lambda c: [a.update(image_id=str(a["image_id"])) for a in c["annotations"]],
        lambda c: [a.update(id=str(a["id"])) for a in c["images"]],
        lambda c: [a.update(id=float(a["id"])) for a in c["images"]],
        lambda c: [a.update(bbox=[str(v) for v in a["bbox"]]) for a in c["annotations"]],
        lambda c: [a.update(height=str(a["height"]), width=float(a["width"])) for a in c["images"]],
    ],
)
def test_what_is_unambiguous_is_read_and_counted(make_coco, plain, caplog, change):
    coco = make_coco(name="odd")
    change(coco.content)
    with caplog.at_level(logging.WARNING):
        found = load_coco(coco.write())
    assert rows(found) == rows(plain)
    assert (found.classes, found.category_ids) == (plain.classes, plain.category_ids)
    assert [(r["height"], r["width"]) for r in found.records] == [(r["height"], r["width"]) for r in plain.records]
    (message,) = {r.getMessage() for r in caplog.records}
    assert re.search(r"set\.json: \d+ values of another type were converted, such as \w+\[0\]\.\w+ ", message)


def test_texts_as_ids_of_images_stay_texts(make_coco, caplog):
    """Also where they are digits with a meaning: 007."""
    coco = make_coco()
    names = {image["id"]: f"00{image['id']}" for image in coco.content["images"]}
    for image in coco.content["images"]:
        image["id"] = names[image["id"]]
    for a in coco.content["annotations"]:
        a["image_id"] = names[a["image_id"]]
    with caplog.at_level(logging.WARNING):
        assert [r["image_id"] for r in load_coco(coco.write()).records] == list(names.values())
    assert not caplog.records


def test_a_number_is_a_name_too(make_coco):
    coco = make_coco()
    coco.content["categories"][0]["name"] = 7
    assert "7" in load_coco(coco.write()).classes


STRANGE = (None, [1], {"$oid": "5f"}, True, math.nan, math.inf, -math.inf, "", 10**400)


@pytest.mark.parametrize(
    ("kind", "field", "expected"),
    [
        ("images", "id", "a whole number or a text"),
        ("images", "file_name", "the name of a file"),
        ("images", "height", "number"),
        ("images", "width", "number"),
        ("categories", "id", "a whole number"),
        ("categories", "name", "a name"),
        ("annotations", "id", "a whole number or a text"),
        ("annotations", "image_id", "a whole number or a text"),
        ("annotations", "category_id", "a whole number"),
    ],
)
def test_what_can_be_nothing_is_named(make_coco, kind, field, expected):
    for value in STRANGE:
        if value is None and field in ("height", "width"):
            continue  # read from the file
        coco = make_coco(name="odd")
        coco.content[kind][1][field] = value
        path = coco.folder / "set.json"
        path.write_text(json.dumps(coco.content))
        with pytest.raises(DataError, match=rf"{kind}\[1\].*{field} is .*; expected .*{expected}") as error:
            load_coco(path)
        assert str(error.value).startswith(f"{path}: ")
        assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"images": [{"id": ' + "9" * 5000 + "}]}", "not a json file"),
    ],
)
def test_texts_that_no_parser_likes(tmp_path, text, message):
    (tmp_path / "set.json").write_text(text)
    with pytest.raises(DataError, match=rf"set\.json: .*{message}"):
        load_coco(tmp_path / "set.json")


def test_names_that_no_file_can_have_and_sides_that_no_image_has(make_coco):
    for change, message in (
        ({"file_name": "a\0b.jpg"}, "expected the name of a file"),
        ({"file_name": "\ud800.jpg"}, "expected the name of a file"),
        ({"height": 10**9}, "height is 1000000000; expected a number of pixels, 1 to 100000"),
    ):
        coco = make_coco(name="odd")
        coco.content["images"][1].update(change)
        with pytest.raises(DataError, match=rf"images\[1\].*{message}"):
            load_coco(coco.write())


def test_a_folder_is_no_json(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        load_coco(tmp_path)


@pytest.mark.parametrize(
    "box",
    [
        *([1, 2, math.nan, 4], [1, 2, math.inf, 4], [1, 2, 10**400, 4], [1, 2, 10**9, 4], [1e308, 1e308, 1e308, 1e308]),
        *([1, 2, 3], [], None, "x", {"x": 1}, [1, 2, "three", 4], [[1], 2, 3, 4], [1, 2, None, 4], 7),
    ],
)
def test_one_box_that_is_none_is_dropped_and_counted(make_coco, caplog, box) -> None:
    coco = make_coco()
    coco.content["annotations"][1]["bbox"] = box
    with caplog.at_level(logging.WARNING):
        found = load_coco(coco.write()).records
    assert [len(record["annotations"]) for record in found] == [1, 0, 1]
    (message,) = {record.getMessage() for record in caplog.records}
    assert "set.json: dropped 1 boxes that are not [x, y, width, height] in pixels (annotation 1: bbox " in message
    assert len(message) < 300
    for annotation in coco.content["annotations"]:
        annotation["bbox"] = box
    with pytest.raises(DataError, match=r"no usable box .*\(dropped 3 boxes that are not .*annotation 0: bbox "):
        load_coco(coco.write())


def test_sizes_are_read_from_the_files_where_the_json_has_none(make_coco, caplog) -> None:
    coco = make_coco([(40, 60), (60, 40), (50, 30), (20, 90)])
    images = coco.content["images"]
    del images[0]["height"]
    images[1].update(height=None, width=None)
    images[2]["width"] = 0
    with caplog.at_level(logging.WARNING):
        found = load_coco(coco.write()).records
    assert [(r["height"], r["width"]) for r in found] == [(40, 60), (60, 40), (50, 30), (20, 90)]
    (message,) = {record.getMessage() for record in caplog.records}
    assert message.endswith("set.json: 3 images without a size; theirs were read from the files")
    (coco.folder / "1.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"1\.jpg: not a readable image"):
        load_coco(coco.write())


def test_a_pipe_is_not_opened(make_coco) -> None:
    path = make_coco().folder / "pipe.json"
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"pipe\.json: cannot be read: it is a pipe or a device"):
        load_coco(path)
