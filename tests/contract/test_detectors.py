"""The contract of sed.detectors.base, checked for every detector that this machine can build.

Shape shorthand: see sed.core.structures.
"""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection import (
    fasterrcnn_resnet50_fpn,
    keypointrcnn_resnet50_fpn,
    retinanet_resnet50_fpn,
    ssdlite320_mobilenet_v3_large,
)

from sed.core.structures import Images
from sed.core.views import downscale, pair_levels
from sed.detectors import DetectorSpec, build_detector, wrap
from tests.reference.detectors import SPECS, make_detector, make_images, make_labeled

TWO_STAGE = [name for name, spec in SPECS.items() if spec.architecture == "rcnn"]


@pytest.fixture(params=SPECS)
def detector(request):
    return make_detector(request.param)


@pytest.fixture(params=TWO_STAGE)
def two_stage(request):
    return make_detector(request.param)


def padded(detector, sizes=((64, 64), (50, 60)), factor=2):
    return make_images(sizes).pad_to_multiple(detector.divisor * factor)


def anchors_of(detector, features):
    """[N, M, 4] from the framework's own generator."""
    return torch.stack(detector._anchors(features))


def test_dense_shapes_and_anchor_order(detector):
    features = detector.encode(padded(detector))
    dense = detector.dense(features)
    classes = 1 if "region" in detector.heads else detector.num_classes
    anchors = anchors_of(detector, features)
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
        own = anchors[0, start : start + count]
        centres = (own[:, :2] + own[:, 2:]) / 2  # (x, y)
        per_cell = count // (rows * columns)
        index = torch.arange(count) // per_cell
        expected = torch.stack([index % columns, index // columns], dim=1) * 2.0**level.level
        torch.testing.assert_close(centres, expected)
        start += count
    assert start == anchors.shape[1]


def test_deltas_decode_to_the_frameworks_own_boxes(two_stage):
    """Decoding our deltas by hand gives the boxes that the model's RPN makes of its own head."""
    two_stage.eval()
    features = two_stage.encode(padded(two_stage))
    dense = two_stage.dense(features)
    own, _ = two_stage.model.rpn(two_stage._image_list(features), features.maps)
    ours = two_stage.propose(features, dense, limit=10_000)
    for a, b in zip(ours, own, strict=True):
        torch.testing.assert_close(a, b)
    # one anchor by hand: centre + delta x size, size x exp(delta)
    level = dense.levels[0]
    anchor, delta = anchors_of(two_stage, features)[0, 7], level.deltas[0, 7]
    size = anchor[2:] - anchor[:2]
    centre = (anchor[:2] + anchor[2:]) / 2 + delta[:2] * size
    half = size * delta[2:].exp() / 2
    decoded = two_stage.model.rpn.box_coder.decode_single(delta[None], anchor[None])[0]
    torch.testing.assert_close(torch.cat([centre - half, centre + half]), decoded)


def test_proposals_are_best_first_and_limited(two_stage):
    features = two_stage.encode(padded(two_stage))
    dense = two_stage.dense(features)
    many = two_stage.propose(features, dense, limit=30)
    few = two_stage.propose(features, dense, limit=5)
    for a, b in zip(many, few, strict=True):
        assert len(b) == 5
        assert not b.requires_grad
        torch.testing.assert_close(a[:5], b)
    height, width = features.images.sizes[1]
    assert many[1][:, 2].max() <= width
    assert many[1][:, 3].max() <= height


def test_regions_equal_the_frameworks_own(two_stage):
    """Softmax over our logits gives the scores that the model itself gives the same proposals."""
    two_stage.eval()
    model = two_stage.model
    features = two_stage.encode(padded(two_stage))
    proposals = [torch.tensor([[0.0, 0, 20, 20], [5, 5, 40, 44]]), torch.tensor([[3.0, 2, 33, 30]])]
    region = two_stage.regions(features, proposals)
    assert region.counts == (2, 1)
    assert region.logits.shape == (3, 4)
    assert region.deltas.shape == (3, 3, 4)
    pooled = model.roi_heads.box_roi_pool(features.maps, proposals, [features.images.padded_size] * 2)
    scores, deltas = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
    torch.testing.assert_close(region.logits.softmax(1)[:, -1], scores.softmax(1)[:, 0])
    torch.testing.assert_close(region.logits[:, :-1], scores[:, 1:])
    torch.testing.assert_close(region.deltas.flatten(1), deltas[:, 4:])


def test_empty_proposals_are_differentiable(two_stage):
    features = two_stage.encode(padded(two_stage))
    empty = torch.zeros((0, 4))
    region = two_stage.regions(features, [empty, empty])
    assert region.logits.shape == (0, 4)
    assert region.deltas.shape == (0, 3, 4)
    (region.logits.sum() + region.deltas.sum()).backward()
    half = two_stage.regions(two_stage.encode(padded(two_stage)), [empty, torch.tensor([[3.0, 2, 33, 30]])])
    assert half.counts == (0, 1)


def test_padding_mask(detector):
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


def test_what_is_under_the_padding_does_not_matter(detector):
    detector.eval()
    images = padded(detector, sizes=((64, 64), (33, 20)))
    dirty = images.tensor.clone()
    dirty[1, :, 33:] = 200
    dirty[1, :, :, 20:] = 77
    clean = detector.dense(detector.encode(images))
    other = detector.dense(detector.encode(Images(dirty, images.sizes)))
    for a, b in zip(clean.levels, other.levels, strict=True):
        torch.testing.assert_close(a.logits, b.logits)


def test_half_size_view_pairs_level_by_level(detector):
    images = padded(detector)
    full = detector.encode(images)
    small = detector.encode(downscale(images, 1))
    pairs = pair_levels(detector.dense(full), detector.dense(small), 1)
    levels = [level.level for level in detector.dense(full).levels]
    assert [(a.level, b.level) for a, b in pairs] == [(f, f - 1) for f in levels if f - 1 in levels]
    assert len(pairs) == len(levels) - 1
    # the paired anchors are the same boxes, one scale apart (torchvision rounds base anchors to whole pixels)
    counts = [level.logits.shape[1] for level in detector.dense(full).levels]
    big = anchors_of(detector, full)[0].split(counts)[1:]
    half = anchors_of(detector, small)[0].split([lvl.logits.shape[1] for lvl in detector.dense(small).levels])[:-1]
    for a, b in zip(big, half, strict=True):
        assert (a - 2 * b).abs().max() <= 1.0


def test_gradient_reaches_both_views(detector):
    images = padded(detector)
    for view in (images, downscale(images, 1)):
        detector.zero_grad()
        dense = detector.dense(detector.encode(view))
        sum(level.logits.sum() + level.deltas.sum() for level in dense.levels).backward()
        for name, parameter in detector.named_parameters():
            in_trunk = "backbone" in name or "rpn" in name or "head" in name
            if parameter.requires_grad and in_trunk and "roi_heads" not in name:
                assert parameter.grad is not None, name


def test_batch_of_one_equals_batch_of_many(detector):
    detector.eval()
    images = padded(detector)
    both = detector.dense(detector.encode(images))
    one = detector.dense(detector.encode(Images(images.tensor[1:], images.sizes[1:])))
    for a, b in zip(both.levels, one.levels, strict=True):
        torch.testing.assert_close(a.logits[1:], b.logits, atol=1e-5, rtol=1e-4)
        assert torch.equal(a.valid[1:], b.valid)


def stock_losses(detector, batch, seed):
    """The same images and targets through the stock model's own forward, its resizing made the identity."""
    model = detector.model
    height, width = batch.images.padded_size
    model.transform.min_size, model.transform.max_size = (min(height, width),), max(height, width)
    model.transform.size_divisible = detector.divisor
    model.transform.torch_choice = lambda sizes: sizes[0]  # it draws from the RNG that samples the anchors too
    images = [i[:, :h, :w].float() / 255 for i, (h, w) in zip(batch.images.tensor, batch.images.sizes, strict=True)]
    targets = [{"boxes": t.boxes, "labels": t.classes + 1} for t in batch.targets]
    torch.manual_seed(seed)
    return model(images, targets)


@pytest.mark.parametrize("empty", [False, True])
def test_supervised_losses_equal_the_stock_models(detector, empty):
    side = detector.divisor * 2
    batch = make_labeled(((side, side), (side, side)), empty=empty)
    detector.train()
    torch.manual_seed(3)
    ours = detector.supervised_losses(batch)
    stock = stock_losses(detector, batch, 3)
    assert len(ours) == len(stock)
    assert sum(ours.values()).item() == pytest.approx(sum(stock.values()).item(), abs=1e-6, rel=1e-6)
    for a, b in zip(ours.values(), stock.values(), strict=True):
        assert a.item() in [pytest.approx(v.item(), abs=1e-6, rel=1e-6) for v in stock.values()]
        assert torch.isfinite(b)
    sum(ours.values()).backward()


def test_detections_equal_the_stock_models(detector):
    detector.eval()
    if detector.heads == {"dense"}:
        detector.model.score_thresh = 0.0  # fresh weights are sure of nothing
    else:
        detector.model.roi_heads.score_thresh = 0.0
    side = detector.divisor * 2
    images = make_images(((side, side),))
    (ours,) = detector.detect(images)
    detector.model.transform.min_size, detector.model.transform.max_size = (side,), side
    (stock,) = detector.model([images.tensor[0].float() / 255])
    assert len(ours.boxes) > 0
    torch.testing.assert_close(ours.boxes, stock["boxes"])
    torch.testing.assert_close(ours.scores, stock["scores"])
    assert torch.equal(ours.classes, stock["labels"] - 1)
    assert (ours.scores.diff() <= 0).all()


def test_heads_that_are_not_there_say_so():
    detector = make_detector("resnet_retinanet")
    features = detector.encode(padded(detector))
    with pytest.raises(TypeError, match="no region head"):
        detector.regions(features, [])
    with pytest.raises(TypeError, match="no region head"):
        detector.propose(features, detector.dense(features), 5)


def test_sides_must_be_multiples_of_the_stride(detector):
    with pytest.raises(ValueError, match="multiples of the stride"):
        detector.encode(make_images(((50, 60),)))


def test_frozen_stages_and_frozen_bn():
    """The paper: stem and first stage frozen, every BN in eval mode (METHOD 9)."""
    detector = make_detector("resnet_rcnn").train()
    before = {k: v.clone() for k, v in detector.state_dict().items() if "running" in k}
    sum(detector.supervised_losses(make_labeled()).values()).backward()
    body = detector.model.backbone.body
    assert all(p.grad is None for m in (body.conv1, body.bn1, body.layer1) for p in m.parameters())
    assert all(p.grad is not None for p in body.layer2.parameters())
    assert before
    assert all(torch.equal(v, detector.state_dict()[k]) for k, v in before.items())
    bn = [m for m in body.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not bn


@pytest.mark.parametrize(("norm", "kind"), [("BN", torch.nn.BatchNorm2d), ("GN", torch.nn.GroupNorm)])
def test_training_from_scratch_has_its_own_norm(norm, kind):
    detector = build_detector(DetectorSpec(num_classes=2, depth=18, norm=norm, freeze_at=0, fpn_channels=16))
    assert any(isinstance(m, kind) for m in detector.modules())
    assert all(p.requires_grad for p in detector.parameters())


@pytest.mark.parametrize(
    ("architecture", "stock"), [("rcnn", fasterrcnn_resnet50_fpn), ("retinanet", retinanet_resnet50_fpn)]
)
def test_exported_weights_load_in_the_stock_model(architecture, stock, tmp_path):
    """`model_final.pth` needs nothing of this project (RetinaNet: the stock anchors are 9 a cell)."""
    sizes = [[s, s * 2 ** (1 / 3), s * 2 ** (2 / 3)] for s in (32, 64, 128, 256, 512)]
    own = {} if architecture == "rcnn" else {"anchor_sizes": sizes}
    detector = build_detector(DetectorSpec(architecture=architecture, num_classes=4, **own))
    torch.save(detector.plain_state_dict(), tmp_path / "model_final.pth")
    model = stock(weights=None, weights_backbone=None, num_classes=5)
    model.load_state_dict(torch.load(tmp_path / "model_final.pth", weights_only=True))
    for name, value in detector.plain_state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_wrap_takes_a_ready_built_model_and_names_what_it_cannot():
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    detector = wrap(model)
    assert (detector.num_classes, detector.divisor) == (3, 64)
    with pytest.raises(TypeError, match="mask and keypoint heads"):
        wrap(keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None))
    with pytest.raises(TypeError, match="cannot wrap SSD"):
        wrap(ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None))


def test_anchor_sizes_must_fit_the_pyramid():
    with pytest.raises(ValueError, match=r"3 lists; this backbone has 5 levels"):
        build_detector(DetectorSpec(num_classes=2, anchor_sizes=((8,), (16,), (32,))))
