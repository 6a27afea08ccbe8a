import math

import pytest
import torch

from sed.core.structures import DensePrediction, Images
from sed.core.views import downscale, draw_scale, pair_levels, valid_anchors
from tests.reference.predictions import dense_level


def pyramid(seed, levels, side, **kwargs):
    return DensePrediction(tuple(dense_level(seed + f, f, (side // 2**f, side // 2**f), **kwargs) for f in levels))


@pytest.mark.parametrize("s", [1, 2])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_downscale_is_the_mean_of_blocks(s, dtype):
    images = Images(torch.randint(0, 256, (2, 3, 8, 16)).to(dtype), ((8, 16), (5, 9)))
    small = downscale(images, s)
    block = 2**s
    assert small.tensor.dtype == torch.float32
    assert small.sizes == ((8 // block, 16 // block), (math.ceil(5 / block), math.ceil(9 / block)))
    for row in range(8 // block):
        for column in range(16 // block):
            part = images.tensor[1, 2, row * block : (row + 1) * block, column * block : (column + 1) * block].tolist()
            expected = sum(map(sum, part)) / block**2
            assert float(small.tensor[1, 2, row, column]) == pytest.approx(expected, rel=1e-6)


def test_downscale_refuses_sides_that_do_not_divide():
    with pytest.raises(ValueError, match=r"6 x 16.*pad_to_multiple"):
        downscale(Images(torch.zeros(1, 3, 6, 16), ((6, 16),)), 2)


@pytest.mark.parametrize(
    ("levels", "s", "expected"),
    [
        ((2, 3, 4, 5, 6), 1, [(3, 2), (4, 3), (5, 4), (6, 5)]),
        ((3, 4, 5, 6, 7), 1, [(4, 3), (5, 4), (6, 5), (7, 6)]),
        ((2, 3, 4, 5, 6), 2, [(4, 2), (5, 3), (6, 4)]),
        ((3, 4), 1, [(4, 3)]),
    ],
)
def test_pairs_are_those_of_method_2(levels, s, expected):
    full, small = pyramid(0, levels, 128, per_cell=1), pyramid(50, levels, 128 // 2**s, per_cell=1)
    pairs = pair_levels(full, small, s)
    assert [(one.level, other.level) for one, other in pairs] == expected
    assert all(one.grid == other.grid for one, other in pairs)
    assert all(any(one is level for level in full.levels) for one, _ in pairs)


def test_unequal_grids_and_missing_partners_are_refused():
    full = pyramid(0, (2, 3), 16)
    with pytest.raises(ValueError, match=r"level 3 of X has grid \(2, 2\).*\(4, 4\)"):
        pair_levels(full, pyramid(1, (2, 3), 16), 1)
    with pytest.raises(ValueError, match="MAX_SCALE"):
        pair_levels(full, pyramid(1, (2, 3), 4), 2)


@pytest.mark.parametrize("s", [1, 2])
def test_a_single_map_is_average_pooled(s):
    block, per_cell, classes = 2**s, 2, 3
    full = dense_level(0, 4, (4, 8), per_cell=per_cell, classes=classes, valid=False)
    small = dense_level(1, 4, (4 // block, 8 // block), per_cell=per_cell, classes=classes)
    [(pooled, partner)] = pair_levels(DensePrediction((full,)), DensePrediction((small,)), s)
    assert partner is small
    assert pooled.level == 4 + s
    assert pooled.grid == small.grid
    for row in range(4 // block):
        for column in range(8 // block):
            for a in range(per_cell):
                cells = [
                    ((row * block + i) * 8 + column * block + j) * per_cell + a
                    for i in range(block)
                    for j in range(block)
                ]
                mine = (row * (8 // block) + column) * per_cell + a
                for whole, part in ((full.logits, pooled.logits), (full.deltas, pooled.deltas)):
                    expected = torch.stack([whole[1, cell] for cell in cells]).mean(0)
                    torch.testing.assert_close(part[1, mine], expected)
                assert bool(pooled.valid[1, mine]) == all(bool(full.valid[1, cell]) for cell in cells)
    (grad,) = torch.autograd.grad(pooled.logits.sum(), full.logits)
    torch.testing.assert_close(grad, torch.full_like(grad, 1 / block**2))


def test_a_single_map_of_an_odd_grid_is_refused():
    odd, small = dense_level(0, 4, (3, 4)), dense_level(1, 4, (2, 2))
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        pair_levels(DensePrediction((odd,)), DensePrediction((small,)), 1)


def test_the_drawn_scale_is_stateless_and_uniform():
    assert {draw_scale(step, 1) for step in range(50)} == {1}
    draws = [draw_scale(step, 3, seed=5) for step in range(3000)]
    assert draws == [draw_scale(step, 3, seed=5) for step in range(3000)]
    assert draws != [draw_scale(step, 3, seed=6) for step in range(3000)]
    assert all(900 < draws.count(s) < 1100 for s in (1, 2, 3))
    assert draws[:8] == [draw_scale(step, 3, seed=5) for step in range(8)]
    with pytest.raises(ValueError, match="max_scale"):
        draw_scale(0, 0)


def test_valid_anchors_cell_by_cell():
    sizes, level, grid, per_cell = ((16, 32), (9, 17), (1, 1)), 3, (3, 5), 2
    mask = valid_anchors(sizes, level, grid, per_cell, "cpu")
    assert mask.shape == (3, 30)
    assert mask.dtype == torch.bool
    for n, (height, width) in enumerate(sizes):
        for row in range(grid[0]):
            for column in range(grid[1]):
                inside = row * 8 < height and column * 8 < width
                for a in range(per_cell):
                    assert bool(mask[n, (row * grid[1] + column) * per_cell + a]) == inside


@pytest.mark.parametrize("s", [1, 2, 3])
def test_paired_anchors_are_valid_together(s):
    sizes = tuple((h, w) for h, w in zip(range(1, 65), range(64, 0, -1), strict=True))
    small = tuple((math.ceil(h / 2**s), math.ceil(w / 2**s)) for h, w in sizes)
    for f in range(s, 6):
        grid = (64 // 2**f, 64 // 2**f)
        full_mask = valid_anchors(sizes, f, grid, 1, "cpu")
        assert torch.equal(full_mask, valid_anchors(small, f - s, grid, 1, "cpu"))
