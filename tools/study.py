"""Train the methods of a study on all its seeds, choose on one set, report on another; one table.

    python tools/study.py --study configs/studies/digits.yaml --output output/studies/digits

The file says which methods, candidates, cases and seeds (sed/studies/study_file.py; configs/studies has examples).
Every method has the same steps, labels, weights and order of data by seed, and the supervised baseline's burn-in.
Candidates are compared on the tune set with seeds of their own; nothing is chosen on the test set. Finished runs are
kept and never repeated: the command can be stopped at any time, killed too, and given again. Leaves choices.md,
table.md, results.json and, where the file has `sizes`, ap_by_size.png and ap_by_scale.png, all of the methods that
--only names, else of all. With `--kept FILE` finished runs are also taken from and added to that file, which is small
enough for a repository (docs/results/runs).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from sed.cli.arguments import duration, stoppable
from sed.cli.engines import USER_ERRORS
from sed.cli.last_resort import last_resort
from sed.cli.study import make_runner, read_set
from sed.data.files import save_text, try_folder
from sed.studies.kept_runs import collect, read_kept
from sed.studies.study_data import check_sets
from sed.studies.study_file import Study, read_study
from sed.studies.study_pictures import ap_by_scale, ap_by_size
from sed.studies.study_plan import Plan, choose
from sed.studies.study_table import by_scale, by_size, choices, scales, summary, table


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, required=True, metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each (default 2)")
    parser.add_argument("--time", type=duration, metavar="12m", help="stop after so long (s, m or h), to go on later")
    parser.add_argument("--kept", type=Path, metavar="FILE", help="take finished runs from FILE and add new ones to it")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="methods to run and to report")
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error("--jobs is at least 1")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, then print and write what was found."""
    args = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        try:
            with stoppable(args.time):
                study, found = run(args)
        finally:
            if args.kept and args.output.exists():
                collect(args.output, args.kept)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stop:
        print("stopped; give the command again to go on", file=sys.stderr)
        sys.exit(getattr(stop, "code", 130))
    text = table(study, found["test"], found["equal seconds"])
    if len(study.cases) > 1:
        text = summary(study, found["test"]) + "\n" + text
    if study.sizes:
        text += "\n" + scales(study, found["test"])
    write(study, args.output, text, found)
    print(f"\n{text}")


def run(args: argparse.Namespace) -> tuple[Study, dict]:
    """Run what is missing; the study, and what was chosen and found in it."""
    study = read_study(args.study)
    plan = Plan(study, args.output, args.only)
    with tqdm(total=plan.size, unit="run") as bar:
        runner = make_runner(study.config, args.jobs, bar)
        if args.kept and args.kept.exists():
            runner.kept = {args.output / name: run for name, run in read_kept(args.kept).items()}
        plan.check(runner)
        try_folder(args.output, "--output")
        runner.before = partial(check_sets, study, runner.config, read_set)
        tuned = plan.tune(runner)
        chosen = choose(tuned)
        for name in plan.tuned:
            bar.write(f"{name}: {chosen[name]}")
        if tuned:
            save_text(choices(study, tuned, chosen), args.output / "choices.md")
        reported = plan.report(runner, chosen)
        equal = plan.report_equal_seconds(runner, chosen, reported)
    return study, {"chosen": chosen, "tuned": tuned, "test": reported, "equal seconds": equal}


def write(study: Study, output: Path, text: str, results: dict) -> None:
    """table.md, results.json and the pictures."""
    save_text(text, output / "table.md")
    save_text(json.dumps(results, indent=1), output / "results.json")
    main_case: dict = results["test"][study.main_case]
    if study.sizes:
        ap_by_size(output / "ap_by_size.png", by_size(main_case))
        ap_by_scale(output / "ap_by_scale.png", by_scale(main_case))


if __name__ == "__main__":
    with last_resort():
        main()
