"""Hostile Pascal VOC files: every element with every strange content ends in one clear error or is read, and the check
says the same as training.

`SED_FUZZ=all` (`make fuzz`) runs all of them, else a seeded fifth runs.
"""

from __future__ import annotations

import logging
import math
import os
import random
import re
import time
from dataclasses import replace

import pytest

from sed.checks.check import check_data
from sed.checks.findings import ERROR
from sed.data.catalog import load_dataset
from sed.data.errors import DataError
from tests.reference.small_data import SETUP
from tests.reference.voc import Object, make_folder, write_split

TEXTS = (
    *(
        "",
        " ",
        "7",
        " 7 ",
        "7.0",
        "7.5",
        "-1",
        "0",
        "1e3",
        "1e9",
        "1e400",
        "nan",
        "inf",
        "0x10",
        "1_0",
        "seven",
        "true",
    ),
    *("9" * 5000, "\u0667", "\u00fc", "&amp;", "&#0;", "&x;", "<a>7</a>", "<!-- -->7", "<![CDATA[7]]>", "../x", "cat"),
)
WAYS = ("gone", "twice", "nested", "attribute")
ELEMENTS = ("width", "height", "size", "object", "name", "difficult", "bndbox", "xmin", "ymin", "xmax", "ymax")
CASES = [(element, way) for element in ELEMENTS for way in (*range(len(TEXTS)), *WAYS)]
GOOD = (
    '<?xml version="1.0"?><annotation><filename>b.jpg</filename>'
    "<size><width>64</width><height>48</height><depth>3</depth></size>"
    "<object><name>cat</name><difficult>0</difficult>"
    "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"
)
WHOLE = {
    "empty": b"",
    "zeros": bytes(1000),
    "half": GOOD[: len(GOOD) // 2].encode(),
    "twice": GOOD.encode() * 2,
    "picture": b"\xff\xd8\xff\xe0" + bytes(range(256)),
    "json": b'{"annotation": {}}',
    "html": b"<html><body>404</body></html>",
    "other root": GOOD.replace("annotation>", "annotations>").encode(),
    "deep": b"<annotation>" + b"<object>" * 100_000,
    "deep and closed": b"<annotation>" + b"<object>" * 50_000 + b"</object>" * 50_000 + b"</annotation>",
    "many objects": b"<annotation>" + b"<object><name>cat</name></object>" * 50_000 + b"</annotation>",
    "long text": GOOD.replace("b.jpg", "x" * 5_000_000).encode(),
    "lol": b'<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><annotation>&b;</annotation>',
    "external": b'<!DOCTYPE a [<!ENTITY a SYSTEM "file:///dev/zero">]><annotation>&a;</annotation>',
    "dtd": b'<!DOCTYPE annotation SYSTEM "http://localhost:1/a.dtd">' + GOOD.partition("?>")[2].encode(),
    "latin-1, not declared": GOOD.replace("b.jpg", "\u00fc.jpg").encode("latin-1"),
    "declared falsely": GOOD.replace('"1.0"', '"1.0" encoding="ascii"').replace("b.jpg", "\u00fc.jpg").encode(),
    "unknown encoding": GOOD.replace('"1.0"', '"1.0" encoding="x-y"').encode(),
    "version 9": GOOD.replace('"1.0"', '"9.0"').encode(),
    "utf-16, cut": GOOD.encode("utf-16")[:-1],
    "utf-32": GOOD.encode("utf-32"),
}
LISTS = (
    b"",
    b"\n\n",
    b"a b\n",
    b"a\na\n",
    b"../a\n",
    b"a\0\n",
    b"\xff\xfea\0",
    b"x" * 100_000,
    b"c\n",
    "\u00fc\n".encode(),
)
if os.environ.get("SED_FUZZ") != "all":
    chosen = random.Random(0)
    CASES = sorted(chosen.sample(CASES, len(CASES) // 5), key=str)
    WHOLE = {key: WHOLE[key] for key in sorted(chosen.sample(sorted(WHOLE), len(WHOLE) // 3))}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    folder = make_folder(tmp_path, 2007)
    write_split(folder, "trainval", {"a": [Object("cat", (1, 1, 64, 48))], "b": []}, (48, 64))
    return folder


def look(caplog):
    """What reading says, an error's message or ""; the check must find the same."""
    begun = time.monotonic()
    caplog.clear()
    try:
        records, told = load_dataset("voc_2007_trainval").records, ""
    except DataError as error:
        records, told = [], str(error)
    warned = [row.getMessage() for row in caplog.records if row.levelno >= logging.WARNING]
    names = {"labelled": ["voc_2007_trainval"], "test": [], "unlabelled": []}
    found = check_data(names, replace(SETUP, num_classes=20, method="supervised")).found
    errors = [f for f in found.kept if f.kind.severity == ERROR and f.code != "image-size"]  # training: at the image
    assert bool(told) == bool(errors), "the check and training disagree"
    assert {f.text for f in found.kept if f.code == "told"} >= set(warned)
    assert all("\n" not in line and len(line) < 900 for line in (told, *warned))
    for record in records:
        assert 1 <= record["height"] <= 100_000
        assert 1 <= record["width"] <= 100_000
        for a in record["annotations"]:
            assert all(math.isfinite(v) for v in a["bbox"])
            assert min(a["bbox"][2:]) > 0
            assert a["difficult"] in (0, 1)
    assert time.monotonic() - begun < 20
    return told, warned


def strange(element, way):
    found = re.search(f"<{element}>.*?</{element}>", GOOD)[0]
    inner = found.removeprefix(f"<{element}>").removesuffix(f"</{element}>")
    changed = {
        "gone": "",
        "twice": found * 2,
        "nested": f"<{element}>{found}</{element}>",
        "attribute": f'<{element} value="{inner if "<" not in inner else 1}"/>',
    }
    text = changed[way] if isinstance(way, str) else f"<{element}>{TEXTS[way]}</{element}>"
    return GOOD.replace(found, text)


@pytest.mark.parametrize(("element", "way"), CASES)
def test_a_strange_element(folder, caplog, element, way):
    path = folder / "Annotations/b.xml"
    path.write_text(strange(element, way), "utf-8")
    told, warned = look(caplog)
    if told:
        assert told.startswith(f"{path}: ")
        assert re.search(r"object 1 \(|its <size> has <|not an XML file", told), "no item is named"
    else:
        assert all("b.xml" in line for line in warned)


@pytest.mark.parametrize("key", WHOLE)
def test_a_strange_file(folder, caplog, key):
    path = folder / "Annotations/b.xml"
    path.write_bytes(WHOLE[key])
    told, warned = look(caplog)
    assert told.startswith(f"{path}: ") or (not told and key in ("long text", "dtd", "many objects", "version 9")), told
    assert all("b.xml" in line for line in warned)


@pytest.mark.parametrize("text", LISTS, ids=range(len(LISTS)))
def test_a_strange_list(folder, caplog, text):
    path = folder / "ImageSets/Main/trainval.txt"
    path.write_bytes(text)
    told, _ = look(caplog)
    assert told.startswith(f"{path}: ")


@pytest.mark.parametrize("where", ["Annotations/b.xml", "ImageSets/Main/trainval.txt"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "nothing", "link to itself", "link to nothing"])
def test_what_is_no_file(folder, caplog, where, kind):
    path = folder / where
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "nothing":
        path.symlink_to(path if kind == "link to itself" else folder / "nowhere")
    told, _ = look(caplog)
    assert told.startswith(f"{path}: ")
