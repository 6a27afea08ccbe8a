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
from pathlib import Path

from fvcore.common.config import CfgNode

from sed.cli.arguments import stoppable
from sed.cli.last_resort import last_resort
from sed.config import ConfigError, load_config
from sed.data.catalog import data_root, load_dataset
from sed.data.digits import ensure_digits
from sed.data.errors import DataError
from sed.data.records import Dataset
from sed.engine import build, checkpoint
from sed.evaluation.bootstrap import Difference, compare
from sed.evaluation.coco import detect_all, format_table, score
from sed.evaluation.pictures import draw_found, draw_truth
from sed.evaluation.visualize import contact_sheet
from sed.runtime.checkpoint_files import CheckpointError, checkpoint_path
from sed.studies.report import RunResults, better_model, read_run, table_rows, verdict, write_report, write_results
from sed.studies.side_by_side import Arm, ArmError, run_side_by_side

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/quickstart.yaml"
TEST_SET = "digits_test"
ARMS = {"supervised": "Supervised baseline", "sed_plus": "SED plus"}  # SEMI.METHOD -> name on the page
THREADS = 1  # of each arm
SHOWN, SHOWN_SCORE, CELL = 8, 0.5, 256  # the first images of the test set; detections from this score on
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
            scores, found[method] = evaluate(cfg, arm.folder, test)
            line = f"OMP_NUM_THREADS={THREADS} python {shlex.join(arm.command[1:])}"
            write_results(arm.folder, scores, dataset=TEST_SET, command=line, seconds=spent)
    except (ArmError, CheckpointError, ConfigError, DataError) as error:
        sys.exit(f"error: {error}")
    baseline, treated = (read_run(arm.folder, arm.label) for arm in arms.values())
    before, after = found["supervised"][better_model(baseline)], found["sed_plus"]["teacher"]
    difference = compare(before, after, test)["AP"]
    report(place / "report.html", baseline, treated, test, found, args.opts, difference)
    print(f"\n{format_table(table_rows(baseline, treated))}\n\n{verdict(baseline, treated, difference)}\n")
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


def evaluate(cfg: CfgNode, folder: Path, test: Dataset) -> tuple[dict[str, dict[str, float]], dict[str, list[dict]]]:
    """Scores and detections of a run's last student and teacher."""
    device, scores, found = build.resolve_device(cfg.MODEL.DEVICE), {}, {}
    for which in ("student", "teacher"):
        detector = build.build_student(cfg, "")
        checkpoint.load_weights(detector, checkpoint_path(folder, cfg.SOLVER.MAX_ITER), which)
        batches = build.batches_of(cfg, test, detector.size_divisibility)()
        found[which] = detect_all(detector.to(device), batches, device)
        scores[which] = score(found[which], test)
    return scores, found


def report(
    path: Path,
    baseline: RunResults,
    treated: RunResults,
    test: Dataset,
    found: dict[str, dict[str, list]],
    opts: list[str],
    difference: Difference,
) -> None:
    """Write the page with the first test images."""
    rows = [
        [(draw_truth(record, test.classes, CELL), "ground truth")]
        + [
            (draw_found(record, rows["teacher"], test.classes, SHOWN_SCORE, CELL), run.label)
            for run, rows in zip((baseline, treated), found.values(), strict=True)
        ]
        for record in test.records[:SHOWN]
    ]
    write_report(
        path,
        baseline,
        treated,
        title="Do unlabelled images make the detector better?",
        sheet=contact_sheet(rows, CELL),
        sheet_caption=f"The first {SHOWN} images of {TEST_SET}, not selected. Detections of the EMA teachers "
        f"with a score of at least {SHOWN_SCORE}; a colour is a class.",
        difference=difference,
        commands=[shlex.join(["python", "tools/quickstart.py", *opts]) + "   # runs both of the following"],
    )


if __name__ == "__main__":
    with last_resort():
        main()
