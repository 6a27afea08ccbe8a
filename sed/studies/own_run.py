"""Training on one's own data: the supervised baseline and a method from one burn-in, compared, the better one kept.

<output>/supervised/, <output>/<method>/    the two runs; <output>/*.log what they print
<output>/report.html                        the verdict, the table, the curves, pictures
<output>/model.pth                          the better model of the two, for `ssod predict` and `ssod export`
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from tqdm import tqdm

from sed.data.catalog import load_dataset
from sed.engine import build, checkpoint
from sed.evaluation.coco import format_table
from sed.runtime.checkpoint_files import checkpoint_path
from sed.studies.processes import call
from sed.studies.report import better_model, table_rows, verdict, write_report
from sed.studies.run_results import METRICS_FILE, RunResults, read_metrics, read_run, write_results
from sed.studies.side_by_side import Arm, Display
from sed.studies.study_file import Words
from sed.studies.study_runs import Evaluation, Run, Runner
from sed.studies.two_runs import Found, Pair, evaluate_last

CONFIG, MODEL, REPORT = "config.yaml", "model.pth", "report.html"
SUPERVISED = "supervised"
LABELS = {SUPERVISED: "Supervised baseline", "sed": "SED", "sed_plus": "SED plus", "pseudo_label": "Pseudo-labels"}
TRIAL = 20  # steps of the trial that measures how long a step takes; the first half is supervised
Tell = Callable[[str], None]
Load = Callable[[str | None, Words], CfgNode]


def measure_steps(words: Sequence[str], folder: Path, threads: int) -> tuple[float, float]:
    """Seconds of a supervised step and of one with unlabelled images, by a short training of each.

    Args:
        words: `--config-file FILE KEY VALUE ...`, as a command line has them.
        folder: for what is left of it; removed at the end.
        threads: of the process.
    """
    seconds = []
    for burn_in in (TRIAL, 0):
        remove(folder)
        short = ["SOLVER.MAX_ITER", str(TRIAL), "SEMI.BURN_IN", str(burn_in), "TEST.EVAL_PERIOD", "0"]
        short += ["SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "5", "OUTPUT_DIR", str(folder)]
        short += ["SED_PLUS.THRESHOLD", "0.05", "PSEUDO_LABEL.THRESHOLD", "0.05"]  # so that there are pseudo-labels
        short += ["DATASETS.TEST", "[]", "TRACKER", ""]
        try:
            call("sed.cli.train_net", [*words, *short], folder.with_suffix(".log"), threads)
            seconds.append(next(r["seconds_per_step"] for r in read_metrics(folder / METRICS_FILE) if "loss" in r))
        finally:
            remove(folder)
    return seconds[0], seconds[1]


def remove(folder: Path) -> None:
    """Delete a folder, if there is one."""
    shutil.rmtree(folder, ignore_errors=True)


def train_pair(output: Path, cfg: CfgNode, load: Load, baseline: bool, jobs: int, threads: int) -> list[str]:
    """Train what is not finished; the names of the runs, the baseline first.

    Raises:
        SystemExit: where a training fails, with the end of what it printed.
    """
    method, nothing = cfg.SEMI.METHOD, Evaluation("", models=())
    first = Run(output / SUPERVISED, ("SEMI.METHOD", SUPERVISED), nothing)
    runs = [first] if baseline or method == SUPERVISED else []
    if method != SUPERVISED:
        own = Run(output / method, (), nothing, first if baseline else None, not baseline)
        runs.append(own)
    steps, burn_in = cfg.SOLVER.MAX_ITER, cfg.SEMI.BURN_IN
    names = [run.folder.name for run in runs]
    arms = [Arm(LABELS[n], [], output / n, steps, steps if n == SUPERVISED else burn_in) for n in names]
    with Display(arms) as display, tqdm(total=len(runs), disable=True) as bar:
        display.keep_showing()
        runner = Runner(output / CONFIG, load, "sed.cli.train_net", "sed.cli.evaluate_scales", jobs, bar)
        runner.threads = threads
        runner.run_all(runs)
    return names


def compare_pair(output: Path, cfg: CfgNode, names: Sequence[str], commands: Sequence[str], tell: Tell) -> None:
    """Evaluate the last weights, write the report, and keep the better model as model.pth."""
    source = cfg.DATASETS.TEST[0]
    test = load_dataset(source)
    runs: list[RunResults] = []
    found: list[Found] = []
    for name in names:
        folder = output / name
        scores, detections = evaluate_last(cfg, folder, test)
        rows = [read_metrics(output / run / METRICS_FILE) for run in dict.fromkeys((names[0], name))]
        write_results(folder, scores, dataset=f"the {len(test)} images to evaluate on", seconds=training_seconds(*rows))
        runs.append(read_run(folder, LABELS[name]))
        found.append(detections)
    tell(f"\n{format_table(table_rows(*runs))}\n")
    if len(runs) == 1:
        keep_model(cfg, output, names[0], better_model(runs[0]))
        if names[0] != SUPERVISED:
            tell("Whether the unlabelled images helped only a baseline can tell.")
        return
    pair = Pair(runs[0], runs[1], (found[0], found[1]), test)
    difference, by_class = pair.differences()
    behind = difference.mean < 0
    kept = (names[0], better_model(runs[0])) if behind else (names[1], "teacher")
    note = f"{MODEL} is the {'baseline, which is better here' if behind else 'model with unlabelled images'}."
    write_report(
        output / REPORT,
        *runs,
        title="Did the unlabelled images help?",
        sheet=pair.sheet(),
        sheet_caption=pair.caption("the images to evaluate on"),
        difference=difference,
        by_class=by_class,
        note=note,
        commands=commands,
    )
    keep_model(cfg, output, *kept)
    tell(f"{verdict(*runs, difference, by_class)} {note}")


def keep_model(cfg: CfgNode, output: Path, name: str, which: str) -> None:
    """Write the weights of a run's last "student" or "teacher" as model.pth."""
    detector = build.build_student(cfg, "")
    checkpoint.load_weights(detector, checkpoint_path(output / name, cfg.SOLVER.MAX_ITER), which)
    checkpoint.save_atomic(checkpoint.plain_weights(detector), output / MODEL)


def training_seconds(*runs: Sequence[dict]) -> float:
    """Seconds of all steps of a run, without evaluations, by the rows of its metrics.jsonl.

    Where it began at the end of another run's burn-in, the rows of that run come first.
    """
    own = {row["step"]: row["seconds_per_step"] for row in runs[-1] if row.get("seconds_per_step")}
    before = {row["step"]: row["seconds_per_step"] for row in runs[0] if row.get("seconds_per_step")}
    first = min(own, default=0)
    total, last = 0.0, 0
    for step, seconds in sorted(({step: s for step, s in before.items() if step < first} | own).items()):
        total, last = total + seconds * (step - last), step
    return total


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu() -> bool:
    """Whether there is a GPU that PyTorch can use."""
    return torch.cuda.is_available()
