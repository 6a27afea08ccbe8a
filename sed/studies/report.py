"""One self-contained HTML page that compares two finished training runs, from what their folders hold.

    baseline = read_run("output/quickstart/supervised", "Supervised baseline")
    treated = read_run("output/quickstart/sed", "SED")
    write_report("output/quickstart/report.html", baseline, treated, title="Quick start", sheet=picture)

A run folder holds config.yaml, metrics.jsonl, split.json, versions.json (written by training; the last two may be
missing) and results.json (by `write_results`). The page needs no network: all that it shows is in it.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import yaml

from sed.evaluation.bootstrap import Difference
from sed.evaluation.page import PAGE

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
MODELS = {"student": "student", "teacher": "EMA teacher"}  # keys of results.json and of metrics.jsonl
CONFIG_FILE, METRICS_FILE, RESULTS_FILE = "config.yaml", "metrics.jsonl", "results.json"
_IGNORED_KEYS = ("OUTPUT_DIR", "VERSION")  # differ, or not, for no reason of the method
_TERMS = {"scale": "scale consistency", "distill": "distillation", "pseudo": "pseudo-labels"}
_BASELINE_COLOUR, _TREATED_COLOUR = "#8a94a6", "#3454d1"
_TERM_COLOURS = ("#3454d1", "#e07a1f", "#1a936f", "#8a4fbf")


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


# ------------------------------------------------------------------------------------- table and sentence
def table_rows(*runs: RunResults) -> dict[str, dict[str, float]]:
    """Label -> scores of every evaluated model, student before teacher; `coco.format_table` prints it."""
    return {f"{run.label}, {MODELS[m]}": run.scores[m] for run in runs for m in MODELS if m in run.scores}


def better_model(run: RunResults) -> str:
    """Which of a run's models has the higher AP: "student" or "teacher"."""
    return max(run.scores, key=lambda m: _finite(run.scores[m].get("AP"), -1.0))


def verdict(baseline: RunResults, treated: RunResults, difference: Difference | None = None) -> str:
    """What the treatment changed, in sentences made from the numbers.

    Its teacher is compared with that one of the baseline's two models that has the higher AP.

    Args:
        baseline: the run to compare with.
        treated: the run with the method.
        difference: in AP between these two models, with its interval (`sed.evaluation.bootstrap`).
    """
    reference = better_model(baseline)
    before, after = baseline.scores[reference], treated.scores["teacher"]
    if not all(math.isfinite(_finite(s.get("AP"), math.nan)) for s in (before, after)):
        return f"No AP could be measured on {treated.dataset or 'the test set'}, so nothing can be said."
    gain = after["AP"] - before["AP"]
    word = "raised" if gain > 0.05 else "lowered" if gain < -0.05 else "did not change"
    images = f"{treated.unlabeled:,} unlabelled images" if treated.unlabeled else "unlabelled images"
    same = f"the same {baseline.labeled} labelled images" if baseline.labeled else "the same labelled images"
    sentence = (
        f"With {same} and the same number of steps, {treated.label}'s use of {images} {word} AP on "
        f"{treated.dataset or 'the test set'}: {before['AP']:.1f} ({baseline.label}, {MODELS[reference]}) "
        f"against {after['AP']:.1f} ({treated.label}, {MODELS['teacher']}), {gain:+.1f} AP"
    )
    gain50 = _finite(after.get("AP50"), math.nan) - _finite(before.get("AP50"), math.nan)
    sentence += f" and {gain50:+.1f} AP50" if math.isfinite(gain50) else ""
    ratio = treated.seconds / baseline.seconds if baseline.seconds else math.nan
    sentence += f", at {ratio:.1f} times the seconds." if math.isfinite(ratio) else "."
    return sentence + (_luck(difference) if difference else "")


def _luck(difference: Difference) -> str:
    """Whether a difference may be the luck of the test images."""
    low, high = difference.low, difference.high
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    told = f"95 % interval over the choice of test images: {low:+.1f} to {high:+.1f} AP"
    return f" {told}." if low > 0 or high < 0 else f" That may be luck: it holds 0 ({told})."


def _finite(value: float | None, otherwise: float) -> float:
    return value if value is not None and math.isfinite(value) else otherwise


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.1f}"


# ---------------------------------------------------------------------------------------------- curves
def curves_svg(baseline: RunResults, treated: RunResults) -> str:
    """AP on the validation set, supervised and unsupervised losses against the step, as one inline SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    style = {
        "svg.fonttype": "none",  # text stays text, in the page's own font
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#9aa3b2",
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.grid": True,
        "grid.color": "#e6e9ef",
        "legend.frameon": False,
        "legend.fontsize": 9,
    }
    with plt.rc_context(style):
        figure, (ap, sup, unsup) = plt.subplots(1, 3, figsize=(13, 3.7), layout="constrained")
        for run, colour in ((baseline, _BASELINE_COLOUR), (treated, _TREATED_COLOUR)):
            for model, line in (("student", "--"), ("teacher", "-")):
                label = f"{run.label}, {MODELS[model]}"
                ap.plot(*run.series(f"{model}/AP"), line, color=colour, marker="o", ms=3.5, label=label)
            sup.plot(*run.term("sup"), color=colour, lw=1.4, label=run.label)
        terms = [name for name in _TERMS if treated.term(name)[0]]
        for name, colour in zip(terms, _TERM_COLOURS, strict=False):
            unsup.plot(*treated.term(name), color=colour, lw=1.4, label=_TERMS[name])
        ap.set_title(f"AP on {' '.join(map(str, treated.config.get('DATASETS.TEST', ())))} while training")
        sup.set_title("Supervised loss")
        unsup.set_title(f"{treated.label}: weighted unsupervised losses")
        burn_in = treated.config.get("SEMI.BURN_IN", 0)
        for axis in (ap, sup, unsup):
            axis.set_xlabel("step")
            axis.set_ylim(bottom=0)
            if 0 < burn_in < treated.config.get("SOLVER.MAX_ITER", 0):
                axis.axvline(burn_in, color="#c3c9d4", lw=1, ls=":", label="end of burn-in" if axis is ap else None)
            axis.set_xlim(0, treated.config.get("SOLVER.MAX_ITER"))
            if axis.get_legend_handles_labels()[0]:
                axis.legend()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
        plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


# ---------------------------------------------------------------------------------------------- page
def write_report(
    path: str | Path,
    baseline: RunResults,
    treated: RunResults,
    *,
    title: str,
    sheet: np.ndarray | None = None,
    sheet_caption: str = "",
    commands: Sequence[str] = (),
    difference: Difference | None = None,
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        baseline: the run to compare with.
        treated: the run with the method.
        title: headline.
        sheet: contact sheet [H, W, 3] uint8 RGB.
        sheet_caption: how its images and boxes were chosen.
        commands: what to type to make all of this again; the runs' own commands follow.
        difference: see `verdict`.
    """
    rows = table_rows(baseline, treated)
    best = {m: max((_finite(s.get(m), -1.0) for s in rows.values()), default=0.0) for m in METRICS}
    body = ""
    for label, scores in rows.items():
        cells = "".join(
            f"<td{' class=best' if scores.get(m) == best[m] else ''}>{_number(scores.get(m))}</td>" for m in METRICS
        )
        body += f"<tr><th>{html.escape(label)}</th>{cells}</tr>\n"
    tiles = "".join(_tile(name, baseline, treated) for name in ("AP", "AP50", "APs"))
    seconds = " / ".join(f"{run.seconds:.0f}" for run in (baseline, treated))
    tiles += f"<div class=tile><b>{seconds} s</b><span>training, {baseline.label} / {treated.label}</span></div>"
    options = "".join(
        f"<tr><th><code>{html.escape(key)}</code></th><td>{html.escape(repr(a))}</td><td>{html.escape(repr(b))}</td></tr>"
        for key, a, b in config_difference(baseline, treated)
    )
    lines = [*commands, *(run.command for run in (baseline, treated) if run.command)]
    facts = {
        "seed": _pair(baseline, treated, "SEED"),
        "fold": _pair(baseline, treated, "SEMI.FOLD"),
        **{key.removeprefix("packages."): value for key, value in treated.versions.items() if key != "command"},
    }
    picture = ""
    if sheet is not None:
        png = cv2.imencode(".png", np.ascontiguousarray(sheet[:, :, ::-1]))[1].tobytes()
        data = base64.b64encode(png).decode()
        picture = (
            f"<section><h2>What they see</h2><p>{html.escape(sheet_caption)}</p>"
            f'<img alt="contact sheet" src="data:image/png;base64,{data}"></section>'
        )
    page = PAGE.substitute(
        title=html.escape(title),
        verdict=html.escape(verdict(baseline, treated, difference)),
        tiles=tiles,
        dataset=html.escape(treated.dataset or "the test set"),
        head="".join(f"<th>{m}</th>" for m in METRICS),
        body=body,
        note="<p>-: the set has no object of this size.</p>" if ">-</td>" in body else "",
        curves=curves_svg(baseline, treated),
        picture=picture,
        commands=html.escape("\n".join(lines)),
        baseline=html.escape(baseline.label),
        treated=html.escape(treated.label),
        difference=options,
        facts="".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items()),
    )
    Path(path).write_text(page, encoding="utf-8")


def _tile(metric: str, baseline: RunResults, treated: RunResults) -> str:
    before, after = (_finite(run.scores["teacher"].get(metric), math.nan) for run in (baseline, treated))
    change = f"{after - before:+.1f}" if math.isfinite(after - before) else "-"
    note = f"{metric}, teacher against teacher: {_number(before)}&nbsp;&rarr;&nbsp;{_number(after)}"
    return f"<div class=tile><b>{change}</b><span>{note}</span></div>"


def _pair(baseline: RunResults, treated: RunResults, key: str) -> str:
    values = [str(run.config.get(key, "?")) for run in (baseline, treated)]
    return values[0] if values[0] == values[1] else " / ".join(values)
