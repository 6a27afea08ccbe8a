import pytest
import torch

from sed.core import reweighting
from sed.core.reweighting import focal, histogram, make_reweight, mean, ohem
from tests.reference import equations

LITERAL = {
    "histogram": lambda kl, g: equations.equation_5(kl, g, 7),
    "none": equations.plain_mean,
    "ohem": lambda kl, g: equations.hard_examples(kl, g, 0.1),
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
    loss = make_reweight(kind, bins=7)(kl, g, mask)
    counted = [i for i in range(kl.numel()) if mask.flatten()[i]]
    assert counted
    slow = LITERAL[kind]([kl.flatten()[i] for i in counted], [float(g.flatten()[i]) for i in counted])
    torch.testing.assert_close(loss, slow)
    torch.testing.assert_close(torch.autograd.grad(loss, kl), torch.autograd.grad(slow, kl))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    kl, g, mask = samples(1, shape=(2, 6))
    assert torch.autograd.gradcheck(lambda x: make_reweight(kind, bins=7)(x, g, mask), (kl,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0,), (0, 5, 1), (4, 3)])
def test_no_sample_is_a_differentiable_zero(kind, shape):
    kl = torch.ones(shape, requires_grad=True)
    loss = make_reweight(kind, bins=7)(kl, torch.zeros(shape), torch.zeros(shape, dtype=torch.bool))
    assert loss.shape == ()
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(kl.grad, torch.zeros(shape))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_outside_the_mask_change_nothing(kind):
    kl, g, mask = samples(4)
    reweight = make_reweight(kind, bins=7)
    expected = reweight(kl, g, mask)
    ruined_kl = torch.where(mask, kl.detach(), 1e6)
    ruined_g = torch.where(mask, g, 0.999)
    torch.testing.assert_close(reweight(ruined_kl, ruined_g, mask), expected.detach())
    nan = torch.where(mask, kl.detach(), float("nan"))
    torch.testing.assert_close(reweight(nan, torch.where(mask, g, float("nan")), mask), expected.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_order_and_shape_change_nothing(kind):
    kl, g, mask = (value.detach() for value in samples(5))
    reweight = make_reweight(kind, bins=7)
    order = torch.randperm(kl.numel(), generator=torch.Generator().manual_seed(0))
    shuffled = [value.flatten()[order] for value in (kl, g, mask)]
    torch.testing.assert_close(reweight(*shuffled), reweight(kl, g, mask))


@pytest.mark.parametrize("kind", ["histogram", "none", "focal"])
def test_doubling_every_sample_changes_nothing(kind):
    once = [value.detach() for value in samples(6)]
    reweight = make_reweight(kind, bins=7)
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


def test_ohem_and_focal_have_the_mean_as_their_limit():
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
    reweight = make_reweight(kind, bins=7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = reweight(kl, g, mask)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reweight(kl.detach().double(), g.double(), mask).float())


@pytest.mark.parametrize("kind", KINDS)
def test_g_gets_no_gradient(kind):
    kl, g, mask = samples(10)
    g.requires_grad_()
    make_reweight(kind, bins=7)(kl, g, mask).backward()
    assert g.grad is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_reweight("histo"), "histogram, none, ohem, focal"),
        (lambda: make_reweight("histogram", bins=0), "bins"),
        (lambda: ohem(0.0), "fraction"),
        (lambda: ohem(1.5), "fraction"),
        (lambda: focal(-1.0), "gamma"),
    ],
)
def test_invalid_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_counts_of_all_processes_make_the_mean_of_their_losses_the_loss_of_the_whole_batch():
    """Two processes, simulated: each adds the counts of the other."""
    halves = [[value.detach() for value in samples(seed)] for seed in (11, 12)]
    seen = []
    for half in halves:
        histogram(7, lambda counts: (seen.append(counts) or counts, 1))(*half)
    whole = histogram(7)(*(torch.cat(parts) for parts in zip(*halves, strict=True)))
    losses = [histogram(7, lambda counts: (sum(seen), 2))(*half) for half in halves]
    torch.testing.assert_close(sum(losses) / 2, whole)
