"""Compare methods over seeds on the same labels: every run once, one table with means, spreads and paired differences.

    python projects/DMT/compare.py --study projects/DMT/configs/compare_digits.yaml --output output/compare_digits

A study names a config, what its cases, methods and seeds change in it, and the score to show. Seed s is SEED s and
SPLIT.FOLD s: other labels, weights and order. Methods of a case and seed start from one and the same baseline, that
of the first method, unless they change it. Finished runs are kept: the command can be stopped and given again.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from dmt.config import OF_BASELINE, differences, load
from sed.cli.last_resort import last_resort
from sed.config import ConfigError
from sed.data.errors import DataError
from sed.data.files import save_text, try_folder
from sed.studies.processes import call
from sed.studies.wording import interval, slug, spread

TRAIN = Path(__file__).with_name("train.py")
KEYS = {"config", "score", "seeds", "options", "cases", "methods"}
SCORES = ("mIoU", "accuracy", "fine_grained")
Job = tuple[str, str, int]  # case, method, seed


def read_study(path: Path) -> dict[str, Any]:
    """The study of a file.

    Raises:
        ConfigError: for a missing file, or keys that are missing or unknown.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such study")
    study = yaml.safe_load(path.read_text())
    if not isinstance(study, dict) or set(study) != KEYS or study["score"] not in SCORES:
        raise ConfigError(f"{path}: a study holds exactly the keys {', '.join(sorted(KEYS))}; score: {SCORES}")
    for kind in ("cases", "methods"):
        if len(set(map(slug, study[kind]))) < len(study[kind]):
            raise ConfigError(f"{path}: two {kind} would share a folder: {', '.join(study[kind])}; rename one")
    return {**study, "config": str(path.parent / study["config"])}


def words(study: Mapping[str, Any], job: Job, output: Path) -> list[str]:
    """The command line of one run."""
    case, method, seed = job
    first = next(iter(study["methods"]))
    folder = output / slug(case) / f"{slug(method)}-{seed}"
    own = shlex.split(study["methods"][method])
    options = [*shlex.split(f"{study['options']} {study['cases'][case]}"), *own]
    options += ["SEED", str(seed), "SPLIT.FOLD", str(seed), "OUTPUT_DIR", str(folder)]
    if method != first and not any(word.startswith((*OF_BASELINE, "SOLVER.BATCH_")) for word in own):
        options += ["SOLVER.BASELINE_FROM", str(output / slug(case) / f"{slug(first)}-{seed}")]
    return ["--config-file", study["config"], "--resume", *options]


def run(study: Mapping[str, Any], job: Job, output: Path) -> dict[str, Any]:
    """One run; a finished one is read."""
    case, method, seed = job
    folder = output / slug(case) / f"{slug(method)}-{seed}"
    line = words(study, job, output)
    if not (folder / "summary.json").exists():
        call(TRAIN, line, folder.with_suffix(".log"))
    elif changed := differences(folder / "config.yaml", load(study["config"], line[3:])):
        raise ConfigError(f"{folder}: the study has changed since ({'; '.join(changed.values())}); delete the folder")
    return json.loads((folder / "summary.json").read_text())


def run_all(study: Mapping[str, Any], output: Path, jobs: int) -> dict[Job, dict[str, Any]]:
    """Run what is missing; the first method of all cases and seeds before the others, which start from it."""
    first, *others = study["methods"]
    results: dict[Job, dict[str, Any]] = {}
    total = len(study["methods"]) * len(study["cases"]) * len(study["seeds"])
    with tqdm(total=total, unit="run") as bar, ThreadPoolExecutor(jobs) as pool:
        for methods in ([first], others):
            batch = [(case, method, seed) for seed in study["seeds"] for case in study["cases"] for method in methods]
            for job, result in zip(batch, pool.map(lambda job: run(study, job, output), batch), strict=True):
                results[job] = result
                bar.update()
    return results


def table(
    study: Mapping[str, Any], results: Mapping[Job, Mapping[str, Any]], seeds: Sequence[int], reference: str = ""
) -> str:
    """Markdown: the score of each method and case, and its paired difference to `reference` (default: the first)."""
    first, score = next(iter(study["methods"])), study["score"]
    reference = reference or first
    lines = [f"Test {score}, percent; seeds {', '.join(map(str, seeds))}: mean ± standard deviation, and the paired"]
    lines += [f"difference to {reference} with its 95 % interval (Student's t); seconds of all stages.", ""]
    head = [cell for case in study["cases"] for cell in (case, f"to {reference}", "s")]
    lines += [f"| method | {' | '.join(head)} |", "| --- " * (len(head) + 1) + "|"]
    for method in study["methods"]:
        cells = []
        for case in study["cases"]:
            own = [results[case, method, seed]["test"][score] for seed in seeds]
            base = [results[case, reference, seed]["test"][score] for seed in seeds]
            seconds = [cost(results[case, method, seed], results[case, first, seed]) for seed in seeds]
            cells += [
                spread(own),
                "" if method == reference else interval([a - b for a, b in zip(own, base, strict=True)]),
            ]
            cells.append(f"{sum(seconds) / len(seconds):.0f}")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cost(result: Mapping[str, Any], first: Mapping[str, Any]) -> float:
    """Seconds of all stages; a baseline that was taken over counts what it took there."""
    there = {stage["name"]: stage["seconds"] for stage in first["stages"]}
    return sum(there[s["name"]] if "copied_from" in s else s["seconds"] for s in result["stages"])


def main() -> None:
    """Run what is missing, then print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, required=True, metavar="FILE")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--reference", default="", help="the method that differences are taken to; default: the first")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    args = parser.parse_args()
    try:
        study = read_study(args.study)
        if args.reference and args.reference not in study["methods"]:
            raise ConfigError(f"--reference {args.reference}: {args.study} has {', '.join(study['methods'])}")
        try_folder(args.output, "--output")
        text = table(study, run_all(study, args.output, args.jobs), study["seeds"], args.reference)
    except (ConfigError, DataError) as error:
        raise SystemExit(f"error: {error}") from None
    save_text(text, args.output / "table.md")
    print(f"\n{text}")


if __name__ == "__main__":
    with last_resort():
        main()
