"""What `ssod train` does before it trains: read the data, check them, choose the config."""

from __future__ import annotations

import argparse
import json
import logging
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from sed.checks.check import Report, check_data
from sed.checks.findings import ERROR, WARNING
from sed.checks.images import default_workers
from sed.checks.page import data_page, verdict
from sed.cli.check import as_word, make_setup, print_findings, show_progress
from sed.cli.engines import pick
from sed.config import ConfigError, leaves
from sed.data.catalog import load_dataset
from sed.data.errors import DataError
from sed.data.files import save_text
from sed.data.own_sets import TRAIN, UNLABELED, VAL, make_sets
from sed.defaults import CLASSES_KEYS
from sed.runtime.engine import Engine
from sed.studies.own_config import (
    EVALUATIONS,
    LEAST_STEPS,
    Choice,
    recipe,
    recipes,
    schedule,
    seconds_a_step,
    small_sizes,
    write_config,
)
from sed.studies.own_run import CONFIG, SUPERVISED, cores, gpu, measure_steps

SETS = "sets"
RESERVED = 0.85  # share of --time that trainings and evaluations get; the rest is reading and luck


def prepare(args: argparse.Namespace, output: Path, command: str) -> None:
    """Make the sets and, at the end, the config file.

    Args:
        args: see `sed.cli.train`.
        output: the folder of the run.
        command: for the head of the config file.

    Raises:
        DataError: for what cannot be read.
        ConfigError: for a time too short, or words that the config refuses.
        SystemExit: where the check finds errors; all are named, on the page too.
    """
    if not (output / SETS).exists():
        root = dict(zip(args.opts[::2], args.opts[1::2], strict=False)).get("DATASETS.IMAGE_ROOT", "")
        make_sets(args.data, args.val, args.unlabeled, output / SETS, print, root)
    base, why = recipe(gpu())
    print(why)
    file = str(recipes() / base)
    words = own_words(args, output)
    engine = pick(file, words)
    cfg = engine.load_config(file, [*words, *args.opts])
    choices = choose(cfg, examine(cfg, output / SETS), base)
    cfg = engine.load_config(file, [*words, *flat(choices), *args.opts])
    if args.steps:
        choices += schedule(args.steps, dict(leaves(cfg)), "--steps")
    elif args.time:
        choices += schedule(*fit(args, engine, cfg, [file, *words, *flat(choices), *args.opts], output / "trial"))
    cfg = engine.load_config(file, [*words, *flat(choices), *args.opts])
    there, defaults = (
        json.loads(json.dumps(dict(leaves(node)))) for node in (cfg, engine.load_config(None, ("ENGINE", cfg.ENGINE)))
    )
    changes = {key: value for key, value in there.items() if key == "ENGINE" or value != defaults.get(key)}
    head = f"Made by: {command}\n{why}. Reasons are beside what was chosen for these data; the rest is {base}'s."
    save_text(write_config(changes, choices, head), output / CONFIG)
    print(f"config: {output / CONFIG}: {cfg.SOLVER.MAX_ITER} steps, images of {cfg.INPUT.MIN_SIZE_TEST} pixels")


def own_words(args: argparse.Namespace, output: Path) -> list[str]:
    """What the data and the command line say of the config."""
    sets = output / SETS
    extra = [str(sets / UNLABELED)] if (sets / UNLABELED).exists() else []
    words = ["ENGINE", "torchvision", "SEMI.METHOD", args.method, "OUTPUT_DIR", str(output / args.method)]
    words += ["DATASETS.TRAIN", str([str(sets / TRAIN)]), "DATASETS.TEST", str([str(sets / VAL)])]
    words += ["DATASETS.UNLABELED", str(extra), "DATASETS.IMAGE_ROOT", ""]
    classes = str(len(load_dataset(str(sets / TRAIN)).classes))
    return [*words, *(word for key in CLASSES_KEYS.values() for word in (key, classes))]


def examine(cfg: CfgNode, sets: Path) -> Report:
    """The check of the data; errors are printed, all that it finds is on a page.

    Raises:
        SystemExit: for errors.
    """
    names = {"labelled": [str(sets / TRAIN)], "unlabelled": list(cfg.DATASETS.UNLABELED), "test": [str(sets / VAL)]}
    log = logging.getLogger("sed.data")
    level = log.level
    log.setLevel(logging.ERROR)  # what loading would warn of is on the page
    try:
        report = check_data(names, make_setup(cfg, 1), "", load_dataset, default_workers(cores()), show_progress)
    finally:
        log.setLevel(level)
    line = shlex.join(word for row in report.advice for word in (row.key, as_word(row)))
    page = sets.parent / "check.html"
    save_text(data_page(report, "Data check", line), page)
    print_findings(report, (ERROR,))
    for kind, code, number, _ in report.found.groups():
        if kind.severity == WARNING:
            print(f"warning [{code}] {kind.title}: {number}")
    print(f"{verdict(report)} {page}")
    if report.found.has(ERROR):
        sys.exit(1)
    return report


def choose(cfg: CfgNode, report: Report, base: str) -> list[Choice]:
    """What is set otherwise than in the recipe.

    Raises:
        DataError: where there is no box to learn from.
    """
    if not len(report.boxes):
        raise DataError("--data: no box that can be trained on; check.html has what is wrong with them")
    if base == "custom.yaml":
        choices = [Choice(row.key, row.value, row.reason) for row in report.advice]
        bad = not torch.version.hip and torch.cuda.get_device_capability() < (8, 0)
        return choices + [Choice("SOLVER.AMP.ENABLED", False, "this GPU has no bfloat16")] * bad
    choices = small_sizes(report.boxes, report.frames)
    rows = (("SEMI.IMS_PER_BATCH_LABELED", report.labelled), ("SEMI.IMS_PER_BATCH_UNLABELED", report.unlabelled))
    now = dict(leaves(cfg))
    return choices + [Choice(key, count, "there are no more") for key, count in rows if 0 < count < now[key]]


def fit(
    args: argparse.Namespace, engine: Engine, cfg: CfgNode, line: Sequence[str], trial: Path
) -> tuple[int, dict[str, Any], str]:
    """The arguments of `schedule` for --time, by measured steps.

    Raises:
        ConfigError: where the time is too short.
    """
    jobs, threads = side_by_side(args)
    alone = args.method == SUPERVISED
    print("measuring a step", flush=True)
    supervised, both = measure_steps(["--config-file", *line], trial, threads)
    share = cfg.SEMI.BURN_IN / cfg.SOLVER.MAX_ITER
    pair = not args.no_baseline and not alone
    cost = seconds_a_step((supervised, supervised if alone else both), share, jobs > 1, pair)
    images = len(load_dataset(cfg.DATASETS.TEST[0]))
    passes = (EVALUATIONS * 2 + 2) * (1 + pair)  # of student and teacher over the images to evaluate on
    evaluation = passes / jobs * images * supervised / cfg.SEMI.IMS_PER_BATCH_LABELED / 2  # half of a training step's
    steps = int((RESERVED * args.time - evaluation) / cost)
    told = f"{supervised:.2f} s a supervised step, {both:.2f} s one with unlabelled images"
    if steps < LEAST_STEPS:
        least = math.ceil((LEAST_STEPS * cost + evaluation) / RESERVED)
        few = f"--time {args.time:g}s: that is {max(steps, 0)} steps here ({told})"
        raise ConfigError(f"{few}; expected {least}s or more")
    return steps, dict(leaves(cfg)), f"--time; {told}"


def flat(choices: Sequence[Choice]) -> list[str]:
    """Choices as KEY VALUE words."""
    return [word for row in choices for word in (row.key, str(row.value))]


def side_by_side(args: argparse.Namespace) -> tuple[int, int]:
    """(trainings at a time, threads of each): both at once where there is no GPU and more than one core."""
    pair = not args.no_baseline and args.method != SUPERVISED
    jobs = 2 if pair and not gpu() and cores() > 1 else 1
    return jobs, max(1, cores() // jobs)
