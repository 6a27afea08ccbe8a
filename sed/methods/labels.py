"""Hard pseudo-labels: the teacher's sure detections as ground truth.

What the rival method (`sed.methods.pseudo_label`) is made of, and the objects that SED's targets may go by.

Shape shorthand: see `sed.core.structures`.
"""

from __future__ import annotations

from collections.abc import Sequence

from sed.core.boxes import scale_boxes
from sed.core.structures import Detections, Targets

Labels = tuple[Targets, ...]


def sure_labels(found: Sequence[Detections], threshold: float) -> Labels:
    """The detections with at least the threshold's score (in [0, 1]) and an extent: one Targets an image, often empty.

    Boxes are float32, whatever autocast made of them: half precision rounds them by pixels.
    """
    labels = []
    for row in found:
        boxes = row.boxes.float()
        sure = (row.scores >= threshold) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        labels.append(Targets(boxes[sure], row.classes[sure]))
    return tuple(labels)


def halved(labels: Sequence[Targets], s: int = 1) -> Labels:
    """The labels of the same images at 1/2^s of their size."""
    return tuple(Targets(scale_boxes(t.boxes, 1 / 2**s), t.classes) for t in labels)
