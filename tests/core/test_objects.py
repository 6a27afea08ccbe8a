"""Targets by objects: by hand, against a literal form, and at the limits."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder

from sed.core.box_terms import UNIT, decode, encode
from sed.core.objects import neighbours, object_targets, refined_boxes
from sed.core.structures import RegionPrediction
from tests.reference import equations

CODER = (10.0, 10.0, 5.0, 5.0)


def prediction(logits, deltas=None):
    return RegionPrediction(logits, torch.zeros(len(logits), 1, 4) if deltas is None else deltas, (len(logits),))


def random_boxes(count, seed):
    torch.manual_seed(seed)
    corner = 40 * torch.rand(count, 2, dtype=torch.float64)
    return torch.cat([corner, corner + 5 + 25 * torch.rand(count, 2, dtype=torch.float64)], 1)


def literal(regions, own, objects, classes):
    """(probabilities, deltas) of one region after the other."""
    told, boxes = [], []
    for r in range(len(regions)):
        overlaps = [equations.iou(regions[r].tolist(), o.tolist()) for o in objects]
        best = max(range(len(overlaps)), key=lambda i: overlaps[i]) if overlaps else None
        deltas = own.deltas[r].tolist()
        if best is None or overlaps[best] < 0.1:
            told.append(own.logits[r].softmax(-1).tolist())
        elif overlaps[best] < 0.5:
            told.append([0.0] * (own.logits.shape[1] - 1) + [1.0])
        else:
            told.append(classes[best].softmax(-1).tolist())
            a, b = regions[r].tolist(), objects[best].tolist()
            w, h = a[2] - a[0], a[3] - a[1]
            shift = [((b[i] + b[i + 2]) - (a[i] + a[i + 2])) / 2 / (w, h)[i] * CODER[i] for i in range(2)]
            size = [math.log((b[i + 2] - b[i]) / (w, h)[i]) * CODER[i + 2] for i in range(2)]
            deltas = [[*shift, *size]] * len(deltas)
        boxes.append(deltas)
    return torch.tensor(told, dtype=torch.float64), torch.tensor(boxes, dtype=torch.float64)


def test_by_hand():
    objects = torch.tensor([[0.0, 0, 10, 10]])
    heights = (10.0, 5.0, 4.9, 1.0, 0.9)  # IoU 1, .5, .49, .1, .09
    regions = torch.tensor([*([0.0, 0, 10, h] for h in heights), [50, 50, 60, 60]])
    answers = torch.tensor([[0.1, 0.2, 0.7]]).repeat(6, 1)
    classes = torch.tensor([[0.25, 0.75, 0.0]])
    told = object_targets(regions, prediction(answers.log()), objects, classes.log(), UNIT)
    on, near, far = [0.25, 0.75, 0.0], [0.0, 0.0, 1.0], [0.1, 0.2, 0.7]
    torch.testing.assert_close(told.logits.softmax(-1), torch.tensor([on, on, near, near, far, far]))
    twice = [
        0.0,
        0.5,
        0.0,
        math.log(2),
    ]  # half of the object: down by half its own height, twice as high
    expected = torch.zeros(6, 4)
    expected[1] = torch.tensor(twice)
    torch.testing.assert_close(told.deltas[:, 0], expected)


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("columns", [1, 3])
def test_it_equals_the_literal_form(count, columns):
    objects = random_boxes(count, 1)
    regions, classes = torch.cat([random_boxes(50, 2), objects + 1]), torch.randn(count, 4).double()
    classes[:, -1] = -1e4
    own = prediction(2 * torch.randn(len(regions), 4).double(), torch.randn(len(regions), columns, 4).double())
    found = object_targets(regions, own, objects, classes, CODER)
    probabilities, deltas = literal(regions, own, objects, classes)
    torch.testing.assert_close(found.logits.softmax(-1), probabilities)
    torch.testing.assert_close(found.deltas, deltas)
    if count:
        assert len({(row[-1] == 1, row[-1] == 0) for row in probabilities.tolist()}) == 3  # all three cases occurred


def test_the_limits():
    own, regions = prediction(torch.randn(4, 3, requires_grad=True)), torch.tensor([[0.0, 0, 4, 4]]).expand(4, 4)
    nobody = torch.zeros(0, 4)
    assert object_targets(regions, own, nobody, torch.zeros(0, 3), UNIT) is own  # no object: the teacher's own answers
    none = object_targets(nobody, prediction(torch.zeros(0, 3)), regions, own.logits, UNIT)
    assert (none.logits.shape, none.deltas.shape) == ((0, 3), (0, 1, 4))
    told = object_targets(regions, own, regions, own.logits, UNIT)
    assert not told.logits.requires_grad
    assert not told.deltas.any()
    answers = torch.tensor([[5.0, 0, 0], [0, 5.0, 0]])  # two objects in one place: a region goes by the first one
    assert object_targets(regions, own, regions[:2], answers, UNIT).logits.argmax(-1).tolist() == [0] * 4
    small = regions * torch.tensor([1.0, 1, 1, 0.25])  # too little of them: certain in float16, too
    half = object_targets(small, prediction(own.logits.half()), regions, own.logits.half(), UNIT).logits
    assert (half.softmax(-1)[:, -1] == 1).all()


def test_order_of_regions_and_objects_changes_nothing():
    objects, regions = random_boxes(5, 3), random_boxes(15, 4)
    own, classes = prediction(torch.randn(15, 4), torch.randn(15, 3, 4)), torch.randn(5, 4)
    turn, order = torch.randperm(15), torch.randperm(5)
    told = object_targets(regions, own, objects, classes, CODER)
    turned = prediction(own.logits[turn], own.deltas[turn])
    again = object_targets(regions[turn], turned, objects[order], classes[order], CODER)
    torch.testing.assert_close(again.logits, told.logits[turn])
    torch.testing.assert_close(again.deltas, told.deltas[turn])


def test_deltas_are_the_frameworks_own():
    a, b = random_boxes(9, 5), random_boxes(9, 6)
    torch.testing.assert_close(encode(a, b, CODER), BoxCoder(CODER).encode_single(b, a))


# ---------------------------------------------------------------- boxes looked at again
def test_neighbours_by_hand():
    around = neighbours(torch.tensor([[10.0, 20, 20, 40], [0, 0, 2, 2]]))
    expected = [[10, 20, 20, 40], [11, 20, 21, 40], [9, 20, 19, 40], [10, 22, 20, 42], [10, 18, 20, 38]]
    expected += [[15 - 5.75, 30 - 11.5, 15 + 5.75, 30 + 11.5]]
    expected += [[15 - 5 / 1.15, 30 - 10 / 1.15, 15 + 5 / 1.15, 30 + 10 / 1.15]]
    torch.testing.assert_close(around[:, 0], torch.tensor(expected))
    torch.testing.assert_close(around[1, 1], torch.tensor([0.2, 0, 2.2, 2]))


def test_decoding_is_the_frameworks_own_and_the_inverse_of_encoding():
    a, b = random_boxes(9, 5), random_boxes(9, 6)
    deltas = encode(a, b, CODER)
    torch.testing.assert_close(decode(a, deltas, CODER), b)
    torch.testing.assert_close(decode(a, deltas, CODER), BoxCoder(CODER).decode_single(deltas, a))


def test_refined_boxes_equal_the_literal_form():
    boxes = random_boxes(6, 7)
    deltas = 2 * torch.randn(7, 6, 4).double()
    found = refined_boxes(boxes, deltas, CODER, (60, 50))
    around, rows = neighbours(boxes), []
    for g in range(6):
        corner = []
        for n in range(7):
            x0, y0, x1, y1 = around[n, g].tolist()
            dx, dy, dw, dh = (d / w for d, w in zip(deltas[n, g].tolist(), CODER, strict=True))
            cx, cy = (x0 + x1) / 2 + dx * (x1 - x0), (y0 + y1) / 2 + dy * (y1 - y0)
            w, h = (x1 - x0) * math.exp(dw), (y1 - y0) * math.exp(dh)
            corner.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
        mean = [sum(c[k] for c in corner) / 7 for k in range(4)]
        rows.append([min(max(v, 0), (50, 60)[k % 2]) for k, v in enumerate(mean)])
    torch.testing.assert_close(found, torch.tensor(rows, dtype=torch.float64))
    assert (found[:, 2] == 50).any()  # some were cut


def test_refined_boxes_at_the_limits():
    boxes, truth = random_boxes(5, 9), random_boxes(5, 10)
    sure = encode(neighbours(boxes), truth.expand(7, 5, 4), CODER).requires_grad_()
    found = refined_boxes(boxes, sure, CODER, (100, 100))
    torch.testing.assert_close(found, truth)  # all seven say the same: that is it
    assert not found.requires_grad
    assert refined_boxes(boxes[:0], sure[:, :0], CODER, (9, 9)).shape == (0, 4)
    outside = encode(neighbours(boxes), (truth + 200).expand(7, 5, 4), CODER)
    assert torch.equal(refined_boxes(boxes, outside, CODER, (100, 100)), boxes)  # nothing of it is in the image
    half = refined_boxes(boxes.float(), sure.half(), CODER, (100, 100))
    assert half.dtype == torch.float32
