"""The paper's ablations as overrides of one config, and their tables with the paper's figures beside the measured ones.

    python tools/ablate.py --config-file configs/coco_10.yaml --test coco_2017_val --output output/ablate
    python tools/ablate.py --config-file configs/digits.yaml --test digits_test --tables 4 10 --seeds 0 1 2 \
        --output output/ablate_digits

Runs that several tables share are run once; a finished run is not run again, so the command can be repeated after an
interruption. What is equal between the arms, and what a seed is: sed/studies/study_runs.py. [O] marks what the paper
leaves open.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from sed.cli.engines import USER_ERRORS
from sed.cli.study import make_runner
from sed.config import load_config
from sed.data.files import save_text
from sed.studies.study_file import Words
from sed.studies.study_runs import Evaluation, Result, Run
from sed.studies.wording import slug, spread

Results = dict[str, dict[int, Result]]  # arm -> seed -> result
CONTROL = "supervised"
NO_SCALE, NO_DISTILL = ("SED.LAMBDA_SCALE", "0.0"), ("SED.LAMBDA_DISTILL", "0.0")
PLAIN = ("SED.REWEIGHT.KIND", "none")
RETINANET = ("MODEL.META_ARCHITECTURE", "ScaleConsistentRetinaNet", "MODEL.RESNETS.DEPTH", "18")
# arm -> overrides; arms of Tab. 8 are another detector and have a control of their own
ARMS: dict[str, tuple[str, ...]] = {
    CONTROL: ("SEMI.METHOD", "supervised"),
    "scale, plain mean": (*NO_DISTILL, *PLAIN),
    "scale": NO_DISTILL,
    "distillation, plain mean": (*NO_SCALE, *PLAIN),
    "distillation": NO_SCALE,
    "all, hard targets": ("SED.DISTILL_TARGET", "hard"),
    "all": (),
    "all, plain mean": PLAIN,
    "all, OHEM": ("SED.REWEIGHT.KIND", "ohem"),
    "all, focal": ("SED.REWEIGHT.KIND", "focal"),
    "all, cosine EMA": ("SEMI.EMA.POLICY", "cosine", "SEMI.EMA.START", "0.996", "SEMI.EMA.END", "0.9"),
    "all, constant EMA": ("SEMI.EMA.POLICY", "constant", "SEMI.EMA.START", "0.95"),
    "distillation, wide jitter": NO_SCALE,  # and the sizes of `wide_jitter`
    **{f"RetinaNet, scale, rate {2**s}": (*RETINANET, *NO_DISTILL, "SED.MAX_SCALE", str(s)) for s in (1, 2, 3, 4)},
}
# table -> what it shows, and its rows: (arm, the paper's COCO AP)
TABLES: dict[int, tuple[str, list[tuple[str, float]]]] = {
    4: (
        "terms and targets",
        [
            (CONTROL, 23.86),
            ("scale, plain mean", 26.8),
            ("scale", 30.1),
            ("distillation, plain mean", 29.8),
            ("distillation", 31.4),
            ("all, hard targets", 29.5),
            ("all", 34.0),
        ],
    ),
    # [O] the first two rows are read as runs without the scale term: 31.4 is that row of Tab. 4
    6: ("scale jitter", [("distillation", 31.4), ("distillation, wide jitter", 32.0), ("all", 34.0)]),
    # [O] read as the scale term alone: 26.1 is far below the 31.4 that Tab. 5 has for all of SED on this detector
    8: (
        "down-sampling rate",
        [(f"RetinaNet, scale, rate {2**s}", ap) for s, ap in enumerate((26.1, 25.2, 23.1, 21.1), 1)],
    ),
    9: ("EMA schedule", [("all, cosine EMA", 33.0), ("all", 34.1), ("all, constant EMA", 32.0)]),
    10: ("re-weighting", [("all, plain mean", 30.1), ("all, OHEM", 31.4), ("all, focal", 31.2), ("all", 34.0)]),
}


def main() -> None:
    """Run what is missing, then print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--test", required=True, help="the set to report on")
    parser.add_argument("--tables", type=int, nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides of every arm, after --")
    args = parser.parse_args()
    wanted = list(dict.fromkeys(arm for table in args.tables for arm, _ in TABLES[table][1]))
    try:
        with tqdm(total=(len(wanted) + (CONTROL not in wanted)) * len(args.seeds), unit="run") as bar:
            runner = make_runner(args.config_file, args.jobs, bar)
            runs = make_runs(wanted, args)
            needed = [row for row in runs.values() if any(map(runner.shares_burn_in, row))]
            if CONTROL not in wanted and needed:  # their burn-in
                runs[CONTROL] = [run.baseline for run in needed[0]]
            found = runner.run_all([run for row in runs.values() for run in row])
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    results = {n: {s: found[r.folder] for s, r in zip(args.seeds, runs[n], strict=True)} for n in wanted}
    text = "\n".join(make_table(table, results, args.seeds) for table in args.tables)
    save_text(text, args.output / "tables.md")
    save_text(json.dumps(results, indent=1), args.output / "results.json")
    print(f"\n{text}")


def make_runs(arms: list[str], args: argparse.Namespace) -> dict[str, list[Run]]:
    """A run for every arm and seed; each knows the control of its seed."""
    runs: dict[str, list[Run]] = {name: [] for name in arms}
    for seed in args.seeds:
        control: Run | None = None
        for name in (CONTROL, *(arm for arm in arms if arm != CONTROL)):
            words = (*make_arm(name, args.config_file, args.opts), *args.opts, "SEED", str(seed))
            run = Run(args.output / f"{slug(name)}-{seed}", words, Evaluation(args.test), control)
            control = control or run
            if name in runs:
                runs[name].append(run)
    return runs


def make_arm(name: str, config_file: str, opts: list[str]) -> Words:
    """What an arm changes in the config."""
    return (*ARMS[name], *(wide_jitter(config_file, opts) if name.endswith("wide jitter") else ()))


def wide_jitter(config_file: str, opts: list[str]) -> Words:
    """Tab. 6's [300, 1200] in place of [640, 800], in proportion to the config's own sizes."""
    sizes = load_config(config_file, opts).INPUT
    low, high = min(sizes.MIN_SIZE_TRAIN) * 300 // 640, max(sizes.MIN_SIZE_TRAIN) * 1200 // 800
    longest = max(sizes.MAX_SIZE_TRAIN, sizes.MAX_SIZE_TRAIN * 1200 // 800)
    return ("INPUT.MIN_SIZE_TRAIN", f"({low}, {high})", "INPUT.MAX_SIZE_TRAIN", str(longest))


def make_table(table: int, results: Results, seeds: list[int]) -> str:
    """Markdown: a row an arm, the teacher's measured AP, its gain over the first row, and the paper's two figures."""
    title, rows = TABLES[table]
    lines = [f"Table {table}: {title}. Seeds {', '.join(map(str, seeds))}; mean ± standard deviation over seeds.", ""]
    lines += ["| arm | AP | AP50 | against the first | paper: AP | against the first |", "| --- " * 6 + "|"]
    first = rows[0]
    for arm, paper in rows:
        runs = results[arm]
        ap, ap50 = ([run["teacher"]["full"][column] for run in runs.values()] for column in ("AP", "AP50"))
        base = [results[first[0]][seed]["teacher"]["full"]["AP"] for seed in runs]
        gains = [a - b for a, b in zip(ap, base, strict=True)]
        cells = [spread(ap), spread(ap50), spread(gains), f"{paper:.1f}", f"{paper - first[1]:+.1f}"]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
