"""Two pictures of a study: AP by object size, and AP against the size of the test images.

    ap_by_size("ap_by_size.png", {"supervised": {"APs": [21.0, 20.1], "APm": [28.2, 27.9]}, ...})
    ap_by_scale("ap_by_scale.png", {"supervised": {64: [9.4, 9.0], 128: [24.7, 25.2]}, ...})

Values are percent, one a seed; NaN, where a set has no object of a size, is left out. Bars and lines are means,
whiskers and bands the standard deviation over seeds (none with one seed). Colours are those of Okabe and Ito
(https://jfly.uni-koeln.de/color/), which people with any kind of colour blindness can tell apart.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sed.data.files import save_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#0072b2", "#cc79a7", "#f0e442")
NAMES = {"APs": "small objects", "APm": "medium objects", "APl": "large objects"}
_HATCHES, _LINES, _MARKERS = ("", "//", "..", "xx"), ("-", "--", "-.", ":"), "osD^vP"
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


def ap_by_size(path: str | Path, methods: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Grouped bars: a group a column (APs, APm, APl, in this order), in it a bar a method.

    Args:
        path: the png, written atomically.
        methods: name -> column -> AP of each seed. A column without a number for any method is left out.

    Raises:
        ValueError: where nothing is left to draw.
    """
    columns = [c for c in NAMES if any(_finite(rows.get(c, ())) for rows in methods.values())]
    if not columns:
        raise ValueError(f"{path}: no method has a number for {', '.join(NAMES)}; nothing to draw")

    def draw(axis: Axes) -> None:
        width = 0.8 / len(methods)
        for i, (name, rows) in enumerate(methods.items()):
            places = [group + (i - (len(methods) - 1) / 2) * width for group in range(len(columns))]
            points = [(x, *_mean(rows.get(c, ()))) for x, c in zip(places, columns, strict=True)]
            points = [point for point in points if math.isfinite(point[1])]
            x, mean, deviation = zip(*points, strict=True) if points else ((), (), ())
            hatch = _HATCHES[i // len(COLOURS) % len(_HATCHES)]
            axis.bar(
                x,
                mean,
                width * 0.92,
                yerr=deviation,
                color=COLOURS[i % len(COLOURS)],
                hatch=hatch,
                edgecolor="white",
                linewidth=0.5,
                error_kw={"ecolor": "#666666", "elinewidth": 1.2, "capsize": 2},
                label=name,
            )
        axis.set_xticks(range(len(columns)), [f"{NAMES[c]} ({c})" for c in columns])
        axis.tick_params(axis="x", length=0)
        axis.set_title("AP by object size")

    _save(path, draw)


def ap_by_scale(path: str | Path, methods: Mapping[str, Mapping[int, Sequence[float]]]) -> None:
    """A line a method over the short side of the test images, in pixels on a logarithmic axis.

    Args:
        path: the png, written atomically.
        methods: name -> short side -> AP of each seed.

    Raises:
        ValueError: where nothing is left to draw.
    """
    sides = sorted({side for rows in methods.values() for side, values in rows.items() if _finite(values)})
    if not sides:
        raise ValueError(f"{path}: no method has a number at any size; nothing to draw")

    def draw(axis: Axes) -> None:
        for i, (name, rows) in enumerate(methods.items()):
            points = [(side, *_mean(rows.get(side, ()))) for side in sides]
            points = [point for point in points if math.isfinite(point[1])]
            x, mean, deviation = zip(*points, strict=True) if points else ((), (), ())
            style = {"color": COLOURS[i % len(COLOURS)], "linestyle": _LINES[i // len(COLOURS) % len(_LINES)]}
            axis.plot(x, mean, marker=_MARKERS[i % len(_MARKERS)], markersize=5, label=name, **style)
            low, high = ([m + sign * d for m, d in zip(mean, deviation, strict=True)] for sign in (-1, 1))
            if any(deviation):
                axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sides, [str(side) for side in sides])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("short side of the test images, pixels")
        axis.set_title("AP against the size of the test images")

    _save(path, draw)


def _save(path: str | Path, draw: Callable[[Axes], None]) -> None:
    """One picture of at most 12 x 5 inches with its legend beside the axes."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 4), layout="constrained")
        axis = figure.subplots()
        axis.grid(axis="y", color="#e6e9ef")
        draw(axis)
        axis.set_ylim(bottom=0)
        axis.set_ylabel("AP, percent")
        figure.legend(loc="outside right upper")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    save_bytes(buffer.getvalue(), path)


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of the finite values: NaN of none, 0 of a single one."""
    finite = _finite(values)
    mean = statistics.mean(finite) if finite else math.nan
    return mean, statistics.stdev(finite) if len(finite) > 1 else 0.0
