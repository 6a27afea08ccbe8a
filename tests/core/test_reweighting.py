import pytest
import torch

from sed.core import reweighting
from sed.core.reweighting import RunningHistogram, focal, histogram, make_reweight, mean, ohem
from tests.reference import equations

PARAMETERS = {"bins": 7, "ohem_fraction": 0.3, "focal_gamma": 2.0}
LITERAL = {
    "histogram": lambda kl, g: equations.equation_5(kl, g, 7),
    "none": equations.plain_mean,
    "ohem": lambda kl, g: equations.hard_examples(kl, g, 0.3),
    "focal": lambda kl, g: equations.focal_modulation(kl, g, 2.0),
}
KINDS = sorted(LITERAL)


def samples(seed, shape=(3, 17), share=0.7, dtype=torch.float64):
    source = torch.Generator().manual_seed(seed)
    kl = torch.rand(shape, generator=source, dtype=torch.float64).to(dtype).requires_grad_()
    g = (torch.rand(shape, generator=source, dtype=torch.float64) ** 2).to(dtype)
    return kl, g, torch.rand(shape, generator=source) < share


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [1.0, 0.6, 0.05])
def test_value_and_gradient_equal_the_literal_form(kind, share):
    kl, g, mask = samples(3, share=share)
    loss = make_reweight(kind, **PARAMETERS)(kl, g, mask)
    counted = [i for i in range(kl.numel()) if mask.flatten()[i]]
    assert counted
    slow = LITERAL[kind]([kl.flatten()[i] for i in counted], [float(g.flatten()[i]) for i in counted])
    torch.testing.assert_close(loss, slow)
    torch.testing.assert_close(torch.autograd.grad(loss, kl), torch.autograd.grad(slow, kl))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    kl, g, mask = samples(1, shape=(2, 6))
    assert torch.autograd.gradcheck(lambda x: make_reweight(kind, **PARAMETERS)(x, g, mask), (kl,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0,), (0, 5, 1), (4, 3)])
def test_no_sample_is_a_differentiable_zero(kind, shape):
    kl = torch.ones(shape, requires_grad=True)
    loss = make_reweight(kind, **PARAMETERS)(kl, torch.zeros(shape), torch.zeros(shape, dtype=torch.bool))
    assert loss.shape == ()
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(kl.grad, torch.zeros(shape))


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_mask_hides_has_no_say(kind):
    kl, g, mask = samples(4)
    reweight = make_reweight(kind, **PARAMETERS)
    expected = reweight(kl, g, mask)
    ruined_kl = torch.where(mask, kl.detach(), 1e6)
    ruined_g = torch.where(mask, g, 0.999)
    torch.testing.assert_close(reweight(ruined_kl, ruined_g, mask), expected.detach())
    nan = torch.where(mask, kl.detach(), float("nan"))
    torch.testing.assert_close(reweight(nan, torch.where(mask, g, float("nan")), mask), expected.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_order_and_shape_change_nothing(kind):
    kl, g, mask = (value.detach() for value in samples(5))
    reweight = make_reweight(kind, **PARAMETERS)
    order = torch.randperm(kl.numel(), generator=torch.Generator().manual_seed(0))
    shuffled = [value.flatten()[order] for value in (kl, g, mask)]
    torch.testing.assert_close(reweight(*shuffled), reweight(kl, g, mask))


@pytest.mark.parametrize("kind", ["histogram", "none", "focal"])
def test_doubling_every_sample_changes_nothing(kind):
    once = [value.detach() for value in samples(6)]
    reweight = make_reweight(kind, **PARAMETERS)
    torch.testing.assert_close(reweight(*(torch.cat([v, v]) for v in once)), reweight(*once))


@pytest.mark.parametrize("bins", [1, 10])
def test_all_samples_in_one_bin_give_mean_over_bins(bins):
    kl, _, mask = samples(7)
    g = torch.full_like(kl, 0.42)
    torch.testing.assert_close(histogram(bins)(kl, g, mask), kl[mask].mean() / bins)


def test_bins_are_closed_below_and_the_last_one_above():
    g = torch.tensor([0.0, 0.24, 0.25, 0.5, 0.75, 0.99, 1.0], dtype=torch.float64)
    kl = torch.ones(7, dtype=torch.float64, requires_grad=True)
    histogram(4)(kl, g, torch.ones(7, dtype=torch.bool)).backward()
    counts = [2, 2, 1, 1, 3, 3, 3]
    torch.testing.assert_close(kl.grad, torch.tensor([1 / (4 * r) for r in counts], dtype=torch.float64))


@pytest.mark.parametrize("count", [1, 4095, 4096, 4097, 20_000])
def test_counting_over_lanes_equals_bincount(count):
    index = torch.randint(0, 11, (count,), generator=torch.Generator().manual_seed(count))
    assert torch.equal(reweighting._count(index, 11), torch.bincount(index, minlength=11))


def test_nan_disagreement_keeps_its_index_in_range():
    kl, mask = torch.ones(3), torch.ones(3, dtype=torch.bool)
    for value in (float("nan"), float("inf"), -1.0, 2.0):
        loss = histogram(10)(kl, torch.full((3,), value), mask)
        assert loss.item() == pytest.approx(0.1)


def test_limits_of_the_rivals_are_the_mean():
    kl, g, mask = samples(8)
    expected = mean()(kl, g, mask)
    torch.testing.assert_close(focal(0.0)(kl, g, mask), expected)
    torch.testing.assert_close(ohem(1.0)(kl, g, mask), expected)
    tiny = ohem(1e-6)(kl, g, mask)
    torch.testing.assert_close(tiny, kl[mask].max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(kind, dtype):
    kl, g, mask = samples(9, shape=(5000,), dtype=dtype)
    reweight = make_reweight(kind, **PARAMETERS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = reweight(kl, g, mask)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reweight(kl.detach().double(), g.double(), mask).float())


@pytest.mark.parametrize("kind", KINDS)
def test_g_gets_no_gradient(kind):
    kl, g, mask = samples(10)
    g.requires_grad_()
    make_reweight(kind, **PARAMETERS)(kl, g, mask).backward()
    assert g.grad is None


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("histo", {}, "histogram, none, ohem, focal"),
        ("histogram", {"bins": 0}, "bins"),
        ("ohem", {"ohem_fraction": 0.0}, "fraction"),
        ("ohem", {"ohem_fraction": 1.5}, "fraction"),
        ("focal", {"focal_gamma": -1.0}, "gamma"),
    ],
)
def test_bad_choices_are_refused(kind, change, message):
    with pytest.raises(ValueError, match=message):
        make_reweight(kind, **{**PARAMETERS, **change})


class TestRunningHistogram:
    """R_j as a moving average over steps [D]."""

    def literal(self, steps, bins, momentum):
        """The losses of successive steps, each a list of (kl, g)."""
        counts, losses = [0.0] * bins, []
        for step in steps:
            index = [min(int(g * bins), bins - 1) for _, g in step]
            for j in range(bins):
                now = index.count(j)
                if now:
                    counts[j] = momentum * counts[j] + (1 - momentum) * now if counts[j] else float(now)
            losses.append(sum(kl / counts[j] for (kl, _), j in zip(step, index, strict=True)) / bins)
        return losses

    def test_steps_equal_the_literal_form(self):
        reweight = RunningHistogram(5, 0.75)
        given, found, grads = [], [], []
        for seed in range(4):
            kl, g, mask = samples(seed)
            loss = reweight(kl, g, mask)
            found.append(loss.item())
            grads.append(torch.autograd.grad(loss, kl)[0])
            given.append(
                [
                    (k, d)
                    for k, d, m in zip(kl.flatten().tolist(), g.flatten().tolist(), mask.flatten(), strict=True)
                    if m
                ]
            )
        assert found == pytest.approx(self.literal(given, 5, 0.75), rel=1e-5)
        torch.testing.assert_close((grads[-1] * kl).sum().item(), found[-1])  # linear in kl
        assert not reweight.counts.requires_grad

    def test_by_hand(self):
        """One bin: 4 samples, then 2: R = 4, then .5 x 4 + .5 x 2 = 3."""
        reweight = RunningHistogram(1, 0.5)
        ones = torch.ones(4)
        assert reweight(ones, ones * 0, ones > 0).item() == pytest.approx(1)
        assert reweight(ones[:2], ones[:2] * 0, ones[:2] > 0).item() == pytest.approx(2 / 3)
        assert reweight(ones[:0], ones[:0], ones[:0] > 0).item() == 0  # an empty step changes nothing
        assert reweight.counts[0].item() == pytest.approx(3)

    def test_the_first_step_is_equation_5(self):
        kl, g, mask = samples(2)
        torch.testing.assert_close(RunningHistogram(7, 0.9)(kl, g, mask), histogram(7)(kl, g, mask))

    def test_its_state_is_saved(self):
        first, second = RunningHistogram(7, 0.9), RunningHistogram(7, 0.9)
        for seed in range(3):
            first(*samples(seed))
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(*samples(5)), second(*samples(5)))

    @pytest.mark.parametrize(("bins", "momentum"), [(0, 0.5), (5, 1.0), (5, -0.1)])
    def test_out_of_range_is_refused(self, bins, momentum):
        with pytest.raises(ValueError, match="expected bins"):
            RunningHistogram(bins, momentum)
