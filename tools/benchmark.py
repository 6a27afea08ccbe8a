"""Train every method under equal conditions and print the table of docs/benchmarks.md.

    python tools/benchmark.py --config-file configs/digits.yaml --test digits_test --seeds 0 1 2 \
        --output output/benchmark/digits

What is equal, and how: tools/arms.py. A run that is finished is not run again, so the command can be repeated after an
interruption.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from arms import COLUMNS, CONTROL, Arm, Results, Study

from sed.engine.study import spread

ANCHORED = ("SED.SCALE_TARGET", "teacher")
ARMS = {
    CONTROL: Arm(("SEMI.METHOD", "supervised")),
    "pseudo_label": Arm(("SEMI.METHOD", "pseudo_label")),
    "sed (paper)": Arm(),
    "sed (anchored)": Arm(ANCHORED),
    "sed, no scale term": Arm(("SED.LAMBDA_SCALE", "0.0")),
    "sed (paper), no distillation": Arm(("SED.LAMBDA_DISTILL", "0.0")),
    "sed (paper), no re-weighting": Arm(("SED.REWEIGHT.KIND", "none")),
    "sed (anchored), no distillation": Arm((*ANCHORED, "SED.LAMBDA_DISTILL", "0.0")),
    "sed (anchored), no re-weighting": Arm((*ANCHORED, "SED.REWEIGHT.KIND", "none")),
}


def main() -> None:
    """Run what is missing, then print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--test", required=True, help="the set to report on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides of every arm, after --")
    args = parser.parse_args()
    study = Study(args.config_file, args.test, args.output, tuple(args.opts), args.jobs)
    results = study.run_all({name: ARMS[name] for name in args.arms}, args.seeds)
    table = make_table(results, args.seeds)
    (args.output / "table.md").write_text(table)
    (args.output / "results.json").write_text(json.dumps(results, indent=1))
    print(f"\n{table}")


def make_table(results: Results, seeds: list[int]) -> str:
    """Markdown: a row an arm and model, mean and spread (standard deviation over seeds) of each figure."""
    head = [*COLUMNS, "AP, half-size input", "seconds"]
    lines = [f"Seeds {', '.join(map(str, seeds))}; mean ± standard deviation over seeds.", ""]
    lines += ["| arm | " + " | ".join(head) + " |", "| --- " * (len(head) + 1) + "|"]
    for arm, runs in results.items():
        for model in ("student", "teacher") if arm == CONTROL else ("teacher",):
            cells = [spread([run[model][column] for run in runs.values()]) for column in COLUMNS]
            cells.append(spread([run["half"]["AP"] for run in runs.values()]) if model == "teacher" else "")
            cells.append(str(round(statistics.mean(run["seconds"] for run in runs.values()))))
            lines.append(f"| {arm}{', student' if model == 'student' else ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
