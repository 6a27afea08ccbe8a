import math

import pytest
import torch

from sed.core.consistency import dense_consistency
from sed.core.reweighting import mean
from sed.core.structures import DenseLevel, DensePrediction, Images
from sed.core.views import downscale, draw_scale, draw_size, pair_levels, resize, valid_anchors
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
def test_the_pairs_of_the_paper_s_pyramids(levels, s, expected):
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


def square(*sizes):
    return tuple((float(size), float(size)) for size in sizes)


def single(level):
    return DensePrediction((level,))


# Two ratios, ratio by ratio as torchvision has them (wide, then tall), and size by size as Detectron2 has them
BY_RATIO = ((32.0, 16.0), (64.0, 32.0), (128.0, 64.0), (16.0, 32.0), (32.0, 64.0), (64.0, 128.0))
BY_SIZE = ((32.0, 16.0), (16.0, 32.0), (64.0, 32.0), (32.0, 64.0), (128.0, 64.0), (64.0, 128.0))


@pytest.mark.parametrize(
    ("anchors", "s", "expected"),
    [
        (square(32, 64, 128), 1, [(1, 0), (2, 1)]),  # 32 on X has no partner of 16, 128 on X^ none of 256
        (square(32, 64, 128), 2, [(2, 0)]),
        (square(128, 32, 64), 1, [(0, 2), (2, 1)]),  # in any order
        (square(16, 20, 32, 40), 1, [(2, 0), (3, 1)]),
        (square(40.3, 80.6, 161.3), 1, [(1, 0), (2, 1)]),  # rounded in the config: 161.3 / 2 is 80.65
        (square(32, 64.9), 1, None),  # 1.4 % off
        (square(32, 63.5), 1, [(1, 0)]),  # 0.8 % off
        (BY_RATIO, 1, [(1, 0), (2, 1), (4, 3), (5, 4)]),  # each with its own ratio
        (BY_SIZE, 1, [(2, 0), (3, 1), (4, 2), (5, 3)]),
        (square(32), 1, None),
        (square(32, 48), 1, None),
    ],
)
def test_an_anchor_s_partner_is_2_s_times_smaller(anchors, s, expected):
    block, per_cell = 2**s, len(anchors)
    full = dense_level(0, 4, (block, 2 * block), per_cell=per_cell, anchors=anchors)
    small = dense_level(1, 4, (1, 2), per_cell=per_cell, anchors=anchors)
    if expected is None:
        with pytest.raises(ValueError, match=r"times smaller \(sizes \[32.*MODEL\.ANCHOR_GENERATOR\.SIZES .* factor 2"):
            pair_levels(single(full), single(small), s)
        return
    [(one, other)] = pair_levels(single(full), single(small), s)
    assert one.anchors == tuple(anchors[i] for i, _ in expected)
    assert other.anchors == tuple(anchors[j] for _, j in expected)
    for mine, (i, j) in enumerate(expected):
        for column in range(2):
            a = column * len(expected) + mine
            assert torch.equal(other.logits[:, a], small.logits[:, column * per_cell + j])
            assert torch.equal(other.deltas[:, a], small.deltas[:, column * per_cell + j])
            cells = [(y * 2 * block + column * block + x) * per_cell + i for y in range(block) for x in range(block)]
            torch.testing.assert_close(one.logits[:, a], full.logits[:, cells].mean(1))


def test_a_single_map_of_unknown_anchors_is_refused():
    known = dense_level(0, 4, (2, 2), anchors=square(32, 64))
    for full, small in ((dense_level(1, 4, (2, 2)), known), (known, dense_level(1, 4, (1, 1)))):
        with pytest.raises(ValueError, match=r"its 2 anchors a cell, got 0; .*DenseLevel\.anchors"):
            pair_levels(single(full), single(small), 1)


@pytest.mark.parametrize("s", [1, 2])
def test_a_single_map_is_average_pooled(s):
    block, per_cell, classes = 2**s, 2, 3
    sizes = square(32, 32 * block)  # anchor 1 of X and anchor 0 of X^
    full = dense_level(0, 4, (4, 8), per_cell=per_cell, classes=classes, valid=False, anchors=sizes)
    grid = (4 // block, 8 // block)
    small = dense_level(1, 4, grid, per_cell=per_cell, classes=classes, valid=False, anchors=sizes)
    [(pooled, partner)] = pair_levels(single(full), single(small), s)
    assert pooled.level == 4 + s
    assert pooled.grid == partner.grid == grid
    assert pooled.logits.shape == partner.logits.shape == (2, grid[0] * grid[1], classes)
    for row in range(grid[0]):
        for column in range(grid[1]):
            cells = [
                ((row * block + i) * 8 + column * block + j) * per_cell + 1 for i in range(block) for j in range(block)
            ]
            mine = row * grid[1] + column
            for whole, part in ((full.logits, pooled.logits), (full.deltas, pooled.deltas)):
                expected = torch.stack([whole[1, cell] for cell in cells]).mean(0)
                torch.testing.assert_close(part[1, mine], expected)
            assert bool(pooled.valid[1, mine]) == all(bool(full.valid[1, cell]) for cell in cells)
            assert bool(partner.valid[1, mine]) == bool(small.valid[1, mine * per_cell])
    used = torch.tensor([0.0, 1.0]).repeat(32).view(1, 64, 1)  # of each cell of X the second anchor
    (grad,) = torch.autograd.grad(pooled.logits.sum(), full.logits)
    torch.testing.assert_close(grad, (used / block**2).expand_as(grad).double())
    (grad,) = torch.autograd.grad(partner.deltas.sum(), small.deltas)
    used = torch.tensor([1.0, 0.0]).repeat(grid[0] * grid[1]).view(1, -1, 1)
    torch.testing.assert_close(grad, used.expand_as(grad).double())


def fitting(sizes, level, canvas, place, height):
    """The map of a detector that fires, around `place`, exactly the anchor whose size is the object's."""
    stride = 2**level
    grid = (canvas // stride, canvas // stride)
    logits = torch.full((1, grid[0] * grid[1] * len(sizes), 1), -4.0, dtype=torch.float64)
    around = range(int((place - height / 2) // stride), int((place + height / 2) // stride))
    for row in around:
        for column in around:
            logits[0, (row * grid[1] + column) * len(sizes) + sizes.index(height), 0] = 4.0
    deltas = torch.zeros(1, logits.shape[1], 4, dtype=torch.float64)
    valid = torch.ones(1, logits.shape[1], dtype=torch.bool)
    return DenseLevel(level, grid, logits, deltas, valid, square(*sizes))


@pytest.mark.parametrize("height", [64, 128])
def test_the_anchor_that_fits_is_not_penalised_on_a_single_map(height):
    """docs/method.md 2: with k paired with k, being right at both sizes would be the largest loss there is."""
    sizes = [32, 64, 128]
    full, small = fitting(sizes, 4, 256, 128, height), fitting(sizes, 4, 128, 64, height // 2)
    own = dense_consistency(pair_levels(single(full), single(small), 1), mean(), True)
    assert float(own.cls) == pytest.approx(0, abs=1e-12)
    relabelled = DenseLevel(4, small.grid, small.logits, small.deltas, small.valid, square(16, 32, 64))
    equal = dense_consistency(pair_levels(single(full), single(relabelled), 1), mean(), True)  # k with k
    # (height / 32)^2 cells of 64, in each the anchor of X and the one of X^, of 3: (p - q) log odds of each
    disagreement = 2 * (torch.tensor(4.0).sigmoid() - 0.5) * 8
    assert float(equal.cls) == pytest.approx(float(2 * (height / 32) ** 2 / (64 * 3) * disagreement), rel=1e-5)


def test_padding_of_a_single_map_takes_no_part():
    """What stands on it, in either view, changes nothing."""
    sizes = ((40, 32), (64, 64))
    anchors = square(32, 64)
    full, small = dense_level(0, 4, (4, 4), anchors=anchors), dense_level(1, 4, (2, 2), anchors=anchors)
    halves = tuple((h // 2, w // 2) for h, w in sizes)
    found = []
    for junk in (0.0, 50.0):
        views = []
        for level, view in ((full, sizes), (small, halves)):
            valid = valid_anchors(view, 4, level.grid, 2, "cpu")
            logits = torch.where(valid[..., None], level.logits, junk)
            deltas = torch.where(valid[..., None], level.deltas, junk)
            views.append(DenseLevel(4, level.grid, logits, deltas, valid, anchors))
        [(one, other)] = pair_levels(single(views[0]), single(views[1]), 1)
        assert one.valid.tolist() == [[True, False, False, False], [True] * 4]  # a row of X that is half padding counts
        assert other.valid.tolist() == [[True, False, True, False], [True] * 4]
        found.append(dense_consistency([(one, other)], mean(), True))
    assert found[0].cls.item() == found[1].cls.item() > 0
    assert found[0].box.item() == found[1].box.item() > 0


def test_a_single_map_of_an_odd_grid_is_refused():
    odd, small = (dense_level(i, 4, grid, anchors=square(32, 64)) for i, grid in enumerate(((3, 4), (2, 2))))
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        pair_levels(single(odd), single(small), 1)


def test_two_views_of_one_size_pair_every_level_with_itself():
    for levels in ((2, 3, 4), (4,)):  # a single map too: nothing is pooled, no anchor sizes are asked for
        full, other = pyramid(0, levels, 64), pyramid(1, levels, 64)
        pairs = pair_levels(full, other, 0)
        assert [(one is a, two is b) for (one, two), a, b in zip(pairs, full.levels, other.levels, strict=True)] == [
            (True, True)
        ] * len(levels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_scale_0_leaves_the_images_as_they_are(dtype):
    images = Images(torch.randint(0, 256, (2, 3, 5, 7)).to(dtype), ((5, 7), (3, 2)))
    same = downscale(images, 0)
    assert same.tensor.dtype == torch.float32
    assert torch.equal(same.tensor, images.tensor.float())
    assert same.sizes == images.sizes
    with pytest.raises(ValueError, match="s >= 0"):
        downscale(images, -1)


def test_the_drawn_scale_is_stateless_and_uniform():
    assert {draw_scale(step, 1) for step in range(50)} == {1}
    draws = [draw_scale(step, 3, seed=5) for step in range(3000)]
    assert draws == [draw_scale(step, 3, seed=5) for step in range(3000)]
    assert draws != [draw_scale(step, 3, seed=6) for step in range(3000)]
    assert all(900 < draws.count(s) < 1100 for s in (1, 2, 3))
    assert draws[:8] == [draw_scale(step, 3, seed=5) for step in range(8)]
    assert {draw_scale(step, 0, seed) for step in range(20) for seed in range(3)} == {0}
    with pytest.raises(ValueError, match="max_scale"):
        draw_scale(0, -1)


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


# ---------------------------------------------------------------------------------------------- any size
def test_resized_by_hand():
    """At half the size a triangle filter of radius 2 around the middle of each pair of pixels: 1, 3, 3, 1 eighths."""
    row = torch.tensor([0.0, 8, 16, 24, 80, 0, 0, 0])
    images = Images(row.expand(1, 3, 8, 8).clone(), ((8, 7),))
    small = resize(images, 0.5)
    assert small.sizes == ((4, 4),)
    assert small.tensor.shape == (1, 3, 4, 4)
    expected = [(3 * 0 + 3 * 8 + 16) / 7, (8 + 3 * 16 + 3 * 24 + 80) / 8, (24 + 3 * 80) / 8, 0.0]
    assert small.tensor[0, 0, 0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("scale", [0.4, 0.73, 0.99, 1.0])
def test_a_point_moves_by_the_scale(scale):
    """The centre of mass of a blob, in pixel edges' coordinates, moves from (x, y) to (scale x, scale y)."""
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(96) + 0.5, indexing="ij")
    blob = torch.exp(-((x - 40) ** 2 + (y - 24) ** 2) / 50).expand(1, 3, 64, 96)
    small = resize(Images(blob.clone(), ((50, 90),)), scale).tensor[0, 0]
    y, x = torch.meshgrid(torch.arange(small.shape[0]) + 0.5, torch.arange(small.shape[1]) + 0.5, indexing="ij")
    assert ((small * x).sum() / small.sum()).item() == pytest.approx(40 * scale, abs=0.02)
    assert ((small * y).sum() / small.sum()).item() == pytest.approx(24 * scale, abs=0.02)


def test_sizes_are_what_is_there():
    images = Images(torch.zeros(2, 3, 64, 96, dtype=torch.uint8), ((64, 96), (33, 1)))
    small = resize(images, 0.4)
    assert small.tensor.dtype == torch.float32
    assert small.padded_size == (25, 38)  # 25.6 and 38.4
    assert small.sizes == ((25, 38), (14, 1))
    assert resize(images, 1).sizes == images.sizes
    for scale in (0.0, 1.01, -1.0, 0.01):
        with pytest.raises(ValueError, match="expected a scale in"):
            resize(images, scale)


def test_the_drawn_size_is_a_function_of_step_and_seed():
    draws = [draw_size(step, 0.4, seed=5) for step in range(2000)]
    assert draws == [draw_size(step, 0.4, seed=5) for step in range(2000)]
    assert draws != [draw_size(step, 0.4, seed=6) for step in range(2000)]
    assert 0.4 <= min(draws) < 0.41
    assert 0.99 < max(draws) <= 1.0
    assert sum(draws) / 2000 == pytest.approx(0.7, abs=0.02)
    assert draw_size(3, 1.0) == 1.0
    for least in (0.0, 1.1):
        with pytest.raises(ValueError, match="least scale"):
            draw_size(3, least)
