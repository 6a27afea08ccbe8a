"""The KL divergence D by itself, and its numbers of docs/method.md 10; the loss terms: test_consistency.py."""

import math

import pytest
import torch
import torch.nn.functional as F

from sed.core.divergence import bernoulli_disagreement, bernoulli_kl, categorical_disagreement, categorical_kl
from sed.core.reweighting import histogram, mean


def logit(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).logit()


# ---------------------------------------------------------------- docs/method.md 10


def test_method_10_1_bernoulli_values():
    target, student = (0.90, 0.10, 0.02, 0.02), (0.55, 0.10, 0.03, 0.02)
    kl = bernoulli_kl(logit(*target), logit(*student))
    by_hand = [
        t * math.log(t / p) + (1 - t) * math.log((1 - t) / (1 - p)) for t, p in zip(target, student, strict=True)
    ]
    # METHOD prints .00192 for the third; its definition gives .02 log(2/3) + .98 log(.98/.97) = .00194
    assert by_hand == pytest.approx([0.29282, 0, 0.00194, 0], abs=5e-6)
    assert kl.tolist() == pytest.approx(by_hand, abs=1e-12)
    g = bernoulli_disagreement(logit(*target), logit(*student))
    assert g.tolist() == pytest.approx([0.35, 0, 0.01, 0], abs=1e-12)
    mask = torch.ones(4, dtype=torch.bool)
    expected = (by_hand[0] + by_hand[2] / 3) / 10
    assert float(histogram(10)(kl, g, mask)) == pytest.approx(expected, abs=1e-12)
    assert float(mean()(kl, g, mask)) == pytest.approx(0.0737, abs=5e-5)


def test_method_10_2_total_variation():
    target = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.05, 0.9], [1 / 3] * 3], dtype=torch.float64)
    student = torch.tensor([[0.5, 0.3, 0.2], [0.05, 0.05, 0.9], [0.2, 0.2, 0.6]], dtype=torch.float64)
    g = categorical_disagreement(target.log(), student.log())
    assert g.tolist() == pytest.approx([0.2, 0, 0.26667], abs=5e-6)
    by_hand = [
        sum(t * math.log(t / p) for t, p in zip(a, b, strict=True))
        for a, b in zip(target.tolist(), student.tolist(), strict=True)
    ]
    assert categorical_kl(target.log(), student.log()).tolist() == pytest.approx(by_hand, abs=1e-12)


def test_method_10_3_gradient_is_p_minus_t():
    logits = torch.tensor([[0.2, -1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).log()
    (grad,) = torch.autograd.grad(categorical_kl(target, logits).sum(), logits)
    assert grad[0].tolist() == pytest.approx([-0.2228, -0.1864, 0.4092], abs=5e-5)
    assert float(grad.abs().sum()) == pytest.approx(0.8184, abs=5e-5)
    # docs/method.md 6: g is half the gradient norm
    assert float(categorical_disagreement(target, logits)) == pytest.approx(float(grad.abs().sum()) / 2)


# ---------------------------------------------------------------- D


@pytest.mark.parametrize(("kl", "shape"), [(bernoulli_kl, (4, 3)), (categorical_kl, (4, 5))])
def test_divergence_gradcheck_and_no_gradient_to_the_target(kl, shape):
    torch.manual_seed(0)
    target = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: kl(target.detach(), x), (logits,))
    kl(target, logits).sum().backward()
    assert target.grad is None


def test_divergences_equal_torch_s_own():
    torch.manual_seed(1)
    target, logits = 4 * torch.randn(2, 50, 6, dtype=torch.float64)
    logits.requires_grad_()
    bernoulli = F.binary_cross_entropy_with_logits(logits, target.sigmoid(), reduction="none")
    bernoulli = bernoulli - F.binary_cross_entropy_with_logits(target, target.sigmoid(), reduction="none")
    torch.testing.assert_close(bernoulli_kl(target, logits), bernoulli, rtol=1e-9, atol=1e-12)
    softmax = F.kl_div(logits.log_softmax(-1), target.log_softmax(-1), reduction="none", log_target=True)
    torch.testing.assert_close(categorical_kl(target, logits), softmax.sum(-1))
    for own, other in ((bernoulli_kl(target, logits), bernoulli), (categorical_kl(target, logits), softmax)):
        torch.testing.assert_close(
            torch.autograd.grad(own.sum(), logits),
            torch.autograd.grad(other.sum(), logits, retain_graph=True),
        )


def test_bernoulli_is_the_two_class_categorical():
    torch.manual_seed(2)
    target, logits = 5 * torch.randn(2, 40, dtype=torch.float64)
    pair = [torch.stack([x, torch.zeros_like(x)], -1) for x in (target, logits)]
    torch.testing.assert_close(bernoulli_kl(target, logits), categorical_kl(*pair), rtol=1e-7, atol=1e-14)
    torch.testing.assert_close(bernoulli_disagreement(target, logits), categorical_disagreement(*pair))


def test_bernoulli_is_precise_where_background_anchors_are():
    target = torch.linspace(-14, -3, 200)
    logits = target + 0.5
    exact = bernoulli_kl(target.double(), logits.double())
    assert float(exact.min()) < 1e-6
    torch.testing.assert_close(bernoulli_kl(target, logits).double(), exact, rtol=1e-2, atol=1e-9)
    torch.testing.assert_close(bernoulli_kl(-target, -logits).double(), exact, rtol=1e-2, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_extreme_logits_stay_finite(dtype):
    values = torch.tensor([-3e4, -90.0, -1e-3, 0.0, 20.0, 90.0, 3e4], dtype=dtype)
    target, logits = (x.contiguous() for x in torch.meshgrid(values, values, indexing="ij"))
    logits.requires_grad_()
    for kl in (bernoulli_kl(target, logits), categorical_kl(target, logits)):
        assert torch.isfinite(kl).all()
        assert float(kl.detach().min()) > -1e-6
        (grad,) = torch.autograd.grad(kl.sum(), logits)
        assert torch.isfinite(grad).all()
        assert grad.dtype == dtype
    assert float(bernoulli_kl(values[0], values[-1])) == pytest.approx(float(values[-1]), rel=1e-5)
    assert float(bernoulli_disagreement(values[0], values[-1])) == 1.0
