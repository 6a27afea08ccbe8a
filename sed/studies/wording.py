"""How numbers over seeds and names of folders are written in tables and paths."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], digits: int = 1) -> str:
    """`mean ± deviation` of the finite values; a dash where there is none."""
    finite = [v for v in values if not math.isnan(v)]
    if not finite:
        return "-"
    mean = f"{statistics.mean(finite):.{digits}f}"
    return mean if len(finite) < 2 else f"{mean} ± {statistics.stdev(finite):.{digits}f}"


def interval(differences: Sequence[float], digits: int = 1) -> str:
    """`mean [low, high]`: the 95 % interval of Student's t for the mean of paired differences; one value: itself."""
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return f"{mean:+.{digits}f}"
    low, high = bounds(differences)
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def bounds(differences: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of Student's t for the mean of two or more paired differences."""
    from scipy.stats import t

    half = t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    mean = statistics.mean(differences)
    return float(mean - half), float(mean + half)


def slug(name: str) -> str:
    """A name as the name of a folder: letters, digits and underscores."""
    return "".join(c if c.isalnum() else "_" for c in name)
