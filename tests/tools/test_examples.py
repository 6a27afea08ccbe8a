"""examples/plain_loop.py runs as it stands and prints what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_plain_loop_trains_before_and_after_burn_in():
    command = [sys.executable, "examples/plain_loop.py", "--burn-in", "3", "--steps", "5", "--batch", "2"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.splitlines()
    assert re.fullmatch(r"before, 30 labelled images alone: \d+\.\d AP, \d+\.\d AP50", before)
    assert re.fullmatch(r"after, with 300 images without labels: \d+\.\d AP, \d+\.\d AP50", after)
