"""The scaling rule: a recipe for R processes run on W, by batch, learning rate, steps and EMA rates together.

SOLVER.REFERENCE_WORLD_SIZE is Detectron2's key and has its meaning: the number of processes that the config is meant
for; 0 switches the rule off. Each process keeps its share of a batch. With W processes instead of R, k = W / R:

    batches       x k     SEMI.IMS_PER_BATCH_LABELED, _UNLABELED
    learning rate x k     SOLVER.BASE_LR
    steps         / k     MAX_ITER, STEPS, WARMUP_ITERS, periods, BURN_IN, RAMP_STEPS, COLLAPSE_STEPS
    EMA rates     ^ k     SEMI.EMA.START, END: the teacher then forgets as much an image as before

A run sees as many images, drops its rate and evaluates after as many, whatever k is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sed.data.errors import DataError

REFERENCE = "SOLVER.REFERENCE_WORLD_SIZE"
BATCHES = ("SEMI.IMS_PER_BATCH_LABELED", "SEMI.IMS_PER_BATCH_UNLABELED")
STEPS = (  # 0 means "none" or "never" and stays 0; what is not 0 stays at least 1
    "SOLVER.MAX_ITER",
    "SOLVER.STEPS",
    "SOLVER.WARMUP_ITERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
    "SEMI.BURN_IN",
    "SEMI.RAMP_STEPS",
    "SEMI.COLLAPSE_STEPS",
)
RATES = ("SEMI.EMA.START", "SEMI.EMA.END")


def scaling(config: Mapping[str, Any], world_size: int) -> dict[str, Any]:
    """What to change in a config: {dotted key: value}; empty where the rule is off or the number is the same.

    REFERENCE becomes `world_size`, so that applying the rule to the result changes nothing.

    Args:
        config: nested mappings with all keys above, such as a CfgNode.
        world_size: processes of this run.

    Raises:
        DataError: where the processes that the config is meant for do not divide a batch evenly.
    """
    reference = _get(config, REFERENCE)
    if reference < 0:
        raise DataError(f"{REFERENCE} is {reference}; expected a number of processes, or 0 for no scaling")
    if reference in (0, world_size):
        return {}
    factor = world_size / reference
    changes: dict[str, Any] = {}
    for key in BATCHES:
        value = _get(config, key)
        if value % reference:
            raise DataError(
                f"{key} is {value}, which {REFERENCE} {reference} processes cannot divide evenly; set it to a multiple "
                f"of {reference}, or {REFERENCE} to 0"
            )
        changes[key] = value // reference * world_size
    changes["SOLVER.BASE_LR"] = _get(config, "SOLVER.BASE_LR") * factor
    for key in STEPS:
        value = _get(config, key)
        many = isinstance(value, (tuple, list))
        changes[key] = type(value)(_steps(v, factor) for v in value) if many else _steps(value, factor)
    for key in RATES:
        changes[key] = math.pow(_get(config, key), factor)
    changes[REFERENCE] = world_size
    return {key: value for key, value in changes.items() if value != _get(config, key)}


def describe(config: Mapping[str, Any], changes: Mapping[str, Any]) -> list[str]:
    """One line a changed key, from the config before the changes."""
    if not changes:
        return []
    first = f"scaled from {_get(config, REFERENCE)} to {changes[REFERENCE]} processes ({REFERENCE}):"
    rows = [(key, _get(config, key), value) for key, value in changes.items() if key != REFERENCE]
    return [first, *(f"  {key}: {_text(old)} -> {_text(new)}" for key, old, new in rows)]


def _steps(value: int, factor: float) -> int:
    return max(1, round(value / factor)) if value else 0


def _get(config: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
