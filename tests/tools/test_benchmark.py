"""tools/benchmark.py and tools/bench.py at a size that fits a test."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sed.engine.cost import Setting, data_cost, step_cost

ROOT = Path(__file__).resolve().parents[2]


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_gives_mean_and_spread_and_both_models_of_the_control():
    benchmark = load_tool("benchmark")

    def run(ap):
        figures = {column: ap for column in benchmark.COLUMNS} | {"APl": math.nan}
        return {"student": figures, "teacher": figures, "half": {"AP": ap / 2}, "seconds": 10}

    table = benchmark.make_table({"supervised": {0: run(40.0), 1: run(44.0)}, "sed (paper)": {0: run(50.0)}}, [0, 1])
    rows = [line for line in table.splitlines() if line.startswith("| s")]
    assert [row.split("|")[1].strip() for row in rows] == ["supervised, student", "supervised", "sed (paper)"]
    assert "| 42.0 ± 2.8 |" in rows[0]
    assert "| - |" in rows[0]  # no large object anywhere
    assert rows[1].endswith("| 21.0 ± 1.4 | 10 |")
    assert "| 50.0 |" in rows[2]


@pytest.mark.slow
def test_arms_share_the_burn_in_and_finished_runs_are_kept(tmp_path):
    command = [sys.executable, "tools/benchmark.py", "--config-file", "configs/digits.yaml", "--test", "digits_test"]
    command += ["--arms", "supervised", "sed (anchored)", "--output", str(tmp_path / "out"), "--"]
    tiny = {"SOLVER.MAX_ITER": 3, "SOLVER.STEPS": "(2,)", "SEMI.BURN_IN": 2, "SEMI.LABELED_COUNT": 4}
    tiny |= {"SEMI.IMS_PER_BATCH_LABELED": 2, "SEMI.IMS_PER_BATCH_UNLABELED": 2, "TEST.EVAL_PERIOD": 0}
    command += ["ENGINE", "torchvision", *(str(word) for pair in tiny.items() for word in pair)]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert set(results) == {"supervised", "sed (anchored)"}
    log = (tmp_path / "out/sed__anchored_-0.log").read_text()
    assert "after step 2" in log  # it went on from the control's burn-in
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert (tmp_path / "out/sed__anchored_-0.log").read_text() == log  # nothing ran twice


@pytest.mark.slow
def test_bench_measures_every_figure_of_its_table():
    rows = step_cost(Setting(torch.device("cpu"), size=128, images=1, depth=18, regions=8, repeats=1))
    figures = {row.what.split(" (")[0]: row.value for row in [*rows, data_cost(20)]}
    assert len(figures) == 7
    assert all(math.isfinite(v) and v > 0 for v in figures.values()), figures
    assert figures["SED step / supervised step"] > 1.0  # three more passes cannot be free, not even on a busy machine
    assert figures["EMA / step"] < 0.2
