"""Targets by objects: what a region is told where a teacher's sure detections say which objects there are [D].

Eq. 3 tells every region what the teacher says of that region. A hard pseudo-label tells it "object of class c" or
"background" and is wrong for good where the teacher took one class for another, or missed an object. In between: an
object's place is told as it is, its class as the teacher's whole distribution over classes, and where no object is
sure the teacher's own soft answer stays (docs/evidence.md weighs the three up).

Shape shorthand: see `sed.core.structures`; P regions and G objects of one image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sed.core.box_terms import Coder, encode
from sed.core.boxes import iou_matrix
from sed.core.structures import RegionPrediction
from sed.core.targets import CERTAIN

ON, NEAR = 0.5, 0.1  # IoU from which a region shows an object; from which it shows too little of one


@torch.no_grad()
def object_targets(
    regions: Tensor, own: RegionPrediction, objects: Tensor, classes: Tensor, coder: Coder
) -> RegionPrediction:
    """What the P regions of an image are told; no gradient.

    A region goes by the object of largest IoU with it, the first of equal ones.

        IoU >= 0.5         the object's class distribution and its box
        0.1 <= IoU < 0.5   background for certain: too little of an object to be a detection of it
        IoU < 0.1          the teacher's own answer: nobody is sure what is there

    Args:
        regions: boxes [P, 4].
        own: the teacher's answers to these regions.
        objects: boxes [G, 4] of what the teacher is sure of; G may be 0.
        classes: logits [G, K + 1] of what they are told to be; given that they are objects, so without background.
        coder: the weights in the deltas.
    """
    if not len(objects):
        return own
    overlap, which = iou_matrix(regions, objects).max(1)  # [P]
    on, near = overlap >= ON, overlap >= NEAR
    background = torch.full_like(own.logits, -CERTAIN)
    background[:, -1] = CERTAIN
    logits = torch.where(near[:, None], background, own.logits)
    logits = torch.where(on[:, None], classes[which], logits)
    deltas = encode(regions, objects[which], coder).to(own.deltas.dtype)  # [P, 4]
    return RegionPrediction(logits, torch.where(on[:, None, None], deltas[:, None], own.deltas), own.counts)
