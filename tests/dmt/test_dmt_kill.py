"""A run that is killed by SIGKILL, in a training and in a labelling, ends as one that is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
WORDS = (
    "NUM_WORKERS 0 SPLIT.RATIO 60.0 SOLVER.MAX_STEPS 15 SOLVER.CHECKPOINT_PERIOD 5 SOLVER.BATCH_LABELED 1 "
    "SOLVER.BATCH_PSEUDO 3 METHOD.MUTUAL False METHOD.SHARES [0.5] TEST.PICTURES 1"
).split(" ")


def command(home: Path, name: str, *flags: str) -> list[str]:
    config = ROOT / "projects" / "DMT" / "configs" / "textured_digits.yaml"
    words = [*WORDS, "DATASETS.ROOT", str(home), "OUTPUT_DIR", str(home / name)]
    return [sys.executable, str(ROOT / "projects" / "DMT" / "train.py"), "--config-file", str(config), *flags, *words]


def kill_when(home: Path, pattern: str, *flags: str) -> None:
    """Start the run and kill it once a file of `pattern` is there."""
    process = subprocess.Popen(command(home, "broken", *flags), stdout=subprocess.DEVNULL, cwd=ROOT)
    until = time.monotonic() + 200
    while not list((home / "broken").glob(pattern)):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_killed_runs_go_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    subprocess.run(command(tmp_path, "whole"), check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    kill_when(tmp_path, "00_baseline_A0/checkpoint_0000005.pth")
    kill_when(tmp_path, "01_label_A1/train_0*.conf.png", "--resume")
    kill_when(tmp_path, "02_train_A1/checkpoint_0000005.pth", "--resume")
    subprocess.run(command(tmp_path, "broken", "--resume"), check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    whole, broken = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "broken"))
    for stage in whole["stages"] + broken["stages"]:
        stage.pop("seconds")
    assert whole == broken
    models = [torch.load(tmp_path / name / "model_final.pth", weights_only=True) for name in ("whole", "broken")]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
