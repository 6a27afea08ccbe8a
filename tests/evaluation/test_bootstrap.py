"""The paired bootstrap: equal to pycocotools on every draw, and an interval that means what it says."""

from __future__ import annotations

import numpy as np
import pytest

from sed.data.records import Dataset
from sed.evaluation.bootstrap import LEAST_IMAGES, average_precision, compare, matches
from sed.evaluation.coco import score

CLASSES = ("cat", "dog", "none")


def world(seed, images=12, objects=4, finds=0.7, noise=3, classes=2, crowds=True):
    """Boxes of 20 pixels in a row, and detections: some of the boxes, moved, some wrong ones."""
    rng = np.random.default_rng(seed)
    records, found = [], []
    for i in range(images):
        annotations = []
        for j in range(rng.integers(0, objects + 1)):
            box, k = [30.0 * j, 10.0, 20.0, 20.0], int(rng.integers(classes))
            crowd = int(crowds and rng.random() < 0.1)
            annotations.append({"bbox": box, "category_id": k, "iscrowd": crowd, "area": 400.0})
            if rng.random() < finds:
                moved = [box[0] + rng.normal(0, 1.5), box[1], 20.0, 20.0]
                found.append({"image_id": i, "category": k, "bbox": moved, "score": float(rng.random() * 0.6 + 0.4)})
        for _ in range(rng.integers(0, noise)):
            wrong = [float(v) for v in (rng.random() * 100, 60, 20, 20)]
            found.append({"image_id": i, "category": int(rng.integers(classes)), "bbox": wrong, "score": rng.random()})
        records.append(
            {"image_id": i, "file_name": f"{i}.jpg", "height": 100, "width": 160, "annotations": annotations}
        )
    return Dataset("made", records, CLASSES, (1, 2, 3)), found


def repeated(dataset, found, counts):
    """The set in which image i is there counts[i] times."""
    records, rows = [], []
    for record, times in zip(dataset.records, counts, strict=True):
        for n in range(times):
            number = record["image_id"] * 100 + n
            records.append({**record, "image_id": number})
            rows += [{**r, "image_id": number} for r in found if r["image_id"] == record["image_id"]]
    return Dataset("drawn", records, CLASSES, (1, 2, 3)), rows


@pytest.mark.parametrize("seed", range(4))
def test_a_draw_is_what_pycocotools_says_of_the_repeated_images(seed):
    dataset, found = world(seed)
    counts = np.random.default_rng(seed).multinomial(12, [1 / 12] * 12, 3)
    draws = np.concatenate([np.ones((1, 12), int), counts])
    ours = average_precision(matches(found, dataset), draws)
    for row, draw in zip(ours, draws, strict=True):
        expected = score(*reversed(repeated(dataset, found, draw)))
        assert row[:2] == pytest.approx([expected["AP-cat"], expected["AP-dog"]], abs=1e-9, nan_ok=True)
        assert np.isnan(row[2])  # no object of it


def test_equal_detections_differ_by_nothing():
    dataset, found = world(0)
    rows = compare(found, list(found), dataset, draws=50)
    assert set(rows) == {"AP", "cat", "dog"}
    for name, row in rows.items():
        assert row.mean == 0.0
        k = dataset.classes.index(name) if name in dataset.classes else None
        rows_of = [[a for a in r["annotations"] if not a["iscrowd"]] for r in dataset.records]
        images = sum(any(k in (None, a["category_id"]) for a in there) for there in rows_of)
        assert (row[1:] == (0.0, 0.0)) if images >= LEAST_IMAGES else np.isnan(row[1:]).all()


def test_all_against_nothing():
    dataset, _ = world(1, crowds=False)
    truth = [
        {"image_id": r["image_id"], "category": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for r in dataset.records
        for a in r["annotations"]
    ]
    rows = compare([], truth, dataset, draws=20)
    assert rows["AP"] == pytest.approx((100.0, 100.0, 100.0))
    assert str(rows["cat"]) == "+100.0 [+100.0, +100.0]"
    assert compare([], [], dataset, draws=5)["AP"] == (0.0, 0.0, 0.0)


def test_crowds_are_no_errors():
    records = [
        {"image_id": 0, "height": 100, "width": 100, "file_name": "a", "annotations": [
            {"bbox": [0, 0, 20, 20], "category_id": 0, "iscrowd": 0, "area": 400.0},
            {"bbox": [50, 50, 40, 40], "category_id": 0, "iscrowd": 1, "area": 1600.0},
        ]}
    ]  # fmt: skip
    dataset = Dataset("one", records, CLASSES, (1, 2, 3))
    on_crowd = {"image_id": 0, "category": 0, "bbox": [55, 55, 10, 10], "score": 0.95}
    on_object = {"image_id": 0, "category": 0, "bbox": [0, 0, 20, 20], "score": 0.9}
    assert average_precision(matches([on_crowd, on_object], dataset), np.ones((1, 1), int))[0, 0] == pytest.approx(100)


def test_the_same_seed_gives_the_same_interval():
    dataset, found = world(2)
    _, other = world(3)
    assert compare(found, other, dataset, draws=30) == compare(found, other, dataset, draws=30)
    assert compare(found, other, dataset, draws=30) != compare(found, other, dataset, draws=30, seed=1)


@pytest.mark.slow
def test_the_interval_covers_a_known_difference():
    """95 %: of 100 samples of test images from one population, 90 to 99 hold the population's difference."""
    population, weak = world(10, images=6000, finds=0.5, classes=1, crowds=False)
    rng = np.random.default_rng(12)
    more = [
        {"image_id": r["image_id"], "category": 0, "bbox": a["bbox"], "score": float(rng.random() * 0.6 + 0.4)}
        for r in population.records
        for a in r["annotations"]
        if rng.random() < 0.15
    ]
    strong = weak + more
    known = score(strong, population)["AP"] - score(weak, population)["AP"]
    order, covered = rng.permutation(6000).reshape(100, 60), 0
    for chosen in order:
        inside = set(chosen.tolist())
        part = Dataset("part", [population.records[i] for i in chosen], CLASSES, (1, 2, 3))
        rows = [[row for row in side if row["image_id"] in inside] for side in (weak, strong)]
        one = compare(*rows, part, draws=200)["AP"]
        covered += one.low <= known <= one.high
    assert 90 <= covered <= 99
