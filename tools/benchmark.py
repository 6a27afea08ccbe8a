"""Train every method under equal conditions and print the table of docs/benchmarks.md.

    python tools/benchmark.py --config-file configs/digits.yaml --test digits_test --seeds 0 1 2 \
        --output output/benchmark/digits

All arms of a seed share the labelled images, the weights they start from, the order of the data and the steps. Burn-in
is the same supervised training for all of them, so it is run once, by the control; the others resume from its
checkpoint, which is exact (tests/engine holds resume to be bit for bit). Nothing is chosen on the test set: the final
weights are reported. A run that is finished is not run again, so the command can be repeated after an interruption.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from sed.config import load_config
from sed.data.files import checkpoint_path

TRAIN = Path(__file__).with_name("train_net.py")
CONTROL = "supervised"
ANCHORED = ["SED.SCALE_TARGET", "teacher"]
ARMS: dict[str, list[str]] = {
    CONTROL: ["SEMI.METHOD", "supervised"],
    "pseudo_label": ["SEMI.METHOD", "pseudo_label"],
    "sed (paper)": [],
    "sed (anchored)": ANCHORED,
    "sed, no scale term": ["SED.LAMBDA_SCALE", "0.0"],
    "sed (paper), no distillation": ["SED.LAMBDA_DISTILL", "0.0"],
    "sed (paper), no re-weighting": ["SED.REWEIGHT.KIND", "none"],
    "sed (anchored), no distillation": [*ANCHORED, "SED.LAMBDA_DISTILL", "0.0"],
    "sed (anchored), no re-weighting": [*ANCHORED, "SED.REWEIGHT.KIND", "none"],
}
COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


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
    results: dict[str, dict[int, Future]] = {arm: {} for arm in args.arms}
    with (
        ThreadPoolExecutor(args.jobs) as pool,
        tqdm(total=len(args.seeds) * len(args.arms), unit="run") as bar,
    ):
        controls = {seed: pool.submit(run, args, CONTROL, seed) for seed in args.seeds}
        for arm in args.arms:
            for seed in args.seeds:
                controls[seed].result()  # its checkpoint at the end of burn-in starts the others
                future = controls[seed] if arm == CONTROL else pool.submit(run, args, arm, seed)
                results[arm][seed] = future
                future.add_done_callback(lambda _: bar.update())
        finished = {arm: {seed: job.result() for seed, job in jobs.items()} for arm, jobs in results.items()}
    table = make_table(finished, args.seeds)
    (args.output / "table.md").write_text(table)
    (args.output / "results.json").write_text(json.dumps(finished, indent=1))
    print(f"\n{table}")


def run(args: argparse.Namespace, arm: str, seed: int) -> dict:
    """One arm and seed: train, evaluate the final weights: {"teacher", "student", "half", "seconds"}."""
    folder = args.output / f"{slug(arm)}-{seed}"
    done = folder / "benchmark.json"
    if done.exists():
        return json.loads(done.read_text())
    options = ["SEED", str(seed), "OUTPUT_DIR", str(folder), *ARMS[arm], *args.opts]
    cfg = load_config(args.config_file, options)
    burn_in = ["SOLVER.CHECKPOINT_PERIOD", str(cfg.SEMI.BURN_IN), "SOLVER.CHECKPOINTS_KEPT", "1000"]
    if arm != CONTROL and not folder.exists():
        folder.mkdir(parents=True)
        burnt_in = checkpoint_path(args.output / f"{slug(CONTROL)}-{seed}", cfg.SEMI.BURN_IN)
        shutil.copy(burnt_in, folder / burnt_in.name)
    start = time.monotonic()
    call([args.config_file, "--resume"], options + burn_in, folder)
    seconds = time.monotonic() - start
    half = [str(cfg.INPUT.MIN_SIZE_TEST // 2), str(cfg.INPUT.MAX_SIZE_TEST // 2)]
    results: dict = {"seconds": round(seconds)}
    for name, which, more in (
        ("student", "student", []),
        ("teacher", "teacher", []),
        ("half", "teacher", ["INPUT.MIN_SIZE_TEST", half[0], "INPUT.MAX_SIZE_TEST", half[1]]),
    ):
        test = ["DATASETS.TEST", args.test, *more]
        call([args.config_file, "--eval-only", "--eval-model", which], options + test, folder)
        results[name] = json.loads((folder / f"evaluation_{which}.json").read_text())
    done.write_text(json.dumps(results))
    return results


def call(flags: list[str], options: list[str], folder: Path) -> None:
    """tools/train_net.py in a process of its own, with one thread."""
    command = [sys.executable, str(TRAIN), "--config-file", *flags, *options]
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as out:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, stdout=out, stderr=out, env=env, check=False).returncode
    if code:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise SystemExit(f"{' '.join(command)}\nended with code {code}; the end of {log}:\n{tail}")


def make_table(results: dict[str, dict[int, dict]], seeds: list[int]) -> str:
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


def spread(values: list[float]) -> str:
    """`mean ± deviation` of the finite values; a dash where there is none."""
    finite = [v for v in values if not math.isnan(v)]
    if not finite:
        return "-"
    mean = f"{statistics.mean(finite):.1f}"
    return mean if len(finite) < 2 else f"{mean} ± {statistics.stdev(finite):.1f}"


def slug(arm: str) -> str:
    """The arm as a folder's name."""
    return "".join(c if c.isalnum() else "_" for c in arm)


if __name__ == "__main__":
    main()
