import pytest

from sed.core.schedules import ema_rate, ramp

PAPER = {"start": 0.99, "end": 0.9, "first_drop": 120_000, "max_iter": 180_000}


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.996), (45_000, 0.981941), (90_000, 0.948), (135_000, 0.914059), (180_000, 0.9)]
)
def test_cosine_has_the_values_of_method_10(step, rate):
    values = {**PAPER, "start": 0.996, "policy": "cosine", "burn_in": 0}
    assert ema_rate(step, **values) == pytest.approx(rate, abs=5e-7)


def test_cosine_stays_at_its_end_after_the_last_step():
    assert ema_rate(200_000, policy="cosine", burn_in=0, **PAPER) == pytest.approx(0.9, abs=1e-12)


def test_step_policy_drops_at_the_first_learning_rate_drop():
    rates = [ema_rate(step, policy="step", burn_in=0, **PAPER) for step in (0, 119_999, 120_000, 179_999)]
    assert rates == [0.99, 0.99, 0.9, 0.9]


def test_constant_policy_is_independent_of_the_step():
    rates = {ema_rate(step, policy="constant", burn_in=0, **PAPER) for step in range(0, 180_000, 9999)}
    assert rates == {0.99}


@pytest.mark.parametrize("policy", ["step", "cosine", "constant"])
def test_the_teacher_is_a_copy_until_burn_in_ends(policy):
    rates = [ema_rate(step, policy=policy, burn_in=10, **PAPER) for step in range(12)]
    assert rates[:10] == [0.0] * 10
    assert min(rates[10:]) > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": "linear"}, "step, cosine, constant"),
        ({"start": 1.5}, "1.5"),
        ({"end": -0.1}, "-0.1"),
        ({"max_iter": 0}, "max_iter"),
    ],
)
def test_bad_schedules_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ema_rate(0, **{"policy": "step", "burn_in": 0, **PAPER, **change})


def test_ramp_is_linear_after_burn_in():
    values = [ramp(step, burn_in=100, ramp_steps=10) for step in (0, 99, 100, 101, 105, 110, 5000)]
    assert values == pytest.approx([0, 0, 0, 0.1, 0.5, 1, 1])


def test_no_ramp_is_full_weight_at_the_end_of_burn_in():
    assert [ramp(step, burn_in=3, ramp_steps=0) for step in (0, 2, 3, 4)] == [0.0, 0.0, 1.0, 1.0]
    assert ramp(0, burn_in=0, ramp_steps=0) == 1.0


def test_negative_ramp_is_refused():
    with pytest.raises(ValueError, match="ramp_steps"):
        ramp(0, burn_in=0, ramp_steps=-1)
