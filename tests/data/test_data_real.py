"""The COCO reader and the loaders on real photographs (../shared/data)."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from sed.data.catalog import load_dataset
from sed.data.images import read_image
from sed.data.loaders import Stream, collate_labeled, collate_unlabeled
from sed.data.mapper import LABELED, UNLABELED, Mapper
from sed.data.records import check_disjoint, check_same_classes
from sed.data.splits import split

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CONTENT = {"bccd": (292, 72, 3, 3941, 945), "aquarium": (448, 190, 7, 3323, 1491)}

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs ../shared/data ({DATA} is not there)")


@needs_data
@pytest.mark.parametrize("name", CONTENT)
def test_sets_load_whole(name: str, caplog) -> None:
    train, val = (load_dataset(str(DATA / name / f"{part}.json")) for part in ("train", "val"))
    check_same_classes(train, val)
    boxes = [sum(len(r["annotations"]) for r in part.records) for part in (train, val)]
    assert (len(train), len(val), len(train.classes), *boxes) == CONTENT[name]
    assert caplog.records == []
    labeled, unlabeled = split(train.records, percent=10)
    assert len(labeled) == len(train) // 10
    check_disjoint(labeled, unlabeled, val.records)


@needs_data
@pytest.mark.parametrize("name", CONTENT)
def test_every_third_image_can_be_read(name: str) -> None:
    records = load_dataset(str(DATA / name / "val.json")).records[::3]
    sizes = Counter(read_image(record).shape for record in records)
    assert sum(sizes.values()) == len(records)


@needs_data
def test_streams_on_photographs() -> None:
    records = load_dataset(str(DATA / "aquarium" / "train.json")).records
    labeled, unlabeled = split(records, percent=10)
    mapper = Mapper((128, 160), 256)
    first = Stream(labeled, mapper.labeled, 4, 0, LABELED, partial(collate_labeled, multiple=32))
    second = Stream(unlabeled, mapper.unlabeled, 4, 0, UNLABELED, partial(collate_unlabeled, multiple=64))
    for _ in range(5):
        batch, views = next(first), next(second)
        orientation = {height > width for height, width in batch.images.sizes}
        assert len(orientation) == 1
        assert len(batch) == len(views) == 4
        assert all((target.boxes[:, 2:] > target.boxes[:, :2]).all() for target in batch.targets)
