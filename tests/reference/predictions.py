"""Random predictions for tests of the core."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sed.core.structures import DenseLevel, RegionPrediction


def dense_level(
    seed: int,
    level: int = 3,
    grid: tuple[int, int] = (2, 3),
    images: int = 2,
    per_cell: int = 2,
    classes: int = 1,
    dtype: torch.dtype = torch.float64,
    valid: bool = True,
    anchors: Sequence[tuple[float, float]] = (),
) -> DenseLevel:
    """A level of random logits and deltas with gradient; a fifth of its anchors invalid unless `valid`."""
    source = torch.Generator().manual_seed(seed)
    count = grid[0] * grid[1] * per_cell
    logits = 2 * torch.randn(images, count, classes, generator=source, dtype=torch.float64)
    deltas = torch.randn(images, count, 4, generator=source, dtype=torch.float64)
    mask = torch.ones(images, count, dtype=torch.bool)
    if not valid:
        mask = torch.rand(images, count, generator=source) > 0.2
    logits, deltas = logits.to(dtype).requires_grad_(), deltas.to(dtype).requires_grad_()
    return DenseLevel(level, grid, logits, deltas, mask, tuple(anchors))


def level_pairs(classes: int = 1, valid: bool = False) -> list[tuple[DenseLevel, DenseLevel]]:
    """Two levels of both views."""
    return [
        (
            dense_level(10 * f, f, grid, classes=classes, valid=valid),
            dense_level(10 * f + 1, f - 1, grid, classes=classes, valid=valid),
        )
        for f, grid in ((3, (4, 3)), (4, (2, 2)))
    ]


def regions(seed: int, counts: Sequence[int] = (4, 0, 5), classes: int = 3, agnostic: bool = False) -> RegionPrediction:
    """Random regions with gradient, float64."""
    source = torch.Generator().manual_seed(seed)
    total, columns = sum(counts), 1 if agnostic else classes
    logits = 2 * torch.randn(total, classes + 1, generator=source, dtype=torch.float64)
    deltas = torch.randn(total, columns, 4, generator=source, dtype=torch.float64)
    return RegionPrediction(logits.requires_grad_(), deltas.requires_grad_(), tuple(counts))
