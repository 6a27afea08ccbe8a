"""dmt.loss: the gamma ramp (check 7) and mixup with interpolated weights (check 14)."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from dmt.loss import gamma_ramp, mix_share, mix_weights, mixed_loss
from tests.reference import dmt_loss as literal
from tests.reference.dmt_loss import batch


# ---------------------------------------------------------------- check 7: the ramp
@pytest.mark.parametrize(("step", "gamma"), [(0, 0.026952), (1, 0.029771), (50, 1.146019), (100, 4.0), (101, 4.0)])
def test_gamma_ramp(step, gamma):
    assert gamma_ramp(step, 100, 4.0) == pytest.approx(gamma, abs=6e-7)


def test_gamma_ramp_needs_steps():
    with pytest.raises(ValueError, match="steps >= 1"):
        gamma_ramp(0, 0, 4.0)


# ---------------------------------------------------------------- check 14: mixup
def test_mixed_weights():
    found = mix_weights(torch.tensor([0.2, 1.0]), torch.tensor([1, 0]), 0.75)
    torch.testing.assert_close(found, torch.tensor([0.4, 0.8]))


class Quarter:
    def beta(self, a, b):
        assert a == b == 0.5
        return 0.25


def test_share_keeps_the_greater_part():
    assert mix_share(Quarter(), 0.5) == 0.75
    assert mix_share(Quarter(), 0.5, keep_max=False) == 0.25
    assert mix_share(np.random.default_rng(0), 0.0) == 1.0
    drawn = [mix_share(np.random.default_rng(seed), 0.75) for seed in range(50)]
    assert all(0.5 <= share <= 1 for share in drawn)
    assert len(set(drawn)) == 50
    assert drawn[3] == mix_share(np.random.default_rng(3), 0.75)


def test_mixed_loss_equals_the_literal_form():
    logits, labels, weight, _ = batch(12, (9, 4))
    labels, other = labels.clamp(max=3), labels.clamp(max=3).roll(2)
    logits.requires_grad_()
    loss = mixed_loss(logits, labels, other, weight, 0.8)
    slow = literal.mixed(logits, labels.tolist(), other.tolist(), weight.tolist(), 0.8)
    torch.testing.assert_close(loss, slow)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(slow, logits)[0])


def test_unmixed_images_of_weight_one_give_cross_entropy():
    logits, labels, _, _ = batch(13, (9, 4))
    labels = labels.clamp(max=3)
    loss = mixed_loss(logits, labels, labels.roll(1), torch.ones(9), 1.0)
    torch.testing.assert_close(loss, cross_entropy(logits, labels))


def test_mixed_loss_of_no_image_is_a_differentiable_zero():
    logits = torch.zeros(0, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    loss = mixed_loss(logits, none, none, torch.zeros(0), 0.8)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad.shape == (0, 4)
