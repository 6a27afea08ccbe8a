"""Hard pseudo-labels: the teacher's sure detections as ground truth.

What the rival method (`sed.methods.pseudo_label`) is made of, and the objects that SED's targets may go by.

Shape shorthand: see `sed.core.structures`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sed.core.boxes import scale_boxes
from sed.core.objects import object_targets
from sed.core.structures import Detections, Images, RegionPrediction, Targets
from sed.core.targets import CERTAIN
from sed.detectors.base import Detector, Features
from sed.methods.base import full_precision

Labels = tuple[Targets, ...]
_ALL = 1_000_000  # proposals: as many as there are


class Found(NamedTuple):
    """The teacher's sure detections in N images; features and N tensors [P_i, 4] of proposals with a region head."""

    objects: Labels
    features: Features | None
    proposals: list[Tensor]


@torch.no_grad()
def predict_pseudo_labels(teacher: Detector, images: Images, threshold: float) -> Found:
    """What the teacher detects and is sure of.

    Args:
        teacher: in eval mode.
        images: the weak view.
        threshold: least score, in [0, 1].
    """
    with full_precision(images.tensor):
        if "region" not in teacher.heads:
            return Found(confident_targets(teacher.detect(images), threshold), None, [])
        features = teacher.encode(images.pad_to_multiple(teacher.size_divisibility))
        proposals = teacher.propose(features, teacher.dense(features), _ALL)
        return Found(confident_targets(teacher.detect_from(features, proposals), threshold), features, proposals)


@torch.no_grad()
def region_targets(
    teacher: Detector, found: Found, boxes: Sequence[Tensor], sharpen: Callable[[Tensor], Tensor]
) -> RegionPrediction:
    """What the teacher tells regions by the objects that it has found.

    Args:
        teacher: as for `predict_pseudo_labels`.
        found: by it.
        boxes: the regions [P_i, 4] of each image, of which the last are its objects; the frame of the weak view.
        sharpen: of class logits.
    """
    features = found.features
    assert features is not None
    with full_precision(features.images.tensor):
        answer = teacher.regions(features, boxes)
    told = []
    split = zip(boxes, answer.logits.split(answer.counts), answer.deltas.split(answer.counts), strict=True)
    for (regions, logits, deltas), t in zip(split, found.objects, strict=True):
        own = RegionPrediction(sharpen(logits), deltas, (len(regions),))
        classes = logits[len(regions) - len(t.boxes) :].clone()
        classes[:, -1] = -CERTAIN  # there is an object: of which class?
        told.append(object_targets(regions, own, t.boxes, sharpen(classes), teacher.box_coder_weights["region"]))
    logits, deltas = (torch.cat([getattr(t, name) for t in told]) for name in ("logits", "deltas"))
    return RegionPrediction(logits, deltas, answer.counts)


def confident_targets(found: Sequence[Detections], threshold: float) -> Labels:
    """The detections with at least the threshold's score (in [0, 1]) and an extent: one Targets an image, often empty.

    Boxes are float32, whatever autocast made of them: half precision rounds them by pixels.
    """
    labels = []
    for row in found:
        boxes = row.boxes.float()
        sure = (row.scores >= threshold) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        labels.append(Targets(boxes[sure], row.classes[sure]))
    return tuple(labels)


def downscale_targets(labels: Sequence[Targets], s: int = 1) -> Labels:
    """The labels of the same images at 1/2^s of their size."""
    return tuple(Targets(scale_boxes(t.boxes, 1 / 2**s), t.classes) for t in labels)
