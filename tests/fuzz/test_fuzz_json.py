"""Hostile COCO files: every field with every strange value ends in one clear error or is read, by training and check.

`SED_FUZZ=all` (`make fuzz`) runs all of them, else a seeded fifth runs.
"""

from __future__ import annotations

import copy
import json
import math
import os
import random
import re

import pytest

from sed.checks.check import check_data
from sed.checks.findings import ERROR
from sed.data.catalog import load_dataset
from sed.data.errors import DataError
from tests.reference.small_data import SETUP, Small

STRANGE = (
    *(None, True, "", "7", "seven", "\ud800", "a\0b", "../x", [], [1], [[1]], {"$oid": "5f"}),
    *(math.nan, math.inf, -math.inf, 10**400, 1e308, 10**9, -1, 0, 2.5),
)
FIELDS = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name", "supercategory"),
    "annotations": ("id", "image_id", "category_id", "bbox", "iscrowd", "area", "segmentation", "ignore"),
}
LACKING = len(STRANGE)  # one more case a field: it is not there at all
CASES = [(kind, field, i) for kind, fields in FIELDS.items() for field in fields for i in range(LACKING + 1)]
CASES += [("annotations", place, i) for place in range(4) for i in range(len(STRANGE))]  # in the box
if os.environ.get("SED_FUZZ") != "all":
    CASES = sorted(random.Random(0).sample(CASES, len(CASES) // 5), key=str)
WHOLE = ("{", "[]", "null", "7", '"a"', "[" * 100_000, '{"images": ' + "9" * 5000 + "}", "\x00", '{"images": {}}')


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Small(tmp_path_factory.mktemp("fuzz") / "set")


def look(small, text):
    """What reading says (an error's message or ""), and what the check finds, of a labelled json."""
    path = small.folder / "odd.json"
    path.write_text(text)
    names = small.write() | {"labelled": [str(path)]}
    try:
        load_dataset(str(path))
        told = ""
    except DataError as error:
        told = str(error)
    return told, check_data(names, SETUP).found


@pytest.mark.parametrize(("kind", "field", "which"), CASES)
def test_a_strange_value(small, kind, field, which):
    content = copy.deepcopy(small.train)
    item = content[kind][1]
    if which == LACKING:
        item.pop(field, None)
    elif isinstance(field, int):
        item["bbox"][field] = STRANGE[which]
    else:
        item[field] = STRANGE[which]
    told, found = look(small, json.dumps(content))
    errors = [f for f in found.kept if f.file.endswith("odd.json") and f.kind.severity == ERROR]
    assert bool(told) == bool(errors), "the check and training disagree"
    if told:
        assert "odd.json: " in told
        assert re.search(rf"{kind}\[1\]|image file|occurs twice|annotation \S+ \(image id", told), "no item is named"
        assert len(told) < 900
        assert "\n" not in told
    else:  # it was read: every box is one of the file, of a class and an image of it
        for record in load_dataset(str(small.folder / "odd.json")).records:
            for a in record["annotations"]:
                assert 0 <= a["category_id"] < 3
                assert all(math.isfinite(v) for v in a["bbox"])
                assert 0 < a["area"] < math.inf
                assert a["iscrowd"] in (0, 1)
            assert 0 < record["height"] <= 100_000
            assert 0 < record["width"] <= 100_000


@pytest.mark.parametrize("text", WHOLE, ids=range(len(WHOLE)))
def test_a_strange_file(small, text):
    told, found = look(small, text)
    assert "odd.json: " in told
    assert any(finding.file.endswith("odd.json") for finding in found.kept)
