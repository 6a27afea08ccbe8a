"""Region targets of sed_plus: by hand, against a literal form, and at the limits."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder

from sed.core.boxes import UNIT_WEIGHTS, encode_boxes
from sed.core.structures import RegionPrediction
from sed.methods.sed_plus import correct_by_objects
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
    told = correct_by_objects(regions, prediction(answers.log()), objects, classes.log(), UNIT_WEIGHTS)
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
    found = correct_by_objects(regions, own, objects, classes, CODER)
    probabilities, deltas = literal(regions, own, objects, classes)
    torch.testing.assert_close(found.logits.softmax(-1), probabilities)
    torch.testing.assert_close(found.deltas, deltas)
    if count:
        assert len({(row[-1] == 1, row[-1] == 0) for row in probabilities.tolist()}) == 3  # all three cases occurred


def test_the_limits():
    own, regions = prediction(torch.randn(4, 3, requires_grad=True)), torch.tensor([[0.0, 0, 4, 4]]).expand(4, 4)
    nobody = torch.zeros(0, 4)
    assert (
        correct_by_objects(regions, own, nobody, torch.zeros(0, 3), UNIT_WEIGHTS) is own
    )  # no object: the teacher's own answers
    none = correct_by_objects(nobody, prediction(torch.zeros(0, 3)), regions, own.logits, UNIT_WEIGHTS)
    assert (none.logits.shape, none.deltas.shape) == ((0, 3), (0, 1, 4))
    told = correct_by_objects(regions, own, regions, own.logits, UNIT_WEIGHTS)
    assert not told.logits.requires_grad
    assert not told.deltas.any()
    answers = torch.tensor([[5.0, 0, 0], [0, 5.0, 0]])  # two objects in one place: a region goes by the first one
    assert correct_by_objects(regions, own, regions[:2], answers, UNIT_WEIGHTS).logits.argmax(-1).tolist() == [0] * 4
    small = regions * torch.tensor([1.0, 1, 1, 0.25])  # too little of them: certain in float16, too
    half = correct_by_objects(small, prediction(own.logits.half()), regions, own.logits.half(), UNIT_WEIGHTS).logits
    assert (half.softmax(-1)[:, -1] == 1).all()


def test_order_of_regions_and_objects_changes_nothing():
    objects, regions = random_boxes(5, 3), random_boxes(15, 4)
    own, classes = prediction(torch.randn(15, 4), torch.randn(15, 3, 4)), torch.randn(5, 4)
    turn, order = torch.randperm(15), torch.randperm(5)
    told = correct_by_objects(regions, own, objects, classes, CODER)
    turned = prediction(own.logits[turn], own.deltas[turn])
    again = correct_by_objects(regions[turn], turned, objects[order], classes[order], CODER)
    torch.testing.assert_close(again.logits, told.logits[turn])
    torch.testing.assert_close(again.deltas, told.deltas[turn])


def test_deltas_are_the_frameworks_own():
    a, b = random_boxes(9, 5), random_boxes(9, 6)
    torch.testing.assert_close(encode_boxes(a, b, CODER), BoxCoder(CODER).encode_single(b, a))
