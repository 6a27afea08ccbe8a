"""The paper's ablations as overrides of one config, and their tables with the paper's figures beside the measured ones.

    python tools/ablate.py --config-file configs/coco_10.yaml --test coco_2017_val --output output/ablate
    python tools/ablate.py --config-file configs/coco_10.yaml --test coco_2017_val --tables 4 10 --folds 0 1 2 3 4 \
        --num-gpus 8 --jobs 1 --output output/ablate
    python tools/ablate.py --config-file configs/digits.yaml --test digits_test --tables 4 10 --seeds 0 1 2 \
        --output output/ablate_digits

Runs that several tables share are run once; a finished run is not run again, so the command can be repeated after an
interruption. Which runs, and how the paper is read where it leaves something open:
sed/studies/ablations.py; what is equal between them, and what a seed is: sed/studies/study_runs.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from sed.cli.arguments import stoppable
from sed.cli.engines import USER_ERRORS
from sed.cli.last_resort import last_resort
from sed.cli.study import make_runner
from sed.data.files import save_text, try_folder
from sed.studies.ablations import TABLES, detector_of, make_cases, make_runs, make_table, without_pair


def main() -> None:
    """Run what is missing, then print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--test", required=True, help="the set to report on")
    parser.add_argument("--tables", type=int, nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folds", type=int, nargs="+", default=[], help="SEMI.FOLD; every fold with every seed")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--num-gpus", type=int, default=1, help="of each training, as tools/train_net.py has it")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides of every arm, after --")
    args = parser.parse_args()
    cases = make_cases(args.seeds, args.folds)
    try:
        lost = without_pair(args.config_file, args.opts)
        wanted = list(dict.fromkeys(arm for table in args.tables for arm, _ in TABLES[table][1]))
        for arm in (arm for arm in wanted if arm in lost):
            print(f"{arm}: left out, {lost[arm]}")
        wanted = [arm for arm in wanted if arm not in lost]
        with stoppable(), tqdm(total=0, unit="run") as bar:
            runner = make_runner(args.config_file, args.jobs, bar)
            if args.num_gpus > 1:
                runner.train_flags = ("--num-gpus", str(args.num_gpus))
            runs = make_runs(wanted, cases, args.config_file, args.opts, args.test, args.output)
            for arm, row in list(runs.items()):  # a baseline that is in no table, where runs share its burn-in
                if any(map(runner.shares_burn_in, row)):
                    runs.setdefault(detector_of(arm), [run.baseline for run in row if run.baseline])
            bar.total = sum(map(len, runs.values()))
            try_folder(args.output, "--output")
            found = runner.run_all([run for row in runs.values() for run in row])
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    results = {arm: {case: found[r.folder] for case, r in zip(cases, runs[arm], strict=True)} for arm in wanted}
    text = "\n".join(make_table(table, results, args.seeds, args.folds) for table in args.tables)
    save_text(text, args.output / "tables.md")
    save_text(json.dumps(results, indent=1), args.output / "results.json")
    print(f"\n{text}")


if __name__ == "__main__":
    with last_resort():
        main()
