"""The ensemble over sizes: by hand, against the textbook, and at its limits."""

import pytest
import torch

from sed.data.mapper import ImageInfo
from sed.evaluation.coco import detect_all, score
from sed.evaluation.scales import ensemble, read_size, scaled_size
from tests.reference.cases import CASES
from tests.reference.detectors import make_images
from tests.reference.metrics import Scripted, make_dataset, make_loader

SIZES = ((64, 64), (50, 60), (70, 40), (64, 96))


def row(image, box, points, category=0):
    return {"image_id": image, "category": category, "bbox": list(box), "score": points}


# ------------------------------------------------------------------------------------------------ sizes
def test_the_long_side_changes_in_proportion():
    assert scaled_size(400, (800, 1333)) == (400, 666)
    assert scaled_size(1200, (800, 1333)) == (1200, 2000)
    assert scaled_size(64, (128, 128)) == (64, 64)
    assert scaled_size(64, (128, 100)) == (64, 64)  # a limit below the short side


def test_a_size_is_a_short_side_or_both_sides():
    usual = (800, 1333)
    assert [read_size(text, usual) for text in ("480x1333", "800X1333", "1200x1400")] == [
        (480, 1333),
        (800, 1333),
        (1200, 1400),
    ]
    assert [read_size(text, usual) for text in ("400", "800", "1200")] == [(400, 666), (800, 1333), (1200, 2000)]
    bad = {"0": "at least 1", "480x0": "at least 1", "480x400": "below the short side"}
    bad |= dict.fromkeys(("", "x", "480x", "1x2x3", "-4", "4.5", "wide"), "expected a short side")
    for text, message in bad.items():
        with pytest.raises(ValueError, match=message):
            read_size(text, usual)


# --------------------------------------------------------------------------------------------- ensemble
def test_overlapping_boxes_of_a_class_become_the_best_one():
    large = [row("a", (0, 0, 10, 10), 0.6), row("a", (50, 0, 10, 10), 0.3), row("b", (0, 0, 10, 10), 0.2)]
    small = [
        row("a", (0, 0, 10, 8), 0.9),  # IoU 0.8 with the first
        row("a", (50, 0, 10, 10), 0.5, category=1),  # another class
        row("a", (54, 0, 10, 10), 0.2),  # IoU 6 / 14
        row("b", (0, 0, 10, 20), 0.1),  # IoU 0.5, which is not above 0.5
    ]
    merged = ensemble([large, small], limit=100)
    assert merged == [small[0], small[1], large[1], small[2], large[2], small[3]]
    assert ensemble([large, small], limit=2) == [small[0], small[1], large[2], small[3]]
    assert ensemble([large, small], limit=100, iou=0.4) == [small[0], small[1], large[1], large[2]]


def literal_nms(rows, iou):
    """Greedy non-maximum suppression, as it is written in textbooks."""

    def overlap(one, other):
        (ax, ay, aw, ah), (bx, by, bw, bh) = one, other
        wide = max(0.0, min(ax + aw, bx + bw) - max(ax, bx))
        high = max(0.0, min(ay + ah, by + bh) - max(ay, by))
        return wide * high / (aw * ah + bw * bh - wide * high)

    kept = []
    for r in sorted(rows, key=lambda r: -r["score"]):
        rivals = [k for k in kept if (k["image_id"], k["category"]) == (r["image_id"], r["category"])]
        if all(overlap(k["bbox"], r["bbox"]) <= iou for k in rivals):
            kept.append(r)
    return kept


@pytest.mark.parametrize("count", [40, 3000])  # batched_nms has one way for few boxes and one for many
def test_it_equals_the_textbook(count):
    source = torch.Generator().manual_seed(count)
    side = 12 * (count / 40) ** 0.5  # equally crowded
    values = torch.rand(count, 6, generator=source, dtype=torch.float64).tolist()
    rows = [
        row(int(v[5] * 2), (v[0] * side, v[1] * side, 5 + v[2] * 20, 5 + v[3] * 20), v[4], category=i % 3)
        for i, v in enumerate(values)
    ]
    merged = ensemble([rows[::3], rows[1::3], rows[2::3]], limit=10**6)
    assert 10 < len(merged) < 0.95 * count
    expected = literal_nms(rows, 0.5)
    for image in (0, 1):
        kept = [r for r in merged if r["image_id"] == image]
        assert kept == [r for r in expected if r["image_id"] == image]


@pytest.mark.parametrize("name", ["small_rcnn", "resnet_retinanet"])
def test_of_one_size_it_is_that_size(name):
    detector = next(case for case in CASES if case.name == name).make()
    infos = [ImageInfo(i, (0.5, 0.5), (2 * h, 2 * w)) for i, (h, w) in enumerate(SIZES)]
    found = detect_all(detector, [(make_images(SIZES), infos)], "cpu")
    assert ensemble([found], limit=100) == found  # the detector's own NMS has left nothing to do
    found = [r for r in found if min(r["bbox"][2:]) > 0]  # those without area overlap with nothing, not even themselves
    assert len(found) > 20
    assert ensemble([found, found], limit=100) == found


def test_sizes_without_detections_change_nothing():
    found = [row("a", (0, 0, 10, 10), 0.6)]
    assert ensemble([[], found, []], limit=5) == found
    assert ensemble([[], []], limit=5) == []
    assert ensemble([], limit=5) == []


def test_what_each_size_misses_the_other_finds():
    truth = [[{"bbox": [10, 10, 40, 40], "category_id": 0}, {"bbox": [100, 40, 60, 50], "category_id": 0}]]
    dataset, scripts = make_dataset(truth), {1.0: [20.0, 20.0, 100.0, 100.0], 2.0: [400.0, 160.0, 640.0, 360.0]}
    runs = []
    for scale, box in scripts.items():  # each finds one of the two, in its own frame
        detector = Scripted([[([scale * v / 2 if scale == 1 else v / 2 for v in box], 0.9, 0)]])
        runs.append(detect_all(detector, make_loader(dataset, scale), "cpu"))
    assert [score(rows, dataset)["AP"] for rows in runs] == pytest.approx([100 * 51 / 101] * 2)
    assert score(ensemble(runs, limit=100), dataset)["AP"] == pytest.approx(100)
