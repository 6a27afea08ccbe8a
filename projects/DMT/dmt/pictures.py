"""Pictures of a run: pseudo-labels and dynamic weights by round (DMT, Fig. 6), curves by round (Fig. 1 and 9).

Shape shorthand: pictures are [H, W, 3] uint8 RGB.
"""

from __future__ import annotations

import html
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmt.loss import IGNORED
from sed.data.files import save_text
from sed.evaluation.page import STYLE
from sed.evaluation.visualize import contact_sheet, write_png

_CELL = 200  # side of a picture on a sheet, pixels
_COLOURS = {"A": "#3454d1", "B": "#e07a1f"}  # of the models


# ---------------------------------------------------------------------------------------------- arrays
def palette() -> np.ndarray:
    """[256, 3] uint8: PASCAL VOC's colours, which its masks carry; 255 is white, as in Fig. 6 of the paper.

    The bits of a label, lowest first, go to red, green, blue, red, ..., and fill each colour from its highest bit on.
    """
    labels = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        colours[:, bit % 3] |= (((labels >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    colours[IGNORED] = 255
    return colours


def paint_labels(labels: np.ndarray) -> np.ndarray:
    """Labels [H, W] uint8 -> a picture; 255 is white."""
    return palette()[labels]


def paint_weights(weights: np.ndarray) -> np.ndarray:
    """Weights [H, W] in [0, 1] -> a picture from black (0) to white (1)."""
    grey = np.floor(np.clip(weights, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


# ---------------------------------------------------------------------------------------------- sheets
def sheet(path: str | Path, rows: Sequence[Sequence[tuple[np.ndarray, str]]], cell: int = _CELL) -> None:
    """Write rows of (picture, caption above it) as one PNG; small pictures are enlarged without blur.

    Args:
        path: the file.
        rows: they may differ in length.
        cell: side of a picture's square, pixels.

    Raises:
        ValueError: without any picture.
        OSError: where the file cannot be written.
    """
    large = [[(_enlarged(picture, cell), caption) for picture, caption in row] for row in rows]
    temporary = Path(path).with_suffix(f".{os.getpid()}.tmp.png")
    write_png(str(temporary), contact_sheet(large, cell))
    os.replace(temporary, path)


def tiles(
    path: str | Path, pictures: Sequence[np.ndarray], captions: Sequence[str], columns: int = 8, cell: int = 100
) -> None:
    """Write pictures in the order of reading, `columns` a row, each with its caption; see `sheet`.

    Args:
        path: the file.
        pictures: whole images (classification).
        captions: one each: label, confidence, weight.
        columns: of the grid.
        cell: side of a picture's square, pixels; a caption has a sixth as many letters.

    Raises:
        ValueError: without any picture, or with another number of captions.
        OSError: where the file cannot be written.
    """
    items = list(zip(pictures, captions, strict=True))
    sheet(path, [items[i : i + columns] for i in range(0, len(items), columns)], cell)


def _enlarged(picture: np.ndarray, side: int) -> np.ndarray:
    factor = max(1, math.ceil(side / max(picture.shape[:2])))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


# ---------------------------------------------------------------------------------------------- curves
def progress_page(path: str | Path, results: Sequence[Mapping[str, Any]], title: str = "Progress by round") -> None:
    """Write one self-contained HTML page: score, pseudo-labels' error rate and kept share by round, and a table.

    Args:
        path: the file.
        results: what each stage's result.json holds, in their order. "kind", "model", "round", "name" always;
            a training's "select" ({} where nobody chose) and "test" with a "score" in percent; a labelling's "kept"
            and "error", shares in [0, 1], and "share".
        title: headline.
    """
    trainings = [r for r in results if r["kind"] == "train"]
    labellings = [r for r in results if r["kind"] == "label"]
    head = "".join(f"<th>{name}</th>" for name in ("stage", "share", "kept", "wrong", "select", "test", "seconds"))
    body = "".join(
        f"<tr><td>{html.escape(r['name'])}</td>" + "".join(f"<td>{text}</td>" for text in _cells(r)) + "</tr>\n"
        for r in results
    )
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f"<style>\n{STYLE}</style></head><body><main>\n<h1>{html.escape(title)}</h1>\n"
        '<p class="lead">Round 0 is the baseline, trained on the labelled images alone. Test scores are shown, not '
        "chosen by, unless SPLIT.SELECT is test.</p>\n"
        f"<section>{_curves(trainings, labellings)}</section>\n"
        f"<section><h2>Stages, percent</h2><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"
        "<p>kept: pseudo-labels of all; wrong: of those kept, by the truth that no training sees.</p></section>\n"
        "</main></body></html>\n"
    )
    save_text(page, Path(path))


def _cells(result: Mapping[str, Any]) -> list[str]:
    def percent(value: float | None, factor: float = 100) -> str:
        return "-" if value is None or not math.isfinite(value) else f"{factor * value:.2f}"

    return [
        percent(result.get("share") or None),
        percent(result.get("kept")),
        percent(result.get("error")),
        percent(result.get("select", {}).get("score"), 1),
        percent(result.get("test", {}).get("score"), 1),
        f"{result.get('seconds', 0):.0f}",
    ]


def _curves(trainings: Sequence[Mapping[str, Any]], labellings: Sequence[Mapping[str, Any]]) -> str:
    """Three panels as one inline SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": "dmt", "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(13, 3.7), layout="constrained")
        score, error, kept = figure.subplots(1, 3)
        for part, line in (("test", "-"), ("select", "--")):
            _lines(score, trainings, lambda r, part=part: r.get(part, {}).get("score"), line, f", {part}")
        for axis, key in ((error, "error"), (kept, "kept")):
            _lines(axis, labellings, lambda r, key=key: 100 * r[key] if key in r else None, "-", " labels")
        titles = ("Score, percent", "Wrong pseudo-labels of those kept, percent", "Pseudo-labels kept, percent")
        for axis, name in zip((score, error, kept), titles, strict=True):
            axis.set_title(name, loc="left", fontsize=11, fontweight="bold")
            axis.set_xlabel("round")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(color="#e6e9ef")
            if axis.get_legend_handles_labels()[0]:
                axis.legend(frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _lines(axis: Any, results: Sequence[Mapping[str, Any]], value: Any, line: str, words: str) -> None:
    """One line a model: `value` of its results against the round, where there is one."""
    for model, colour in _COLOURS.items():
        points = [(r["round"], value(r)) for r in results if r["model"] == model]
        points = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
        if points:
            axis.plot(*zip(*points, strict=True), line, color=colour, marker="o", ms=3.5, label=f"{model}{words}")
