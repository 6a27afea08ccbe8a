"""SOLVER.REFERENCE_WORLD_SIZE: a recipe on another number of processes."""

from __future__ import annotations

import math

import pytest
from fvcore.common.config import CfgNode

from sed.config import load_config
from sed.data.errors import DataError
from sed.defaults import get_cfg
from sed.runtime.scaling import describe, scaling

PAPER = {
    "SOLVER.REFERENCE_WORLD_SIZE": 8,
    "SEMI.IMS_PER_BATCH_LABELED": 8,
    "SEMI.IMS_PER_BATCH_UNLABELED": 16,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.MAX_ITER": 180000,
    "SOLVER.STEPS": (120000, 160000),
    "SOLVER.WARMUP_ITERS": 1000,
    "SOLVER.CHECKPOINT_PERIOD": 5000,
    "TEST.EVAL_PERIOD": 4000,
    "SEMI.BURN_IN": 10000,
    "SEMI.RAMP_STEPS": 2000,
    "SEMI.COLLAPSE_STEPS": 1000,
    "SEMI.EMA.START": 0.99,
    "SEMI.EMA.END": 0.9,
}
ONE = {  # one process instead of eight
    "SOLVER.REFERENCE_WORLD_SIZE": 1,
    "SEMI.IMS_PER_BATCH_LABELED": 1,
    "SEMI.IMS_PER_BATCH_UNLABELED": 2,
    "SOLVER.BASE_LR": 0.00125,
    "SOLVER.MAX_ITER": 1440000,
    "SOLVER.STEPS": (960000, 1280000),
    "SOLVER.WARMUP_ITERS": 8000,
    "SOLVER.CHECKPOINT_PERIOD": 40000,
    "TEST.EVAL_PERIOD": 32000,
    "SEMI.BURN_IN": 80000,
    "SEMI.RAMP_STEPS": 16000,
    "SEMI.COLLAPSE_STEPS": 8000,
    "SEMI.EMA.START": 0.99 ** (1 / 8),
    "SEMI.EMA.END": 0.9 ** (1 / 8),
}


def config(values: dict, **changed: object) -> CfgNode:
    """The defaults with these; changed by KEY__PART=value."""
    cfg = get_cfg()
    more = {key.replace("__", "."): value for key, value in changed.items()}
    cfg.merge_from_list([word for pair in {**values, **more}.items() for word in pair])
    return cfg


def test_off_by_default_and_where_nothing_differs() -> None:
    assert get_cfg().SOLVER.REFERENCE_WORLD_SIZE == 0
    assert all(scaling(get_cfg(), processes) == {} for processes in (1, 3, 8))
    assert scaling(config(PAPER), 8) == {}
    assert describe(get_cfg(), {}) == []


@pytest.mark.parametrize(("start", "processes", "wanted"), [(PAPER, 1, ONE), (ONE, 8, PAPER)], ids=["8 to 1", "1 to 8"])
def test_every_key_by_hand(start: dict, processes: int, wanted: dict) -> None:
    changes = scaling(config(start), processes)
    assert set(changes) == set(wanted)
    for key, value in wanted.items():
        assert changes[key] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), key
        assert type(changes[key]) is type(value)


def test_there_and_back_and_twice() -> None:
    there = config(PAPER)
    for processes in (2, 1, 4, 8):
        changes = scaling(there, processes)
        there.merge_from_list([word for pair in changes.items() for word in pair])
        assert scaling(there, processes) == {}
    for key, value in PAPER.items():
        node, leaf = there, key.split(".")
        for part in leaf:
            node = node[part]
        assert node == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), key


@pytest.mark.parametrize("processes", [1, 2, 4, 16, 24])
def test_what_stays_the_same_is_counted_in_images(processes: int) -> None:
    old = config(PAPER)
    new = config(PAPER)
    new.merge_from_list([word for pair in scaling(old, processes).items() for word in pair])

    def images(cfg: CfgNode, steps: int) -> int:
        return steps * cfg.SEMI.IMS_PER_BATCH_LABELED

    for section, key in (("SOLVER", "MAX_ITER"), ("SEMI", "BURN_IN"), ("TEST", "EVAL_PERIOD")):
        assert images(new, new[section][key]) == pytest.approx(images(old, old[section][key]), rel=1e-3)
    for key in ("START", "END"):  # how many images the teacher takes to forget half
        half_life = [images(cfg, 1) * math.log(0.5) / math.log(cfg.SEMI.EMA[key]) for cfg in (old, new)]
        assert half_life[1] == pytest.approx(half_life[0], rel=1e-12)
    assert new.SEMI.IMS_PER_BATCH_LABELED / processes == 1
    assert new.SOLVER.BASE_LR / images(new, 1) == pytest.approx(old.SOLVER.BASE_LR / images(old, 1))


def test_never_stays_never_and_a_period_stays_a_period() -> None:
    words = {"SEMI__BURN_IN": 0, "SEMI__RAMP_STEPS": 0, "TEST__EVAL_PERIOD": 0, "SEMI__COLLAPSE_STEPS": 0}
    cfg = config(PAPER, **words, SOLVER__REFERENCE_WORLD_SIZE=1, SOLVER__CHECKPOINT_PERIOD=3, SOLVER__WARMUP_ITERS=1)
    changes = scaling(cfg, 16)
    assert changes.keys().isdisjoint(key.replace("__", ".") for key in words)
    assert changes["SOLVER.CHECKPOINT_PERIOD"] == 1
    assert "SOLVER.WARMUP_ITERS" not in changes


def test_extreme_rates_stay_rates() -> None:
    changes = scaling(config(PAPER, SEMI__EMA__START=1.0, SEMI__EMA__END=0.0), 2)
    assert changes.keys().isdisjoint(["SEMI.EMA.START", "SEMI.EMA.END"])


@pytest.mark.parametrize("key", ["SEMI.IMS_PER_BATCH_LABELED", "SEMI.IMS_PER_BATCH_UNLABELED"])
def test_a_batch_that_does_not_divide(key: str) -> None:
    cfg = config({**PAPER, key: 12})
    with pytest.raises(DataError, match=rf"{key} is 12, which .* 8 processes cannot divide evenly; set it to a mult"):
        scaling(cfg, 4)
    assert scaling(cfg, 8) == {}


def test_a_negative_number_of_processes() -> None:
    cfg = load_config()
    cfg.SOLVER.REFERENCE_WORLD_SIZE = -1
    with pytest.raises(DataError, match="REFERENCE_WORLD_SIZE is -1; expected a number of processes"):
        scaling(cfg, 2)


def test_one_line_a_changed_key() -> None:
    cfg = config(PAPER, SEMI__RAMP_STEPS=0)
    lines = describe(cfg, scaling(cfg, 4))
    assert lines[0] == "scaled from 8 to 4 processes (SOLVER.REFERENCE_WORLD_SIZE):"
    assert lines[1:] == [
        "  SEMI.IMS_PER_BATCH_LABELED: 8 -> 4",
        "  SEMI.IMS_PER_BATCH_UNLABELED: 16 -> 8",
        "  SOLVER.BASE_LR: 0.01 -> 0.005",
        "  SOLVER.MAX_ITER: 180000 -> 360000",
        "  SOLVER.STEPS: (120000, 160000) -> (240000, 320000)",
        "  SOLVER.WARMUP_ITERS: 1000 -> 2000",
        "  SOLVER.CHECKPOINT_PERIOD: 5000 -> 10000",
        "  TEST.EVAL_PERIOD: 4000 -> 8000",
        "  SEMI.BURN_IN: 10000 -> 20000",
        "  SEMI.COLLAPSE_STEPS: 1000 -> 2000",
        "  SEMI.EMA.START: 0.99 -> 0.994987",
        "  SEMI.EMA.END: 0.9 -> 0.948683",
    ]
