"""Region targets of sed_plus: by hand, against a literal form, and at the limits."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder

from sed.core.boxes import UNIT_WEIGHTS, encode_boxes
from sed.core.structures import RegionPrediction
from sed.methods.sed_plus import correct_by_pseudo_labels
from tests.reference import equations

CODER = (10.0, 10.0, 5.0, 5.0)


def prediction(logits, deltas=None):
    return RegionPrediction(logits, torch.zeros(len(logits), 1, 4) if deltas is None else deltas, (len(logits),))


def random_boxes(count, seed):
    torch.manual_seed(seed)
    corner = 40 * torch.rand(count, 2, dtype=torch.float64)
    return torch.cat([corner, corner + 5 + 25 * torch.rand(count, 2, dtype=torch.float64)], 1)


def literal(regions, own, objects, classes):
    """(class probabilities, deltas) of the targets, one region after the other."""
    probabilities, boxes = [], []
    for r in range(len(regions)):
        overlaps = [equations.iou(regions[r].tolist(), o.tolist()) for o in objects]
        best = max(range(len(overlaps)), key=lambda i: overlaps[i]) if overlaps else None
        deltas = own.deltas[r].tolist()
        if best is None or overlaps[best] < 0.1:
            probabilities.append(own.logits[r].softmax(-1).tolist())
        elif overlaps[best] < 0.5:
            probabilities.append([0.0] * (own.logits.shape[1] - 1) + [1.0])
        else:
            probabilities.append(classes[best].softmax(-1).tolist())
            a, b = regions[r].tolist(), objects[best].tolist()
            w, h = a[2] - a[0], a[3] - a[1]
            shift = [((b[i] + b[i + 2]) - (a[i] + a[i + 2])) / 2 / (w, h)[i] * CODER[i] for i in range(2)]
            size = [math.log((b[i + 2] - b[i]) / (w, h)[i]) * CODER[i + 2] for i in range(2)]
            deltas = [[*shift, *size]] * len(deltas)
        boxes.append(deltas)
    return torch.tensor(probabilities, dtype=torch.float64), torch.tensor(boxes, dtype=torch.float64)


def test_by_hand():
    objects = torch.tensor([[0.0, 0, 10, 10]])
    heights = (10.0, 5.0, 4.9, 1.0, 0.9)  # IoU 1, .5, .49, .1, .09
    regions = torch.tensor([*([0.0, 0, 10, h] for h in heights), [50, 50, 60, 60]])
    predicted = torch.tensor([[0.1, 0.2, 0.7]]).repeat(6, 1)
    classes = torch.tensor([[0.25, 0.75, 0.0]])
    targets = correct_by_pseudo_labels(regions, prediction(predicted.log()), objects, classes.log(), UNIT_WEIGHTS)
    on, near, far = [0.25, 0.75, 0.0], [0.0, 0.0, 1.0], [0.1, 0.2, 0.7]
    torch.testing.assert_close(targets.logits.softmax(-1), torch.tensor([on, on, near, near, far, far]))
    twice = [
        0.0,
        0.5,
        0.0,
        math.log(2),
    ]  # half of the pseudo-label: its centre is half a height below, it is twice as high
    expected = torch.zeros(6, 4)
    expected[1] = torch.tensor(twice)
    torch.testing.assert_close(targets.deltas[:, 0], expected)


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("columns", [1, 3])
def test_it_equals_the_literal_form(count, columns):
    objects = random_boxes(count, 1)
    regions, classes = torch.cat([random_boxes(50, 2), objects + 1]), torch.randn(count, 4).double()
    classes[:, -1] = -1e4
    own = prediction(2 * torch.randn(len(regions), 4).double(), torch.randn(len(regions), columns, 4).double())
    found = correct_by_pseudo_labels(regions, own, objects, classes, CODER)
    probabilities, deltas = literal(regions, own, objects, classes)
    torch.testing.assert_close(found.logits.softmax(-1), probabilities)
    torch.testing.assert_close(found.deltas, deltas)
    if count:
        assert len({(row[-1] == 1, row[-1] == 0) for row in probabilities.tolist()}) == 3  # all three cases occurred


def test_limit_cases():
    own, regions = prediction(torch.randn(4, 3, requires_grad=True)), torch.tensor([[0.0, 0, 4, 4]]).expand(4, 4)
    no_box = torch.zeros(0, 4)
    assert (
        correct_by_pseudo_labels(regions, own, no_box, torch.zeros(0, 3), UNIT_WEIGHTS) is own
    )  # no pseudo-label: the teacher's own predictions
    none = correct_by_pseudo_labels(no_box, prediction(torch.zeros(0, 3)), regions, own.logits, UNIT_WEIGHTS)
    assert (none.logits.shape, none.deltas.shape) == ((0, 3), (0, 1, 4))
    targets = correct_by_pseudo_labels(regions, own, regions, own.logits, UNIT_WEIGHTS)
    assert not targets.logits.requires_grad
    assert not targets.deltas.any()
    logits = torch.tensor([[5.0, 0, 0], [0, 5.0, 0]])  # two pseudo-labels in one place: the first one decides
    assert (
        correct_by_pseudo_labels(regions, own, regions[:2], logits, UNIT_WEIGHTS).logits.argmax(-1).tolist() == [0] * 4
    )
    small = regions * torch.tensor([1.0, 1, 1, 0.25])  # IoU 0.25: background with probability 1, in float16 too
    half = correct_by_pseudo_labels(
        small, prediction(own.logits.half()), regions, own.logits.half(), UNIT_WEIGHTS
    ).logits
    assert (half.softmax(-1)[:, -1] == 1).all()


def test_order_of_regions_and_objects_changes_nothing():
    objects, regions = random_boxes(5, 3), random_boxes(15, 4)
    own, classes = prediction(torch.randn(15, 4), torch.randn(15, 3, 4)), torch.randn(5, 4)
    turn, order = torch.randperm(15), torch.randperm(5)
    targets = correct_by_pseudo_labels(regions, own, objects, classes, CODER)
    turned = prediction(own.logits[turn], own.deltas[turn])
    again = correct_by_pseudo_labels(regions[turn], turned, objects[order], classes[order], CODER)
    torch.testing.assert_close(again.logits, targets.logits[turn])
    torch.testing.assert_close(again.deltas, targets.deltas[turn])


def test_deltas_equal_torchvision_s_box_coder():
    a, b = random_boxes(9, 5), random_boxes(9, 6)
    torch.testing.assert_close(encode_boxes(a, b, CODER), BoxCoder(CODER).encode_single(b, a))
