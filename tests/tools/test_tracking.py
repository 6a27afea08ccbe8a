"""TRACKER: a run's metrics also reach an experiment tracker, on both engines; a missing one is one line."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path

import pytest

from sed.cli.engines import pick
from sed.runtime.engine import EngineError
from sed.runtime.tracking import Tracker

CONFIG = "configs/quickstart.yaml"


@pytest.fixture
def calls(monkeypatch):
    """What a tracker of wandb's interface is told."""
    found: list[tuple] = []
    module = types.ModuleType("wandb")
    module.init = lambda **words: found.append(("init", words))
    module.log = lambda scalars, step: found.append(("log", step, scalars))
    module.finish = lambda: found.append(("finish",))
    module.__spec__ = types.SimpleNamespace(name="wandb")
    monkeypatch.setitem(sys.modules, "wandb", module)
    return found


def test_a_run_is_named_by_its_folder_and_goes_on_in_it(calls, tmp_path):
    for _ in range(2):
        tracker = Tracker("wandb", tmp_path / "run", {"SEED": 3})
        tracker.log(20, {"loss": 1.5, "teacher/APs": math.nan})
        tracker.close()
    first, second = (words for kind, *rest in calls if kind == "init" for words in rest)
    assert first == second
    assert (first["project"], first["resume"], first["config"]) == ("ssod", "allow", {"SEED": 3})
    assert first["name"] == f"{tmp_path.name}/run"
    Tracker("wandb", tmp_path / "other", {})
    assert calls[-1][1]["id"] != first["id"]
    assert calls[1:3] == [("log", 20, {"loss": 1.5}), ("finish",)]


def test_one_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr("sed.runtime.tracking.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="TRACKER is trackio, which is not installed: pip install trackio"):
        Tracker("trackio", Path("x"), {})


def test_the_metrics_of_a_training_reach_it(calls, tmp_path, engine, opts):
    words = [*opts, "OUTPUT_DIR", str(tmp_path / "run"), "TRACKER", "wandb", "SOLVER.MAX_ITER", "2"]
    words += ["SOLVER.STEPS", "()", "SEMI.BURN_IN", "1", "TEST.EVAL_PERIOD", "2"]
    driver = pick(CONFIG, words)
    driver.train(driver.load_config(CONFIG, words))
    sent = [(step, scalars) for kind, step, scalars in (call for call in calls if call[0] == "log")]
    names = {name for _, scalars in sent for name in scalars}
    assert {step for step, _ in sent} <= {1, 2, 3}  # Detectron2 counts the evaluation at the end as one more
    assert any(name.startswith("sup/") for name in names)
    assert any("AP" in name for name in names)
    assert calls[-1] == ("finish",)
    assert calls[0][1]["config"]["TRACKER"] == "wandb"
    if engine == "torchvision":
        rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert {k for row in rows for k, v in row.items() if k != "step" and v is not None} == names
