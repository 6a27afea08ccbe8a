"""The result of a check of the data (`sed.checks.check`) as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable, Sequence
from string import Template

import cv2
import numpy as np

from sed.checks.check import Report
from sed.checks.findings import ERROR, NOTE, SEVERITIES, WARNING, Finding
from sed.data.errors import DataError
from sed.data.images import read_pixels
from sed.evaluation.page import STYLE
from sed.evaluation.visualize import contact_sheet, draw_boxes

SHOWN = 20  # items of one kind on the page; all that are kept are in check.json
PICTURES, EACH = 24, 3  # pictures in all, and of one kind
CELL, COLUMNS = 300, 4
_RED, _BLUE = (214, 40, 57), "#3454d1"
_WORDS = {ERROR: "errors", WARNING: "warnings", NOTE: "notes"}

PAGE = Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
"""
    + STYLE
    + """td, th { text-align: left; vertical-align: top; overflow-wrap: anywhere; } td.n, th.n { text-align: right; }
td.n, th.n, td:first-child { overflow-wrap: normal; }
td code { white-space: nowrap; } .tiles { grid-template-columns: repeat(5, 1fr); }
h3 { font-size: 15px; margin: 18px 0 4px; } details { margin: 0 0 6px; } 
summary { cursor: pointer; color: var(--soft); }
.error { color: #b42318; } .warning { color: #b54708; } .note { color: var(--soft); }
li { overflow-wrap: anywhere; font-size: 14px; } ul { margin: 6px 0 0; padding-left: 20px; }
</style></head><body><main>
<h1>$title</h1>
<p class="lead">$verdict</p>
<div class="tiles">$tiles</div>
<section><h2>What was checked</h2><table><thead><tr><th>role</th><th>data set</th><th class=n>images</th>
<th class=n>boxes</th><th class=n>usable</th><th>classes</th></tr></thead><tbody>$sets</tbody></table></section>
$findings
$pictures
<section><h2>Classes</h2>$classes</section>
<section><h2>Sizes</h2>$histograms</section>
$advice
</main></body></html>
"""
)


def data_page(report: Report, title: str, paste: str) -> str:
    """The HTML page of a report.

    Args:
        report: of `sed.checks.check.check_data`.
        title: headline.
        paste: the suggested settings as KEY VALUE words for a command line.
    """
    numbers = {severity: report.found.total(severity) for severity in SEVERITIES}
    tiles = [(report.labelled, "labelled images"), (report.unlabelled, "unlabelled images")]
    tiles += [(len(report.boxes), "usable labelled boxes"), (numbers[ERROR], "errors"), (numbers[WARNING], "warnings")]
    rows = "".join(
        f"<tr><td>{row['role']}</td><td>{_text(row['file'])}</td><td class=n>{row['images']:,}</td>"
        f"<td class=n>{row['boxes']:,}</td><td class=n>{row['usable_boxes']:,}</td>"
        f"<td>{_text(', '.join(row['classes'][:12]))}{', ...' if len(row['classes']) > 12 else ''}</td></tr>"
        for row in report.sets
    )
    return PAGE.substitute(
        title=_text(title),
        verdict=verdict(report),
        tiles="".join(f"<div class=tile><b>{number:,}</b><span>{what}</span></div>" for number, what in tiles),
        sets=rows,
        findings="".join(_section(report, severity) for severity in SEVERITIES),
        pictures=_pictures(report),
        classes=_classes(report),
        histograms=histograms(report) if len(report.images) else "<p>No image could be measured.</p>",
        advice=_advice(report, paste),
    )


def verdict(report: Report) -> str:
    """One sentence on whether training can start."""
    errors, warnings = report.found.total(ERROR), report.found.total(WARNING)
    if errors:
        also = f", {_many(warnings, 'warning')} looked at" if warnings else ""
        return f"Not ready: {_many(errors, 'error')} must be corrected before training{also}."
    if warnings:
        return f"Training can start; look at {_many(warnings, 'warning')} first."
    return "Training can start: no error and no warning."


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _text(value: object) -> str:
    return html.escape(str(value))


def _section(report: Report, severity: str) -> str:
    parts = []
    for kind, _, number, kept in report.found.groups():
        if kind.severity != severity:
            continue
        items = "".join(
            f"<li><b>{_text(f.item)}</b>: {_text(f.text)} <span class=note>{_text(f.file)}</span></li>"
            for f in kept[:SHOWN]
        )
        more = f"<li>and {number - SHOWN:,} more; check.json has more of them</li>" if number > SHOWN else ""
        parts.append(
            f"<h3 class={severity}>{_text(kind.title)}: {number:,}</h3><p>{_text(kind.remedy)}</p>"
            f"<details{' open' if severity == ERROR else ''}><summary>which</summary><ul>{items}{more}</ul></details>"
        )
    if not parts:
        return ""
    return f"<section><h2 class={severity}>{_WORDS[severity].capitalize()}</h2>{''.join(parts)}</section>"


# ---------------------------------------------------------------------------------------------- pictures
def _pictures(report: Report) -> str:
    """The first images of each kind of error and warning, with the box at fault."""
    cells: list[tuple[np.ndarray, str]] = []
    for kind, code, _, kept in report.found.groups():
        shown = 0
        for finding in kept:
            if kind.severity == NOTE or shown == EACH or len(cells) >= PICTURES:
                break
            pictures = list(_draw(finding, code))
            cells += pictures
            shown += bool(pictures)
    if not cells:
        return ""
    sheet = contact_sheet([cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)], CELL)
    png = cv2.imencode(".jpg", np.ascontiguousarray(sheet[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    data = base64.b64encode(png.tobytes()).decode()
    return (
        f"<section><h2>How they look</h2><p>The first {EACH} of each kind of error and warning, its box in "
        "red; with grey around an image where its box lies outside. Like images stand side by side.</p>"
        f'<img alt="faults" src="data:image/jpeg;base64,{data}"></section>'
    )


def _draw(finding: Finding, code: str) -> Iterable[tuple[np.ndarray, str]]:
    for path, caption in ((finding.image, code), (finding.other, "the other")):
        if not path:
            continue
        try:
            image = read_pixels(path)
        except DataError:  # a finding says so
            continue
        caption = f"{caption}: {os.path.basename(path)}"
        boxes = [finding.box] if finding.box and path == finding.image else []
        yield _framed(image, boxes), caption


def _framed(image: np.ndarray, boxes: Sequence[tuple[float, ...]]) -> np.ndarray:
    """The image, scaled to a cell, with a grey margin of up to its own size that shows boxes outside."""
    height, width = image.shape[:2]
    corners = np.array([[x, y, x + w, y + h] for x, y, w, h in boxes], np.float64).reshape(-1, 4)
    corners = corners[np.isfinite(corners).all(1)]
    low = np.clip(corners[:, :2].min(0) if len(corners) else [0, 0], [-width, -height], 0)
    high = np.clip(corners[:, 2:].max(0) if len(corners) else [0, 0], [width, height], [2 * width, 2 * height])
    factor = CELL / max(high - low)
    small = cv2.resize(
        image, (max(1, round(width * factor)), max(1, round(height * factor))), interpolation=cv2.INTER_AREA
    )
    size = np.ceil((high - low) * factor).astype(int) + 1
    canvas = np.full((size[1], size[0], 3), 205, np.uint8)
    x, y = np.floor(-low * factor).astype(int)
    small = small[: size[1] - y, : size[0] - x]
    canvas[y : y + small.shape[0], x : x + small.shape[1]] = small
    moved = np.clip((corners - np.tile(low, 2)) * factor, -10, 2 * CELL)
    return draw_boxes(canvas, moved, color=_RED) if len(moved) else canvas


# ---------------------------------------------------------------------------------------------- numbers
def _classes(report: Report) -> str:
    roles = list(report.balance)
    names = list(dict.fromkeys(name for counts in report.balance.values() for name in counts))
    if not names:
        return "<p>No class could be counted.</p>"
    head = "".join(f"<th class=n>boxes, {role}</th>" for role in roles)
    body = "".join(
        f"<tr><td>{_text(name)}</td>"
        + "".join(f"<td class=n>{report.balance[role].get(name, 0):,}</td>" for role in roles)
        + "</tr>"
        for name in names
    )
    return f"<table><thead><tr><th>class</th>{head}</tr></thead><tbody>{body}</tbody></table>"


def histograms(report: Report) -> str:
    """Histograms of image sizes, box sizes, box shapes and boxes an image, as one inline SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    style = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False}
    with plt.rc_context({**style, "axes.spines.right": False, "axes.titlesize": 11}):
        figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
        _histogram(axes[0], report.images.min(1), "short side of training images, pixels")
        _histogram(axes[1], np.sqrt(report.boxes.prod(1)), "box size, square root of the area, pixels")
        _histogram(axes[2], report.boxes[:, 1] / report.boxes[:, 0], "height by width of boxes", logarithmic=True)
        _histogram(axes[3], report.crowding, "boxes in a labelled image", whole=True)
        axes[0].set_ylabel("number")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
        plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _histogram(axis, values: np.ndarray, title: str, logarithmic: bool = False, whole: bool = False) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axis.set_title(title)
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    if logarithmic:
        bins = np.geomspace(min(low, 0.5), max(high, 2.0) * 1.001, 30)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(FixedLocator([0.1, 0.25, 0.5, 1, 2, 4, 10]))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(NullLocator())
    elif whole:
        bins = np.arange(low, high + 2, max(1, int((high - low) / 30))) - 0.5
    else:
        bins = np.linspace(low, high, 30) if high > low else np.linspace(0.8 * low, 1.2 * low, 30)
    axis.hist(values, bins=bins, color=_BLUE)


def _advice(report: Report, paste: str) -> str:
    if not report.advice:
        return ""
    rows = "".join(
        f"<tr><td><code>{_text(row.key)}</code></td><td>{_text(row.value)}</td><td>{_text(row.now)}</td>"
        f"<td>{_text(row.reason)}</td></tr>"
        for row in report.advice
    )
    return (
        "<section><h2>Settings to start from</h2><p>Made from the sizes and counts above, not from a search.</p>"
        "<table><thead><tr><th>key</th><th>suggested</th><th>now</th><th>why</th></tr></thead>"
        f"<tbody>{rows}</tbody></table><p>At the end of the training command:</p><pre>{_text(paste)}</pre></section>"
    )
