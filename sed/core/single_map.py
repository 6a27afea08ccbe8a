"""Which anchors of a detector with one single feature map (C4) are the same in X and in X^ (docs/method.md 2) [O].

X's map is average-pooled by 2^s to X^'s grid, and the anchor of size k on X is paired with the anchor of size k / 2^s
and the same ratio on X^: then both cover the same part of the scene, as f' = f - s does for a pyramid.

Shape shorthand: see `sed.core.structures`; a, anchors a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sed.core.structures import DenseLevel

ANCHOR_TOLERANCE = 0.01  # relative; configs round sizes to a tenth of a pixel


def pair_single_map(full: DenseLevel, small: DenseLevel, s: int) -> tuple[DenseLevel, DenseLevel]:
    """The paired anchors of X's map, pooled to X^'s grid, and those of X^'s map; the others take no part.

    Args:
        full: prediction on X.
        small: prediction on X^.
        s: >= 1.

    Raises:
        ValueError: where the anchors are unknown, none has a partner, or the grid of X does not divide by 2^s.
    """
    pairs = _pair_anchors(full, small, s)
    return _pool(_pick(full, [i for i, _ in pairs]), s), _pick(small, [j for _, j in pairs])


def _pair_anchors(full: DenseLevel, small: DenseLevel, s: int) -> list[tuple[int, int]]:
    """(i, j) of each anchor i of a cell of X and the anchor j, 2^s times smaller, of a cell of X^; by i."""
    for level in (full, small):
        per_cell = level.logits.shape[1] // (level.grid[0] * level.grid[1])
        if len(level.anchors) != per_cell:
            raise ValueError(
                f"pair_levels: a single map needs the sizes of its {per_cell} anchors a cell, got "
                f"{len(level.anchors)}; the detector's `dense` has to set DenseLevel.anchors"
            )
    pairs: list[tuple[int, int]] = []
    for i, sides in enumerate(full.anchors):
        wanted = [side / 2**s for side in sides]
        misfits = [
            (max(abs(side / want - 1) for side, want in zip(other, wanted, strict=True)), j)
            for j, other in enumerate(small.anchors)
            if j not in [taken for _, taken in pairs]
        ]
        misfit, j = min(misfits, default=(1.0, -1))
        if misfit <= ANCHOR_TOLERANCE:
            pairs.append((i, j))
    if not pairs:
        sizes = sorted({round((width * height) ** 0.5, 1) for width, height in full.anchors})
        raise ValueError(
            f"pair_levels: no anchor of a single map has a partner {2**s} times smaller (sizes {sizes}); set "
            f"MODEL.ANCHOR_GENERATOR.SIZES to sizes a factor 2 apart, or lower SED.MAX_SCALE"
        )
    return pairs


def _pick(level: DenseLevel, chosen: Sequence[int]) -> DenseLevel:
    """The level with the `chosen` anchors of every cell alone, in that order."""
    cells, per_cell = level.grid[0] * level.grid[1], len(level.anchors)

    def pick(values: Tensor) -> Tensor:  # [N, A, ...] -> [N, cells x chosen, ...]
        by_cell = values.reshape(len(values), cells, per_cell, *values.shape[2:]).unbind(2)  # no index on the device
        return torch.stack([by_cell[i] for i in chosen], 2).flatten(1, 2)

    anchors = tuple(level.anchors[i] for i in chosen)
    logits, deltas, valid = pick(level.logits), pick(level.deltas), pick(level.valid)
    return replace(level, logits=logits, deltas=deltas, valid=valid, anchors=anchors)


def _pool(full: DenseLevel, s: int) -> DenseLevel:
    """The map of X on a grid of 2^s x 2^s larger cells; an anchor counts if all it is made of do."""
    block = 2**s
    (rows, columns), images = full.grid, full.logits.shape[0]
    if rows % block or columns % block:
        raise ValueError(
            f"pair_levels: the grid {full.grid} of X does not divide by 2^s = {block}; pad X so that "
            f"its sides divide by stride x 2^s"
        )
    grid = (rows // block, columns // block)

    def mean(values: Tensor) -> Tensor:  # [N, A, C] -> [N, A / 4^s, C]
        maps = values.reshape(images, rows, columns, -1).permute(0, 3, 1, 2)  # [N, a C, rows, columns]
        pooled = F.avg_pool2d(maps, block).permute(0, 2, 3, 1)  # [N, rows / 2^s, columns / 2^s, a C]
        return pooled.reshape(images, -1, values.shape[-1])

    invalid = (~full.valid).reshape(images, grid[0], block, grid[1], block, -1)
    valid = ~invalid.any(4).any(2).reshape(images, -1)  # [N, A / 4^s]
    return DenseLevel(full.level + s, grid, mean(full.logits), mean(full.deltas), valid, full.anchors)
