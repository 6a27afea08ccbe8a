"""tools/bench.py at a size that fits a test."""

from __future__ import annotations

import math

import pytest
import torch

from sed.studies.cost import Setting, data_cost, step_cost


@pytest.mark.slow
def test_bench_measures_every_figure_of_its_table():
    rows = step_cost(Setting(torch.device("cpu"), size=128, images=1, depth=18, regions=8, repeats=1))
    figures = {row.what.split(" (")[0]: row.value for row in [*rows, data_cost(20)]}
    assert len(figures) == 7
    assert all(math.isfinite(v) and v > 0 for v in figures.values()), figures
    assert figures["SED step / supervised step"] > 1.0  # three more passes cannot be free, not even on a busy machine
    assert figures["EMA / step"] < 0.2
