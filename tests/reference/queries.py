"""docs/method.md 5, literally: loops over queries, classes and permutations, slow on purpose, float64.

Also random queries and a small query detector to try it on. Shape shorthand: see `sed.core.structures`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sed.core.structures import Detections, Images, LabeledBatch, QueryPrediction
from sed.detectors.base import Detector, Features
from tests.reference import equations

LiteralReweight = Callable[[Sequence[Tensor], Sequence[float]], Tensor]
CELLS = 4  # a side: 16 queries


def random_queries(
    seed: int,
    images: int = 2,
    count: int = 4,
    classes: int = 3,
    softmax: bool = True,
    dtype: torch.dtype = torch.float64,
) -> QueryPrediction:
    """Random logits, K + 1 of them with `softmax`, and boxes inside the image, with gradient."""
    source = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, count, classes + softmax, generator=source, dtype=torch.float64)
    size = 0.1 + 0.3 * torch.rand(images, count, 2, generator=source, dtype=torch.float64)
    centre = size / 2 + (1 - size) * torch.rand(images, count, 2, generator=source, dtype=torch.float64)
    boxes = torch.cat([centre, size], -1)
    return QueryPrediction(logits.to(dtype).requires_grad_(), boxes.to(dtype).requires_grad_(), softmax)


def reorder(view: QueryPrediction, order: Tensor) -> QueryPrediction:
    """Query i of the result is query order[n, i] of `view`; order [N, Q]."""
    index = order[..., None]
    logits = view.logits.gather(1, index.expand_as(view.logits))
    return replace(view, logits=logits, boxes=view.boxes.gather(1, index.expand_as(view.boxes)))


def orders(seed: int, images: int, count: int) -> Tensor:
    """A random permutation an image: [N, Q]."""
    source = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(count, generator=source) for _ in range(images)])


def nearly(view: QueryPrediction, seed: int, noise: float = 0.01) -> QueryPrediction:
    """`view` as another network would see it: a little different everywhere, without gradient."""
    source = torch.Generator().manual_seed(seed)
    logits, boxes = view.logits.detach(), view.boxes.detach()
    logits = logits + noise * torch.randn(logits.shape, generator=source, dtype=logits.dtype)
    boxes = boxes + noise / 10 * torch.randn(boxes.shape, generator=source, dtype=boxes.dtype)
    return replace(view, logits=logits, boxes=boxes)


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    """sum_c p_c log(p_c / q_c)."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def js(p: Sequence[float], q: Sequence[float]) -> float:
    """1/2 KL(p || m) + 1/2 KL(q || m), m = (p + q) / 2."""
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return kl(p, m) / 2 + kl(q, m) / 2


def divergence(one: Sequence[float], other: Sequence[float], softmax: bool) -> float:
    """JS of two rows of logits: of the vectors over all classes, or summed over the Bernoulli vectors of each."""
    if softmax:
        p, q = ([math.exp(x) / sum(map(math.exp, row)) for x in row] for row in (one, other))
        return js(p, q)
    p, q = ([1 / (1 + math.exp(-x)) for x in row] for row in (one, other))
    return sum(js([a, 1 - a], [b, 1 - b]) for a, b in zip(p, q, strict=True))


def corners(box: Sequence[float]) -> list[float]:
    """(x0, y0, x1, y1) of (cx, cy, w, h)."""
    cx, cy, w, h = box
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def match_cost(one: QueryPrediction, other: QueryPrediction, weight: float = 1.0) -> Tensor:
    """JS(p1_i, p2_j) + weight (1 - GIoU(b1_i, b2_j)): [N, Q, Q]."""
    cost = []
    for n in range(one.logits.shape[0]):
        rows = []
        for p1, b1 in zip(one.logits[n].tolist(), one.boxes[n].tolist(), strict=True):
            row = []
            for p2, b2 in zip(other.logits[n].tolist(), other.boxes[n].tolist(), strict=True):
                overlap = equations.giou(corners(b1), corners(b2))
                row.append(divergence(p1, p2, one.softmax) + weight * (1 - overlap))
            rows.append(row)
        cost.append(rows)
    return torch.tensor(cost, dtype=torch.float64)


def best_permutation(cost: Sequence[Sequence[float]]) -> list[int]:
    """The cheapest of all Q! assignments of columns to rows."""
    return list(
        min(
            itertools.permutations(range(len(cost))),
            key=lambda columns: sum(row[column] for row, column in zip(cost, columns, strict=True)),
        )
    )


def query_terms(
    target: QueryPrediction,
    student: QueryPrediction,
    partners: Sequence[Sequence[int]],
    reweight: LiteralReweight,
    symmetric: bool,
) -> tuple[Tensor, Tensor]:
    """(D re-weighted, box term) of Eq. 3, or of Eq. 2 where symmetric; matched pair by matched pair."""
    values, gaps, boxes = [], [], []
    for n, row in enumerate(partners):
        for i, j in enumerate(row):
            for one, other, sample in _samples(target.logits[n, i], student.logits[n, j], target.softmax):
                value, gap = sample(one, other)
                if symmetric:
                    value = value + sample(other, one)[0]
                values.append(value)
                gaps.append(gap)
            own = target.boxes[n, i] if symmetric else target.boxes[n, i].detach()
            boxes.append(sum((own[k] - student.boxes[n, j, k]) ** 2 for k in range(4)))
    return reweight(values, gaps), equations.plain_mean(boxes, gaps)


def _samples(one: Tensor, other: Tensor, softmax: bool) -> list[tuple[Tensor, Tensor, Callable]]:
    """The samples of D: a query of a softmax head is one, each class of a query of a sigmoid head is one."""
    if softmax:
        return [(one, other, equations.categorical_sample)]
    return [(a, b, equations.bernoulli_sample) for a, b in zip(one, other, strict=True)]


class StubDetr(Detector):
    """Scale-equivariant by construction: 16 queries, each reads the mean colour of its cell of a 4 x 4 grid.

    Means of whole numbers over 2^k pixels are exact in float32, so the predictions on X and X^ are bit-equal. The order
    of the queries depends on the size of the input, so that they must be matched.
    """

    heads = frozenset({"query"})
    size_divisibility = 16
    num_classes = 3

    def __init__(self, softmax: bool = True, equivariant: bool = True) -> None:
        super().__init__()
        self.softmax, self.equivariant = softmax, equivariant
        self.classes = nn.Linear(3, self.num_classes + softmax)
        self.places = nn.Linear(3, 4)

    def predict(self, images: Images) -> QueryPrediction:
        cells = F.adaptive_avg_pool2d(images.tensor.float(), CELLS).flatten(2).transpose(1, 2)  # [N, Q, 3]
        if not self.equivariant:
            cells = cells * images.padded_size[0] / 64
        cells = cells / 128 - 1
        order = torch.randperm(CELLS**2, generator=torch.Generator().manual_seed(images.padded_size[0]))
        logits = 4 * self.classes(cells)
        return QueryPrediction(logits[:, order], self.places(cells).sigmoid()[:, order], self.softmax)

    def encode(self, images: Images) -> Features:
        return Features({}, images)

    def queries(self, features: Features) -> QueryPrediction:
        return self.predict(features.images)

    def supervised_losses(self, batch: LabeledBatch) -> dict[str, Tensor]:
        found = self.predict(batch.images)
        return {"query_cls": found.logits.square().mean(), "query_box": found.boxes.square().mean()}

    def detect(self, images: Images) -> list[Detections]:
        raise AssertionError("no test here detects with the stub itself")

    def plain_state_dict(self) -> dict[str, Tensor]:
        return self.state_dict()
