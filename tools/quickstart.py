"""Train the supervised baseline and SED plus side by side on the digits benchmark; report what was gained.

    make quickstart        or        python tools/quickstart.py [--output DIR] [KEY VALUE ...]

Both arms see the same labelled images and take the same number of steps. Nothing is chosen on the test set:
the last weights of each run are evaluated on it, once. Read DIR/report.html; each run lies in DIR/<method>.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from fvcore.common.config import CfgNode

from sed.cli.arguments import stoppable
from sed.cli.last_resort import last_resort
from sed.config import ConfigError, load_config
from sed.data.catalog import data_root, load_dataset
from sed.data.digits import ensure_digits
from sed.data.errors import DataError
from sed.evaluation.bootstrap import Difference
from sed.evaluation.coco import format_table
from sed.runtime.checkpoint_files import CheckpointError
from sed.studies.report import table_rows, verdict, write_report
from sed.studies.run_results import read_run, write_results
from sed.studies.side_by_side import Arm, ArmError, run_side_by_side
from sed.studies.two_runs import Pair, evaluate_last

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/quickstart.yaml"
TEST_SET = "digits_test"
ARMS = {"supervised": "Supervised baseline", "sed_plus": "SED plus"}  # SEMI.METHOD -> name on the page
THREADS = 1  # of each arm
STAMP = ".quickstart"  # marks a folder that may be overwritten


def main(arguments: list[str] | None = None) -> None:
    """Make the images, train, evaluate, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "output/quickstart", help="folder of the results")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides, both arms")
    args = parser.parse_args(arguments)
    output = args.output.resolve()
    os.chdir(ROOT)
    try:
        cfg = load_config(CONFIG, args.opts)
        clear(output)
        print("Images: real handwritten digits on cluttered backgrounds (made once)", flush=True)
        ensure_digits(data_root())
        place = output.relative_to(ROOT) if output.is_relative_to(ROOT) else output
        arms = {method: make_arm(method, place, args.opts, cfg) for method in ARMS}
        print(
            f"Training two detectors side by side from the same labelled images; logs: {place}/*.log",
            flush=True,
        )
        with stoppable():
            seconds = run_side_by_side(list(arms.values()), THREADS)
        print(f"Evaluating the last weights of both on {TEST_SET}", flush=True)
        test, found = load_dataset(TEST_SET), {}
        for (method, arm), spent in zip(arms.items(), seconds, strict=True):
            scores, found[method] = evaluate_last(cfg, arm.folder, test)
            line = f"OMP_NUM_THREADS={THREADS} python {shlex.join(arm.command[1:])}"
            write_results(arm.folder, scores, dataset=TEST_SET, command=line, seconds=spent)
    except (ArmError, CheckpointError, ConfigError, DataError) as error:
        sys.exit(f"error: {error}")
    baseline, treated = (read_run(arm.folder, arm.label) for arm in arms.values())
    pair = Pair(baseline, treated, (found["supervised"], found["sed_plus"]), test)
    differences = pair.differences()
    report(place / "report.html", pair, args.opts, differences)
    print(f"\n{format_table(table_rows(baseline, treated))}\n\n{verdict(baseline, treated, *differences)}\n")
    print(f"Report: {place}/report.html")


def clear(output: Path) -> None:
    """Delete an earlier quick start's folder; anything else in its place is an error."""
    if output.exists():
        if not output.is_dir():
            raise ConfigError(f"{output} is a file; --output expects a folder")
        if any(output.iterdir()) and not (output / STAMP).exists():
            raise ConfigError(f"{output} holds something else than a quick start; choose another --output")
        shutil.rmtree(output)
    output.mkdir(parents=True)
    (output / STAMP).touch()


def make_arm(method: str, place: Path, opts: list[str], cfg: CfgNode) -> Arm:
    """The run of one method; the arms differ in SEMI.METHOD and OUTPUT_DIR alone."""
    folder, steps = place / method, cfg.SOLVER.MAX_ITER
    words = ["tools/train_net.py", "--config-file", CONFIG, *opts]
    words += ["SEMI.METHOD", method, "OUTPUT_DIR", str(folder)]
    alone = steps if method == "supervised" else cfg.SEMI.BURN_IN
    return Arm(ARMS[method], [sys.executable, *words], folder, steps, alone)


def report(path: Path, pair: Pair, opts: list[str], differences: tuple[Difference, Mapping[str, Difference]]) -> None:
    """Write the page with the first test images."""
    write_report(
        path,
        pair.baseline,
        pair.treated,
        title="Do unlabelled images make the detector better?",
        sheet=pair.sheet(),
        sheet_caption=pair.caption(TEST_SET),
        difference=differences[0],
        by_class=differences[1],
        commands=[shlex.join(["python", "tools/quickstart.py", *opts]) + "   # runs both of the following"],
    )


if __name__ == "__main__":
    with last_resort():
        main()
