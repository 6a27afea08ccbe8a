"""Everything that is worth knowing about this project on a GPU, measured part by part: `tools/gpu_check.py`.

Each figure is written down as soon as it is there (`Report`), so that a check that is cut off loses nothing.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

import sed
from sed.data.files import save_text
from sed.studies.cost import Setting, step_cost
from sed.studies.processes import call
from sed.studies.throughput import METHODS, Load, data_rates, step_rates
from sed.studies.wording import spread

ROOT = Path(sed.__file__).resolve().parents[1]  # of the checkout: it has the tests, the tools and the configs
NEEDED = ("torch", "torchvision", "transformers", "detectron2", "fvcore", "iopath", "yacs", "pycocotools", "timm")
TWO = ("supervised", "sed_plus")
Row = dict[str, Any]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Check:
    """What is checked.

    Attributes:
        device: "cuda" or "cpu".
        small: tiny networks and a few of everything, to see that the check itself works.
        workers: processes of the tests; runs of the training side by side.
        folder: where everything is written.
    """

    device: str
    small: bool
    workers: int
    folder: Path


class Report:
    """The tables of a check; `report.json` and `report.md` in its folder hold at any time all that is known.

    Args:
        check: see there; what an earlier check of the same machine, size and commit left in its folder stays, until
            its part is measured anew.
        parts: the names of the tables, in order.
    """

    def __init__(self, check: Check, parts: tuple[str, ...]) -> None:
        self.folder, self.parts = check.folder, parts
        self.rows: dict[str, list[Row]] = {}
        self.finished: list[str] = []
        self.machine = machine(check)
        path = self.folder / "report.json"
        old = json.loads(path.read_text()) if path.exists() else {}
        if old.get("machine") == self.machine:
            self.rows, self.finished = old["rows"], old["finished"]

    def start(self, part: str) -> None:
        """Forget what was known of a part."""
        self.rows[part] = []
        self.finished = [p for p in self.finished if p != part]

    def add(self, part: str, row: Row) -> None:
        """Write a row down."""
        self.put(part, [*self.rows[part], row])

    def put(self, part: str, rows: list[Row]) -> None:
        """Write down all rows of a part."""
        self.rows[part] = rows
        self.save()

    def finish(self, part: str) -> None:
        """All of a part is there."""
        self.finished.append(part)
        self.save()

    def save(self) -> None:
        """Write both files."""
        content = {"machine": self.machine, "rows": self.rows, "finished": self.finished}
        self.folder.mkdir(parents=True, exist_ok=True)
        save_text(json.dumps(content, indent=1), self.folder / "report.json")
        save_text(self.text(), self.folder / "report.md")

    def text(self) -> str:
        """Markdown: the machine, a table a part, and what is missing."""
        lines = ["# GPU check", "", "; ".join(f"{key} {value}" for key, value in self.machine.items())]
        for part in self.parts:
            rows = self.rows.get(part, [])
            if rows:
                columns = list(dict.fromkeys(key for row in rows for key in row))
                lines += ["", f"## {part}", "", f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
                lines += [f"| {' | '.join(_shown(row.get(c, '')) for c in columns)} |" for row in rows]
        if missing := [part for part in self.parts if part not in self.finished]:
            begun = [f"{part} ({len(self.rows[part])} rows)" if self.rows.get(part) else part for part in missing]
            lines += ["", f"Not finished: {', '.join(begun)}."]
        return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1e}" if 0 < abs(value) < 0.001 else f"{value:.4g}"


def machine(check: Check) -> dict[str, str]:
    """Card, driver, cores, versions, commit and size of the check: figures that share a table share all of it."""
    found = {"device": check.device, "cores": str(os.cpu_count()), "Python": platform.python_version()}
    if check.device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found["device"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
        found["driver"] = _told("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        found |= {"CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
    for name in NEEDED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    found["commit"] = _told("git", "-C", str(ROOT), "describe", "--always", "--dirty")
    return found | ({"size": "small"} if check.small else {})


def _told(*command: str) -> str:
    """The first line that a command prints; "unknown" where it cannot be run or fails."""
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return lines[0].strip() if lines else "unknown"


# ---------------------------------------------------------------------------------------------- the parts
class _Recorder:
    """A pytest plugin: a row a test function, as the tests end."""

    def __init__(self, report: Report) -> None:
        self.report, self.rows = report, {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a test when its call (or its failing or skipped setup) is over."""
        if report.when != "call" and report.outcome == "passed":
            return
        name = report.nodeid.split("::")[-1].split("[")[0]
        row = self.rows.setdefault(name, {"test": name, "passed": 0, "failed": 0, "skipped": 0})
        row[report.outcome] += 1
        for key, value in report.user_properties:
            if isinstance(value, float):
                row[f"largest {key}"] = max(value, row.get(f"largest {key}", 0.0))
            else:
                self.report.add("waits", {"test": report.nodeid.split("::")[-1], key: value})
        if report.outcome == "failed":
            case = report.nodeid.split("::")[-1].removeprefix(name)
            row["failing"] = f"{row.get('failing', '')} {case}".strip()
        self.report.put("numbers", list(self.rows.values()))


def numbers(check: Check, report: Report) -> bool:
    """The tests marked gpu (tests/gpu): the same numbers as on the CPU. Returns whether all passed."""
    import pytest

    words = [str(ROOT / "tests/gpu"), "-m", "gpu", "--device", check.device, "-q", "-p", "no:cacheprovider"]
    words += ["-p", "no:timeout", "-o", "addopts=--import-mode=importlib"]  # its alarm is that of --time
    words += ["--rootdir", str(ROOT), "--tb=short"]
    words += ["-k", "yolos or nccl or (small_rcnn and predictions)"] if check.small else ["-n", str(check.workers)]
    report.start("waits")
    code = pytest.main(words, plugins=[_Recorder(report)])
    if code == pytest.ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    report.finish("waits")
    return code == 0


def throughput(check: Check, report: Report) -> bool:
    """Steps of every method at two batch sizes and in three precisions; memory format and compiler."""
    device = torch.device(check.device)
    loads = [(Load(device, images=n), tuple(METHODS)) for n in (8, 16)]
    loads += [(Load(device, precision=p), TWO) for p in ("tf32", "float32")]
    loads += [(Load(device, **more), TWO) for more in ({"channels_last": True}, {"compiled": True})]
    if check.small:
        loads = [(Load(device, 128, 1, depth=18, repeats=1), ("supervised", "pseudo_label"))]
    for load, names in loads:
        for row in step_rates(load, names):
            report.add("throughput", row)
    return True


def outside(check: Check, report: Report) -> bool:
    """The share of a step of `sed` that its losses, re-weighting and EMA take (tools/bench.py)."""
    device = torch.device(check.device)
    setting = Setting(device, 128, 1, 18, 8, 1) if check.small else Setting(device, 768, 8, 50, 256, 5)
    for row in step_cost(setting):
        report.add("outside", {"what": row.what, "measured": row.value, "bound": row.bound or ""})
    return True


def loading(check: Check, report: Report) -> bool:
    """What worker processes read, to compare with what the GPU eats."""
    for row in data_rates((0,), 0.5, 4) if check.small else data_rates((4, 8, 16)):
        report.add("loading", row)
    return True


def training(check: Check, report: Report) -> bool:
    """Digits, 75 labels: the supervised baseline and sed_plus (on the CPU: docs/results/digits_75.md)."""
    study = yaml.safe_load((ROOT / "configs/studies/gpu_digits.yaml").read_text())
    study["config"] = str(ROOT / "configs/digits.yaml")
    study["options"] += f" MODEL.DEVICE {check.device}"
    if check.small:
        study["seeds"] = study["seeds"][:1]
        study["options"] += " SOLVER.MAX_ITER 4 SOLVER.STEPS (3,) SEMI.BURN_IN 2"
    folder = check.folder / "digits"
    shutil.rmtree(folder, ignore_errors=True)  # a study keeps its finished runs; here they are to be made anew
    folder.mkdir(parents=True)
    save_text(yaml.safe_dump(study), folder / "study.yaml")
    words = ["--study", str(folder / "study.yaml"), "--output", str(folder), "--jobs", str(check.workers)]
    call(ROOT / "tools/study.py", words, folder / "study.log")
    for case, methods in json.loads((folder / "results.json").read_text())["test"].items():
        for name, runs in methods.items():
            ap = [run["teacher"]["full"]["AP"] for run in runs.values()]
            half = [run["teacher"]["half"]["AP"] for run in runs.values()]
            seconds = statistics.mean(run["seconds_per_step"] for run in runs.values())
            row = {"case": case, "method": name, "AP": spread(ap), "AP, half-size input": spread(half)}
            report.add("training", row | {"seeds": len(runs), "ms a step, side by side": 1000 * seconds})
    return True


PARTS: dict[str, Callable[[Check, Report], bool]] = {
    "numbers": numbers,
    "outside": outside,
    "loading": loading,
    "throughput": throughput,
    "training": training,
}
TABLES = ("numbers", "waits", *list(PARTS)[1:])


def run(check: Check, only: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    """Measure the parts named; yields each and whether nothing in it failed.

    A part that raises ends with a row that says why, and the others go on.
    """
    report = Report(check, TABLES)
    for part in only:
        report.start(part)
        report.save()
        try:
            good = PARTS[part](check, report)
        except (Exception, SystemExit) as error:
            log.exception("%s failed", part)
            report.add(part, {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]})
            good = False
        else:
            report.finish(part)
        yield part, good
