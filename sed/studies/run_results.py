"""What a finished training run was and measured, read from its folder.

A run folder holds config.yaml, metrics.jsonl, split.json, versions.json (written by training; the last two may be
missing) and results.json (by `write_results`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
MODELS = {"student": "student", "teacher": "EMA teacher"}  # keys of results.json and of metrics.jsonl
CONFIG_FILE, METRICS_FILE, RESULTS_FILE = "config.yaml", "metrics.jsonl", "results.json"
_IGNORED_KEYS = ("OUTPUT_DIR", "VERSION")  # differ, or not, for no reason of the method


class ReportError(ValueError):
    """A run folder that a report cannot be made from; the message names the file and the remedy."""


@dataclass(frozen=True)
class RunResults:
    """What one finished run was and measured, read from its folder.

    Attributes:
        label: its name on the page.
        config: full key -> value.
        rows: metrics.jsonl in the order of its steps, one a step.
        scores: "student" and "teacher" -> metric name -> percent.
        dataset: what the scores were measured on.
        command: the line that made the run, "" if unknown.
        seconds: wall clock of the training, NaN if unknown.
        labeled: number of labelled training images, 0 if unknown (split.json).
        unlabeled: number of unlabelled training images, 0 if unknown.
        versions: what versions.json says, flat.
    """

    label: str
    config: dict[str, object]
    rows: list[dict]
    scores: dict[str, dict[str, float]]
    dataset: str = ""
    command: str = ""
    seconds: float = math.nan
    labeled: int = 0
    unlabeled: int = 0
    versions: dict[str, object] = field(default_factory=dict)

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of one key of metrics.jsonl."""
        points = [(row["step"], row[key]) for row in self.rows if isinstance(row.get(key), (int, float))]
        return [step for step, _ in points], [float(value) for _, value in points]

    def term(self, prefix: str) -> tuple[list[int], list[float]]:
        """Steps and the sum of all losses named `prefix`/..."""
        sums = [
            (row["step"], sum(row[key] for key in row if key.startswith(f"{prefix}/")))
            for row in self.rows
            if any(key.startswith(f"{prefix}/") for key in row)
        ]
        return [step for step, _ in sums], [float(value) for _, value in sums]


# ---------------------------------------------------------------------------------------------- run folders
def read_metrics(path: str | Path) -> list[dict]:
    """The rows of a metrics.jsonl, merged by step and sorted; a half-written last line is left for later."""
    rows: dict[int, dict] = {}
    try:
        lines = Path(path).read_text().splitlines()
    except FileNotFoundError:
        return []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.setdefault(row["step"], {}).update(row)
        except (json.JSONDecodeError, KeyError, TypeError):
            if number < len(lines):
                raise ReportError(f"{path}: line {number} is not a JSON object with a step") from None
    return [rows[step] for step in sorted(rows)]


def write_results(folder: str | Path, scores: Mapping[str, Mapping[str, float]], **facts: object) -> None:
    """Write results.json: `scores` as in `RunResults`, and any of dataset, command, seconds."""
    text = json.dumps({"scores": scores, **facts}, indent=1)
    Path(folder, RESULTS_FILE).write_text(text + "\n")


def read_run(folder: str | Path, label: str) -> RunResults:
    """Read a finished run's folder.

    Raises:
        ReportError: where one of its three files is missing or broken.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, METRICS_FILE, RESULTS_FILE):
        if not (folder / name).is_file():
            raise ReportError(f"{folder}: no {name}; expected the folder of a finished and evaluated run")
    results = json.loads((folder / RESULTS_FILE).read_text())
    if not results.get("scores"):
        raise ReportError(f"{folder / RESULTS_FILE}: no scores; evaluate the run again")
    config = _flat(yaml.safe_load((folder / CONFIG_FILE).read_text()))
    split, versions = (_optional(folder / name) for name in ("split.json", "versions.json"))
    counts = {key: split[key] for key in ("labeled", "unlabeled") if key in split}
    return RunResults(label, config, read_metrics(folder / METRICS_FILE), **results, **counts, versions=_flat(versions))


def _optional(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def _flat(node: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in node.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def config_difference(first: RunResults, second: RunResults) -> list[tuple[str, object, object]]:
    """(key, value of the first, value of the second) wherever they differ, output folders aside."""
    keys = sorted(set(first.config) | set(second.config))
    rows = [(key, first.config.get(key), second.config.get(key)) for key in keys if key not in _IGNORED_KEYS]
    return [row for row in rows if row[1] != row[2]]
