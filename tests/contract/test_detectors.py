"""The contract of sed.detectors.base, checked for every detector of every installed engine.

The framework's own results for the same weights come from the case (tests/reference/frameworks.py); the checks are the
same for all. Training and inference: test_steps.py.

Shape shorthand: see sed.core.structures; M all anchors of an image.
"""

from __future__ import annotations

import copy
import math
from fnmatch import fnmatch

import pytest
import torch

from sed.core.structures import Images
from sed.core.views import downscale, pair_levels
from tests.reference.cases import CASES, DETECTRON2, DETECTRON2_FAMILY, WHY_NOT, dense, one_stage, two_stage
from tests.reference.detectors import make_images, predict_all

INSTALL_PAGE = "https://detectron2.readthedocs.io/tutorials/install.html"


def padded(detector, sizes=((64, 64), (50, 60)), factor=2):
    return make_images(sizes).pad_to_multiple(detector.size_divisibility * factor)


def test_detectron2_s_detectors_are_among_the_cases():
    names = [*DETECTRON2, *(f"d2_{key}" for key in DETECTRON2_FAMILY)]
    if WHY_NOT:
        pytest.skip(f"{len(names)} Detectron2 detectors wait for its installation ({WHY_NOT}): {INSTALL_PAGE}")
    assert [case.name for case in CASES if case.name.startswith("d2_")] == names


@dense
def test_dense_shapes_and_anchor_order(case, detector):
    features = detector.encode(padded(detector))
    dense = detector.dense(features)
    classes = 1 if case.two_stage else 3
    anchors = case.anchors(detector, features)
    start = 0
    for level, feature_map in zip(dense.levels, features.maps.values(), strict=True):
        rows, columns = level.grid
        assert (rows, columns) == tuple(feature_map.shape[-2:])
        assert features.images.padded_size == (rows * 2**level.level, columns * 2**level.level)
        count = level.logits.shape[1]
        assert level.logits.shape == (2, count, classes)
        assert level.deltas.shape == (2, count, 4)
        assert level.valid.shape == (2, count)
        # (row, column, anchor): the centres of the framework's anchors step through columns first
        own = anchors[start : start + count]
        centres = (own[:, :2] + own[:, 2:]) / 2  # (x, y)
        per_cell = count // (rows * columns)
        index = torch.arange(count) // per_cell
        expected = torch.stack([index % columns, index // columns], dim=1) * 2.0**level.level
        torch.testing.assert_close(centres, expected, atol=1e-4, rtol=0)
        start += count
    assert start == len(anchors)
    assert detector.size_divisibility == 2 ** dense.levels[-1].level


def decode(anchors, deltas):
    """Boxes [N, M, 4] by hand: centre + delta x size, size x exp(delta), its argument at most ln(1000 / 16)."""
    size = anchors[:, 2:] - anchors[:, :2]
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2 + deltas[..., :2] * size
    half = size * deltas[..., 2:].clamp(max=math.log(1000 / 16)).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


@dense
def test_deltas_decode_to_the_frameworks_own_boxes(case, detector):
    """The deltas of every anchor have the framework's order, scale and sign."""
    detector.eval()
    features = detector.encode(padded(detector))
    deltas = torch.cat([level.deltas for level in detector.dense(features).levels], dim=1)  # [N, M, 4]
    ours = decode(case.anchors(detector, features), deltas)
    own = case.own_boxes(detector, features)
    torch.testing.assert_close(ours, own, atol=1e-3, rtol=1e-5)
    assert (own - case.anchors(detector, features)).abs().max() > 0.01  # the deltas are not 0


@dense
def test_deltas_divided_by_the_coder_weights_are_plain_deltas(case, detector):
    """`box_coder_weights` of both heads are the factors of their deltas."""
    detector.eval()
    features = detector.encode(padded(detector))
    anchors = case.anchors(detector, features)
    deltas = torch.cat([level.deltas for level in detector.dense(features).levels], dim=1)  # [N, M, 4]
    plain = decode(anchors, deltas / torch.tensor(detector.box_coder_weights["dense"]))
    torch.testing.assert_close(plain, case.own_boxes(detector, features), atol=1e-3, rtol=1e-5)
    assert set(detector.box_coder_weights) == case.heads
    if case.two_stage:  # both frameworks' default
        assert tuple(detector.box_coder_weights["region"]) == (10.0, 10.0, 5.0, 5.0)


@one_stage
def test_stock_detections_are_anchors_with_our_scores_and_boxes(case, detector):
    """Each stock detection is one of our anchors: its box is decoded from our deltas, its score is our class logit."""
    detector.eval()
    images = make_images(((128, 128), (128, 128)))
    features = detector.encode(images)
    levels = detector.dense(features).levels
    scores = torch.cat([level.logits for level in levels], dim=1).sigmoid()  # [N, M, K]
    boxes = decode(case.anchors(detector, features), torch.cat([level.deltas for level in levels], dim=1))
    for n, found in enumerate(case.stock_detections(detector, images)):
        known = found.classes >= 0  # torchvision's own has one more, for label 0
        assert set(found.classes[known].tolist()) == {0, 1, 2}
        same = (boxes[n].clamp(0, 128) - found.boxes[:, None]).abs().amax(-1) < 0.01  # [D, M], pixels
        same &= (scores[n].T[found.classes] - found.scores[:, None]).abs() < 1e-5
        assert same.any(1)[known].all()


@two_stage
def test_proposals_are_the_frameworks_own(case, detector):
    detector.eval()
    features = detector.encode(padded(detector))
    ours = detector.propose(features, detector.dense(features), limit=10_000)
    for a, b in zip(ours, case.own_proposals(detector, features), strict=True):
        assert len(a) > 5
        torch.testing.assert_close(a, b)


@two_stage
def test_proposals_are_best_first_and_limited(case, detector):
    features = detector.encode(padded(detector))
    dense = detector.dense(features)
    many = detector.propose(features, dense, limit=30)
    few = detector.propose(features, dense, limit=5)
    for a, b in zip(many, few, strict=True):
        assert len(b) == 5
        assert not b.requires_grad
        torch.testing.assert_close(a[:5], b)
    height, width = features.images.sizes[1]
    assert many[1][:, 2].max() <= width
    assert many[1][:, 3].max() <= height


@two_stage
def test_regions_equal_the_frameworks_own(case, detector):
    """The softmax of our logits equals the stock model's scores of the same proposals."""
    detector.eval()
    features = detector.encode(padded(detector))
    proposals = [torch.tensor([[0.0, 0, 20, 20], [5, 5, 40, 44]]), torch.tensor([[3.0, 2, 33, 30]])]
    region = detector.regions(features, proposals)
    assert region.counts == (2, 1)
    assert region.logits.shape == (3, 4)
    assert region.deltas.shape == (3, case.box_rows, 4)
    probabilities, deltas = case.own_regions(detector, features, proposals)
    torch.testing.assert_close(region.logits.softmax(1), probabilities)
    torch.testing.assert_close(region.deltas, deltas)
    assert region.logits.std(0).max() > 1e-4  # different proposals have different logits


@two_stage
def test_empty_proposals_are_differentiable(case, detector):
    empty = torch.zeros((0, 4))
    region = detector.regions(detector.encode(padded(detector)), [empty, empty])
    assert region.logits.shape == (0, 4)
    assert region.deltas.shape == (0, case.box_rows, 4)
    (region.logits.sum() + region.deltas.sum()).backward()
    half = detector.regions(detector.encode(padded(detector)), [empty, torch.tensor([[3.0, 2, 33, 30]])])
    assert half.counts == (0, 1)
    assert half.logits.shape == (1, 4)


@two_stage
def test_bf16_maps_do_not_round_the_coordinates_of_boxes(case, detector):
    """At 900 bf16 has steps of 4: a box that moves by less must still be pooled from other pixels."""
    detector.eval()
    box, step = torch.tensor([[901.0, 10, 925, 40]]), torch.tensor([0.9, 0.0, 0.9, 0.0])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = detector.encode(make_images(((64, 1024),)).pad_to_multiple(detector.size_divisibility))
        here, there = (detector.regions(features, [b]).logits.float() for b in (box, box + step))
    assert features.maps[next(iter(features.maps))].dtype == torch.bfloat16
    assert not torch.equal(here, there)


@dense
def test_padding_mask(case, detector):
    images = padded(detector, sizes=((64, 64), (33, 20)))
    for level in detector.dense(detector.encode(images)).levels:
        rows, columns = level.grid
        per_cell = level.valid.shape[1] // (rows * columns)
        stride = 2**level.level
        for n, (height, width) in enumerate(images.sizes):
            cells = level.valid[n].view(rows, columns, per_cell)
            for r in range(rows):
                for c in range(columns):
                    inside = r * stride < height and c * stride < width
                    assert (cells[r, c] == inside).all()


def test_what_is_under_the_padding_does_not_matter(case, detector):
    detector.eval()
    images = padded(detector, sizes=((64, 64), (33, 20)))
    dirty = images.tensor.clone()
    dirty[1, :, 33:] = 200
    dirty[1, :, :, 20:] = 77
    clean, other = predict_all(detector, images), predict_all(detector, Images(dirty, images.sizes))
    for name, value in clean.items():
        torch.testing.assert_close(value, other[name])


@dense
def test_the_anchors_of_a_cell_are_the_generator_s(case, detector):
    """Without torchvision's rounding, which moves a side by up to a pixel."""
    features = detector.encode(padded(detector))
    levels = detector.dense(features).levels
    boxes = case.anchors(detector, features).split([level.logits.shape[1] for level in levels])
    for level, own in zip(levels, boxes, strict=True):
        cell = own[: level.logits.shape[1] // (level.grid[0] * level.grid[1])]
        error = (cell[:, 2:] - cell[:, :2] - torch.tensor(level.anchors)).abs().max()
        assert error <= case.anchor_error


@dense
def test_half_size_view_pairs_level_by_level(case, detector):
    images = padded(detector)
    full = detector.encode(images)
    small = detector.encode(downscale(images, 1))
    dense, half_dense = detector.dense(full), detector.dense(small)
    pairs = pair_levels(dense, half_dense, 1)
    assert all(a.grid == b.grid and a.logits.shape == b.logits.shape for a, b in pairs)
    levels = [level.level for level in dense.levels]
    if len(levels) == 1:  # docs/method.md 2: X's map pooled to the grid of X^; size k pairs with k / 2
        ((a, b),) = pairs
        whole, (rows, columns) = dense.levels[0], dense.levels[0].grid
        sides = torch.tensor(whole.anchors)  # [anchors a cell, 2]
        apart = (sides[:, None] / 2 - sides).abs().amax(-1) < 0.5
        here, there = apart.nonzero().unbind(1)
        assert 0 < len(here) < len(sides)
        cells = whole.logits.view(2, rows // 2, 2, columns // 2, 2, -1)  # [N, row, 2, column, 2, anchor]
        torch.testing.assert_close(a.logits.flatten(), cells.mean((2, 4))[..., here].flatten())
        cells = whole.deltas.view(2, rows // 2, 2, columns // 2, 2, -1, 4)
        torch.testing.assert_close(a.deltas.flatten(), cells.mean((2, 4))[..., here, :].flatten())
        valid = whole.valid.view(2, rows // 2, 2, columns // 2, 2, -1).all(4).all(2)
        assert torch.equal(a.valid.flatten(), valid[..., here].flatten())
        other = half_dense.levels[0].logits.view(2, *b.grid, -1)[..., there]
        torch.testing.assert_close(b.logits.flatten(), other.flatten())
        return
    assert [(a.level, b.level) for a, b in pairs] == [(f, f - 1) for f in levels[1:]]
    # the paired anchors are the same boxes, one scale apart
    counts = [level.logits.shape[1] for level in dense.levels]
    big = case.anchors(detector, full).split(counts)[1:]
    half = case.anchors(detector, small).split([level.logits.shape[1] for level in half_dense.levels])[:-1]
    for a, b in zip(big, half, strict=True):
        assert (a - 2 * b).abs().max() <= case.anchor_error


def test_gradient_reaches_every_weight_through_both_views(case, detector):
    images = padded(detector)
    for view, scale in ((images, 1), (downscale(images, 1), 2)):
        detector.zero_grad()
        sum(value.sum() for value in predict_all(detector, view, scale).values()).backward()
        for name, parameter in detector.named_parameters():
            if any(fnmatch(name, pattern) for pattern in (*case.untrained, *case.only_labeled)):
                assert parameter.grad is None or not parameter.grad.any(), name
            else:
                assert (parameter.grad is not None) == parameter.requires_grad, name


def test_batch_of_one_equals_batch_of_many(case, detector):
    detector.eval()
    images = padded(detector)
    with torch.backends.mkldnn.flags(enabled=False):  # whose choice of kernels, and so the rounding, follows the batch
        both = predict_all(detector, images)
        one = predict_all(detector, Images(images.tensor[1:], images.sizes[1:]))
    for name, value in both.items():
        torch.testing.assert_close(value[1:], one[name], atol=1e-5, rtol=1e-4)


def test_a_copy_has_the_predictions_of_the_original(case, detector):
    detector.eval()
    expected = predict_all(detector, padded(detector))
    twin = copy.deepcopy(detector)
    assert twin.heads == detector.heads
    with torch.no_grad():
        for weight in detector.parameters():
            weight.zero_()
    for name, value in predict_all(twin, padded(twin)).items():
        torch.testing.assert_close(value, expected[name])


def test_a_missing_head_raises_a_type_error(case, detector):
    assert detector.heads == case.heads
    assert detector.num_classes == 3
    features = detector.encode(padded(detector))
    calls = {
        "dense": lambda: detector.dense(features),
        "region": lambda: detector.regions(features, []),
        "query": lambda: detector.queries(features),
    }
    for head in calls.keys() - case.heads:
        with pytest.raises(TypeError, match=rf"no {head} head; its heads are .*{min(case.heads)}"):
            calls[head]()
    if "region" not in case.heads:
        with pytest.raises(TypeError, match="no region head"):
            detector.propose(features, None, 5)


def test_sides_must_be_multiples_of_the_stride(case, detector):
    with pytest.raises(ValueError, match="multiples of the stride"):
        detector.encode(make_images(((50, 60),)))
