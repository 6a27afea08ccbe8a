"""Check the data of a config before training: every fault at once, with its file, its item and what to do.

    python tools/check_data.py --config-file configs/custom.yaml
    python tools/check_data.py --config-file configs/custom.yaml --num-gpus 4 DATASETS.TRAIN my.json

Reads DATASETS.TRAIN, UNLABELED and TEST, decodes every image (DATALOADER.NUM_WORKERS at a time), looks for images that
are in two sets or nearly so, and suggests settings for the data. Writes check.html and check.json into --output and
ends with code 1 where there is an error, else 0. Words after the flags are KEY VALUE pairs that override the config.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fvcore.common.config import CfgNode
from tqdm import tqdm

from sed.checks.advice import Advice, Setup
from sed.checks.check import Report, check_data
from sed.checks.findings import ERROR, SEVERITIES
from sed.checks.images import Facts, default_workers
from sed.checks.json_files import KEYS
from sed.checks.page import data_page, verdict
from sed.cli.arguments import config_parser, output_folder
from sed.cli.engines import USER_ERRORS, pick
from sed.config import ConfigError, leaves
from sed.data.files import save_text
from sed.defaults import CLASSES_KEYS

SHOWN = 3  # items of one kind on the terminal


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = config_parser(__doc__)
    parser.add_argument("--output", type=Path, default=None, metavar="FOLDER", help="default: OUTPUT_DIR/check")
    parser.add_argument("--num-gpus", type=int, default=1, help="the suggested settings are for so many (default 1)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Check, print, write; ends with code 1 where there is an error."""
    args = parse(arguments)
    log = logging.getLogger("sed.data")
    level = log.level
    log.setLevel(logging.ERROR)  # what loading would warn of is listed below, item by item
    try:
        if args.num_gpus < 1:
            raise ConfigError(f"--num-gpus is {args.num_gpus}; it must be at least 1")
        engine = pick(args.config_file, args.opts)
        cfg = engine.load_config(args.config_file, args.opts)
        folder = output_folder(args.output, cfg.OUTPUT_DIR, "check")
        names = {role: list(cfg.DATASETS[key.rpartition(".")[2]]) for role, key in KEYS.items()}
        workers = default_workers(cfg.DATALOADER.NUM_WORKERS)
        setup = make_setup(cfg, args.num_gpus)
        report = check_data(names, setup, cfg.DATASETS.IMAGE_ROOT, engine.load_dataset, workers, show_progress)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    finally:
        log.setLevel(level)
    line = shlex.join(word for row in report.advice for word in (row.key, as_word(row)))
    save_text(json.dumps(report.as_dict(), indent=1) + "\n", folder / "check.json")
    save_text(data_page(report, f"Data check: {args.config_file}", line), folder / "check.html")
    print_report(report, line)
    print(f"\n{verdict(report)} Pages: {folder}/check.html, {folder}/check.json")
    sys.exit(1 if report.found.has(ERROR) else 0)


def make_setup(cfg: CfgNode, gpus: int) -> Setup:
    """What the check needs of a config."""
    m, i, s = cfg.MODEL, cfg.INPUT, cfg.SEMI
    key = CLASSES_KEYS.get(m.META_ARCHITECTURE, "MODEL.ROI_HEADS.NUM_CLASSES")
    detr = ".DETR." in key
    return Setup(
        classes_key=key,
        num_classes=dict(leaves(cfg))[key],
        min_size=tuple(i.MIN_SIZE_TRAIN),
        max_size=i.MAX_SIZE_TRAIN,
        min_size_test=i.MIN_SIZE_TEST,
        max_size_test=i.MAX_SIZE_TEST,
        anchor_sizes=[] if detr else m.ANCHOR_GENERATOR.SIZES,
        anchor_ratios=[] if detr else m.ANCHOR_GENERATOR.ASPECT_RATIOS,
        labelled=s.IMS_PER_BATCH_LABELED,
        unlabelled=s.IMS_PER_BATCH_UNLABELED,
        rate=cfg.SOLVER.BASE_LR,
        optimizer=cfg.SOLVER.OPTIMIZER,
        iterations=cfg.SOLVER.MAX_ITER,
        steps=tuple(cfg.SOLVER.STEPS),
        burn_in=s.BURN_IN,
        method=s.METHOD,
        percent=s.LABELED_PERCENT,
        count=s.LABELED_COUNT,
        fold=s.FOLD,
        gpus=gpus,
        reference=cfg.SOLVER.REFERENCE_WORLD_SIZE,
    )


def show_progress(results: Iterable[Facts], total: int) -> Iterator[Facts]:
    """A bar with the time left while images are decoded."""
    yield from tqdm(results, total=total, unit="image", desc="images", disable=not total)


def as_word(row: Advice) -> str:
    """The value as one word of a command line: no blanks, so that it needs no more than quotes."""
    return str(row.value).replace(" ", "")


def print_report(report: Report, line: str) -> None:
    """Findings, errors first, then the suggested settings."""
    for row in report.sets:
        print(f"{row['role']:<11}{row['file']}: {row['images']} images, {row['boxes']} boxes")
    print_findings(report, SEVERITIES)
    if report.advice:
        print("\nSettings to start from:")
        for row in report.advice:
            same = " (as it is)" if str(row.value) == str(row.now) else f" (now {row.now})"
            print(f"  {row.key} {shlex.quote(as_word(row))}   # {row.reason}{same}")
        print(f"All of them, for the end of the training command:\n{line}")


def print_findings(report: Report, severities: Sequence[str]) -> None:
    """What was found of some severities, kind by kind."""
    for severity in severities:
        for kind, code, number, kept in report.found.groups():
            if kind.severity != severity:
                continue
            print(f"\n{severity} [{code}] {kind.title}: {number}\n  -> {kind.remedy}")
            for finding in kept[:SHOWN]:
                print(f"  {finding.file}: {finding.item}: {finding.text}")
            if number > SHOWN:
                print(f"  and {number - SHOWN} more")
