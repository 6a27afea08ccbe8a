"""The box term of Eq. 2 and Eq. 3: how far two predictions of a box are apart.

The paper compares normalised deltas by their squared distance and does not say where [O]; METHOD 3 and 4 choose. The
other kinds are deviations [D] that docs/evidence.md weighs up. Deltas of one anchor or proposal are
(dx / w, dy / h, log w, log h) times the coder's weights.

Shape shorthand: see `sed.core.structures`; .. any leading dimensions, t the target's side, p the student's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sed.core.boxes import corners, giou
from sed.core.precision import at_least_float32

KINDS = ("l2", "l1", "giou")
Coder = tuple[float, float, float, float]  # weights of (dx, dy, log w, log h)
UNIT: Coder = (1.0, 1.0, 1.0, 1.0)  # of a coder that does not weigh its deltas: RPN, RetinaNet
_LARGEST = math.log(1000 / 16)  # of log w and log h, as both frameworks have it


@dataclass(frozen=True)
class BoxTerm:
    """The box term's form; the defaults are the paper's.

    Attributes:
        kind: "l2": |R_t - R_p|^2 in the detector's own deltas; "l1": the sum of their absolute differences, which
            detectors' own losses use; "giou": 1 - GIoU of the two boxes (in [0, 2]).
    """

    kind: str = "l2"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"box term: expected one of {', '.join(KINDS)}, got {self.kind!r}")

    def of_deltas(self, target: Tensor, student: Tensor, coder: Coder, symmetric: bool) -> Tensor:
        """Distances [..] of deltas [.., 4] from the same anchors or proposals.

        GIoU does not change when both boxes are moved and stretched together, so their common anchor is taken to be
        the unit square and need not be known.

        Args:
            target: gets a gradient only where `symmetric`.
            student: gets a gradient.
            coder: the weights in both deltas.
            symmetric: Eq. 2.
        """
        target = at_least_float32(target if symmetric else target.detach())
        student = at_least_float32(student)
        if self.kind != "giou":
            return self._of_numbers(target - student)
        return 1 - giou(_decode(target, coder), _decode(student, coder))

    def of_boxes(self, target: Tensor, student: Tensor, symmetric: bool) -> Tensor:
        """Distances [..] of boxes [.., 4] (cx, cy, w, h); L2 and L1 compare these numbers themselves."""
        target = at_least_float32(target if symmetric else target.detach())
        student = at_least_float32(student)
        if self.kind != "giou":
            return self._of_numbers(target - student)
        return 1 - giou(corners(target), corners(student))

    def _of_numbers(self, difference: Tensor) -> Tensor:
        return (difference.abs() if self.kind == "l1" else difference.square()).sum(-1)


PAPER = BoxTerm()


def encode(regions: Tensor, boxes: Tensor, coder: Coder) -> Tensor:
    """Deltas [.., 4] that make boxes [.., 4] of regions [.., 4], all (x0, y0, x1, y1) and none without an extent."""
    size, own = regions[..., 2:] - regions[..., :2], boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - regions[..., :2] - regions[..., 2:]) / 2 / size
    return torch.cat((shift, (own / size).log()), -1) * regions.new_tensor(coder)


def _decode(deltas: Tensor, coder: Coder) -> Tensor:
    """(x0, y0, x1, y1) of the boxes that deltas [.., 4] make of the unit square."""
    dx, dy, dw, dh = (part / weight for part, weight in zip(deltas.unbind(-1), coder, strict=True))
    size = torch.stack((dw, dh), -1).clamp(max=_LARGEST).exp()
    return corners(torch.cat((torch.stack((dx, dy), -1), size), -1))
