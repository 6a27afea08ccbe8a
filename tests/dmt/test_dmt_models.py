"""Networks: sizes (check 17), values against slow transcriptions, gradients, what small nets can learn."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import resnet50

from dmt.models import NAMES, RATES, SEGMENTERS, DilatedHead, build_model
from dmt.wide_resnet import WideResNet
from tests.reference.dmt_models import count, dilated_sum, enlarge, resnet_features, shake, wide_resnet


def seeded(name, num_classes=3, seed=0, **options):
    torch.manual_seed(seed)
    return build_model(name, num_classes, **options)


# ---------------------------------------------------------------------------------------------- sizes
@pytest.mark.parametrize(("classes", "expected"), [(21, 1_548_372), (19, 1_400_908)])
def test_head_has_as_many_parameters_as_deeplab_v2(classes, expected):
    assert count(DilatedHead(2048, classes)) == expected
    assert count(DilatedHead(2048, classes, num_active_rates=2)) == expected


def test_wide_resnet_has_as_many_parameters_as_wrn_28_2():
    assert count(build_model("wide_resnet", 10)) == 1_467_610


def test_small_networks_are_small():
    assert count(build_model("small_segmenter", 11)) < 300_000
    assert 5_000 < count(build_model("small_classifier", 10)) < 50_000


@pytest.mark.parametrize("depth", [50, 101])
def test_321_pixels_become_41_and_321_again(depth):
    with torch.device("meta"):
        model, images = build_model("deeplab_v2", 21, depth=depth), torch.empty(2, 3, 321, 321)
        assert model.backbone(images)["out"].shape == (2, 2048, 41, 41)
        assert model(images).shape == (2, 21, 321, 321)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(32, 32), (33, 48), (9, 8)])
def test_logits_have_the_shape_of_the_input(name, size):
    model = seeded(name, 5, depth=50).eval()
    with torch.no_grad():
        logits = model(torch.randn(2, 3, *size))
    assert logits.shape == ((2, 5, *size) if name in SEGMENTERS else (2, 5))
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_float32_under_autocast(name):
    model = seeded(name, depth=50).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(1, 3, 32, 32)).dtype == torch.float32


# ---------------------------------------------------------------------------------------------- values
@pytest.mark.parametrize("active", [1, 2, 3, 4])
def test_head_is_the_sum_of_its_first_rates(active):
    torch.manual_seed(1)
    head = DilatedHead(3, 2, num_active_rates=active).double()
    features = torch.randn(1, 3, 27, 26, dtype=torch.float64, requires_grad=True)  # 24 is inside the map
    convs = head.convs[:active]
    expected = dilated_sum(features, [c.weight for c in convs], [c.bias for c in convs], RATES[:active])
    found = head(features)
    torch.testing.assert_close(found, expected)
    tensors = (features, *(p for c in convs for p in (c.weight, c.bias)))
    direction = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad(found, tensors, direction), torch.autograd.grad(expected, tensors, direction), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_head_passes_gradcheck():
    torch.manual_seed(2)
    head = DilatedHead(2, 2).double()
    features = torch.randn(1, 2, 8, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(head, (features,))


def test_head_of_a_constant_map_by_hand():
    """One channel of ones, all taps 1: a branch whose rate exceeds the map sees its centre alone."""
    head = DilatedHead(1, 1)
    for conv in head.convs:
        torch.nn.init.ones_(conv.weight)
        torch.nn.init.constant_(conv.bias, 0.25)
    with torch.no_grad():
        assert head(torch.ones(1, 1, 5, 5)).unique().tolist() == [4 * 1.25]
        middle = head(torch.ones(1, 1, 15, 15))[0, 0]
    assert middle[7, 7] == 9 + 3 + 4 * 0.25  # rate 6 reaches all nine, the others one each
    assert middle[0, 0] == (4 + 4) + 2 + 4 * 0.25  # rates 6 and 12 reach right, down and both


def test_deeplab_is_resnet_head_and_enlarging():
    torch.manual_seed(3)
    body = shake(resnet50(replace_stride_with_dilation=[False, True, True]))
    model = seeded("deeplab_v2", depth=50)
    model.backbone.load_state_dict({k: v for k, v in body.state_dict().items() if not k.startswith("fc.")})
    model, body, images = model.double().eval(), body.double().eval(), torch.randn(1, 3, 33, 25, dtype=torch.float64)
    with torch.no_grad():
        convs = model.head.convs
        features = resnet_features(body, images)
        logits = dilated_sum(features, [c.weight for c in convs], [c.bias for c in convs], RATES)
        torch.testing.assert_close(model(images).double(), enlarge(logits, (33, 25)), rtol=1e-5, atol=1e-6)


def test_wide_resnet_is_its_transcription_with_gradients():
    model = shake(seeded("wide_resnet", 10)).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    state = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    found, expected = model(images), wide_resnet(state, images)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    parameters = tuple(model.parameters())
    direction = torch.randn(2, 10)
    pairs = zip(
        torch.autograd.grad(found, parameters, direction),
        torch.autograd.grad(expected, parameters, direction.double()),
        strict=True,
    )
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)


def test_wide_resnet_is_initialised_as_the_authors_do():
    model = seeded("wide_resnet", 10)
    assert model.classifier.bias.abs().max() == 0
    for conv in (model.stem, model.stages[2][3].conv1):
        assert conv.weight.std().item() == pytest.approx((2 / (9 * conv.out_channels)) ** 0.5, rel=0.1)


# ---------------------------------------------------------------------------------------------- gradients
def test_all_four_branches_have_gradient():
    model = seeded("deeplab_v2", depth=50)
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert all(conv.weight.grad.abs().sum() > 0 and conv.bias.grad.abs().sum() > 0 for conv in model.head.convs)


def test_with_two_rates_the_others_get_no_gradient_and_change_nothing():
    """What the authors' `return` inside the summing loop does."""
    model = seeded("deeplab_v2", depth=50, num_active_rates=2).eval()
    images = torch.randn(1, 3, 32, 32)
    logits = model(images)
    logits.square().mean().backward()
    first, second, *rest = model.head.convs
    assert first.weight.grad.abs().sum() > 0
    assert second.weight.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for conv in rest for p in conv.parameters())
    with torch.no_grad():
        for conv in rest:
            conv.weight.fill_(7)
        assert torch.equal(model(images), logits)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "deeplab_v2"])
def test_every_parameter_has_gradient(name):
    model = seeded(name, 5)
    images, size = torch.randn(4, 3, 32, 32), (4, 32, 32) if name in SEGMENTERS else (4,)
    F.cross_entropy(model(images), torch.randint(0, 5, size)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_the_seed_decides_the_weights():
    first, same, other = (seeded("small_segmenter", seed=seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_small_segmenter_tells_a_shape_by_its_extent():
    """Bars of the same colour and width that differ in length alone: a small window could not tell them apart."""
    torch.manual_seed(6)
    images, labels = torch.zeros(16, 3, 64, 64), torch.zeros(16, 64, 64, dtype=torch.int64)
    for i in range(16):
        y, x = int(torch.randint(2, 58, ())), int(torch.randint(2, 14, ()))
        length, label = (20, 1) if i % 2 else (44, 2)
        images[i, :, y : y + 5, x : x + length] = 1
        labels[i, y : y + 5, x : x + length] = label
    model = build_model("small_segmenter", 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    found, bar = model(images).argmax(1), labels > 0
    assert (found == labels)[bar].float().mean() > 0.9


# ---------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("deeplab_v3", 21), {}, "'deeplab_v3' is not known; it must be one of deeplab_v2, small_segmenter"),
        (("deeplab_v2", 21), {"depth": 18}, "depth is 18; it must be one of 50, 101"),
        (("deeplab_v2", 21), {"depth": 50, "num_active_rates": 0}, "must be from 1 to 4"),
        (("deeplab_v2", 21), {"depth": 50, "num_active_rates": 5}, "must be from 1 to 4"),
    ],
)
def test_errors_say_what_is_allowed(arguments, options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_model(*arguments, **options)


@pytest.mark.parametrize("depth", [27, 4, 3])
def test_wide_resnet_of_another_depth_is_an_error(depth):
    with pytest.raises(ValueError, match="must be 6 n \\+ 4"):
        WideResNet(10, depth=depth)
