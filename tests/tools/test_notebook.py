"""examples/own_data.ipynb: its cells run in order on a made set. Jupyter itself is not needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sed.data.digits import make_digits

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples/own_data.ipynb"
IMPORTED = "from IPython.display import HTML, Image, display\n"
DISPLAY = """shown = []
HTML = lambda filename: ("HTML", open(filename, encoding="utf-8").read())
Image = lambda filename: ("Image", open(filename, "rb").read())
display = shown.append
"""
SMALL = ' "--output", "ssod_run", "INPUT.MIN_SIZE_TRAIN", "(96,96)", "INPUT.MIN_SIZE_TEST", "96"'


def test_it_is_a_notebook_without_outputs():
    book = json.loads(NOTEBOOK.read_text())
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert all(cell.get("outputs", []) == [] and cell["id"] for cell in book["cells"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_its_cells_run_in_order(tmp_path):
    made = make_digits(tmp_path / "data", counts=(8, 6, 4))
    my = tmp_path / "my"
    shutil.copytree(made / "tune", my / "photos")
    for name, source in (("train", "train"), ("val", "test")):
        shutil.copytree(made / source, my / name)
        shutil.copy(made / f"{source}.json", my / f"{name}.json")
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    assert text.count('STEPS = "400"') == text.count(' "--output", "ssod_run"') == 1
    assert text.count(IMPORTED) == 1
    text = (
        text.replace(IMPORTED, DISPLAY)
        .replace('STEPS = "400"', 'STEPS = "40"')
        .replace(' "--output", "ssod_run"', SMALL)
    )
    check = '\nassert [kind for kind, _ in shown] == ["HTML", "Image"]\n'
    (tmp_path / "cells.py").write_text(text + check)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "cells.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "to label next:" in done.stdout
    assert "Report:" in done.stdout
