"""One self-contained HTML page that compares two finished training runs, from what their folders hold.

    baseline = read_run("output/quickstart/supervised", "Supervised baseline")
    treated = read_run("output/quickstart/sed", "SED")
    write_report("output/quickstart/report.html", baseline, treated, title="Quick start", sheet=picture)

The page needs no network: all that it shows is in it.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np

from sed.evaluation.bootstrap import Difference
from sed.evaluation.page import PAGE
from sed.studies.curves import curves_svg
from sed.studies.run_results import MODELS, RunResults, config_difference

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


# ------------------------------------------------------------------------------------- table and sentence
def table_rows(*runs: RunResults) -> dict[str, dict[str, float]]:
    """Label -> scores of every evaluated model, student before teacher; `coco.format_table` prints it."""
    return {f"{run.label}, {MODELS[m]}": run.scores[m] for run in runs for m in MODELS if m in run.scores}


def better_model(run: RunResults) -> str:
    """Which of a run's models has the higher AP: "student" or "teacher"."""
    return max(run.scores, key=lambda m: _finite(run.scores[m].get("AP"), -1.0))


def verdict(
    baseline: RunResults,
    treated: RunResults,
    difference: Difference | None = None,
    by_class: Mapping[str, Difference] = MappingProxyType({}),
) -> str:
    """What the treatment changed, in sentences made from the numbers.

    Its teacher is compared with that one of the baseline's two models that has the higher AP.

    Args:
        baseline: the run to compare with.
        treated: the run with the method.
        difference: in AP between these two models, with its interval (`sed.evaluation.bootstrap`).
        by_class: the same of each class; those that the treatment has lost are named.
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
    return sentence + (_luck(difference) if difference else "") + _lost(by_class)


def _luck(difference: Difference) -> str:
    """Whether a difference may be the luck of the test images."""
    low, high = difference.low, difference.high
    if not (math.isfinite(low) and math.isfinite(high)):
        return " There are too few test images to tell it from luck."
    told = f"95 % interval over the choice of test images: {low:+.1f} to {high:+.1f} AP"
    return f" {told}." if low > 0 or high < 0 else f" That may be luck: it holds 0 ({told})."


def _lost(by_class: Mapping[str, Difference]) -> str:
    """The classes whose interval is below 0."""
    several = by_class.items() if len(by_class) > 1 else ()
    rows = sorted((row.mean, f"{name} ({row.mean:+.1f} AP)") for name, row in several if row.high < 0)
    return f" It lost on {', '.join(told for _, told in rows)}." if rows else ""


def _finite(value: float | None, otherwise: float) -> float:
    return value if value is not None and math.isfinite(value) else otherwise


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.1f}"


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
    by_class: Mapping[str, Difference] = MappingProxyType({}),
    note: str = "",
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
        by_class: see `verdict`; each is shown.
        note: a sentence after the verdict.
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
    seconds = " / ".join(f"{run.seconds:.0f}" if math.isfinite(run.seconds) else "-" for run in (baseline, treated))
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
        verdict=html.escape(f"{verdict(baseline, treated, difference, by_class)} {note}".strip()),
        tiles=tiles,
        dataset=html.escape(treated.dataset or "the test set"),
        head="".join(f"<th>{m}</th>" for m in METRICS),
        body=body,
        note="<p>-: the set has no object of this size.</p>" if ">-</td>" in body else "",
        by_class=_class_table(by_class),
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


def _class_table(by_class: Mapping[str, Difference]) -> str:
    """The differences of the classes as a section of the page; "" for one class, of which the verdict speaks."""
    if len(by_class) < 2:
        return ""
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{row.mean:+.1f}</td><td>{_range(row)}</td></tr>"
        for name, row in by_class.items()
    )
    return (
        "<section><h2>Class by class</h2><p>AP more or less than the baseline, 95 % interval over the choice of test "
        f"images.</p><table><thead><tr><th></th><th>AP</th><th>interval</th></tr></thead>{rows}</table></section>"
    )


def _range(row: Difference) -> str:
    return f"{row.low:+.1f} to {row.high:+.1f}" if math.isfinite(row.low) else "too few images"
