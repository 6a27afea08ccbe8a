"""What `ssod train` chooses for one's own data, and the config file that says so."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from sed.config import leaves, load_config
from sed.studies import own_config
from sed.studies.own_config import Choice, recipe, recipes, schedule, seconds_a_step, small_sizes, write_config
from sed.studies.own_run import training_seconds


def sizes(side, frame=(640, 480)):
    boxes, frames = np.full((10, 2), float(side)), np.tile(np.array(frame, float), (10, 1))
    return {row.key: row.value for row in small_sizes(boxes, frames)}


def test_images_are_as_large_as_small_objects_need_within_limits():
    assert sizes(100)["INPUT.MIN_SIZE_TEST"] == 208  # 43 pixels each
    assert sizes(18)["INPUT.MIN_SIZE_TEST"] == 272  # 10 pixels: 480 * 10 / 18 = 267
    assert sizes(2)["INPUT.MIN_SIZE_TEST"] == 320
    chosen = sizes(18)
    assert chosen == {
        "INPUT.MIN_SIZE_TRAIN": [248, 296],
        "INPUT.MAX_SIZE_TRAIN": 416,
        "INPUT.MIN_SIZE_TEST": 272,
        "INPUT.MAX_SIZE_TEST": 416,
    }
    small = small_sizes(np.full((3, 2), 2.0), np.full((3, 2), 480.0))
    assert "small objects need a GPU" in small[0].reason


@pytest.mark.parametrize("base", ["custom.yaml", "custom_small.yaml", "custom_scratch.yaml"])
@pytest.mark.parametrize("steps", [40, 400, 5000])
def test_a_schedule_keeps_the_proportions_of_its_recipe(base, steps):
    config = dict(leaves(load_config(str(recipes() / base))))
    now = {row.key: row.value for row in schedule(steps, config, "so")}
    share = steps / config["SOLVER.MAX_ITER"]
    assert now["SOLVER.MAX_ITER"] == steps
    assert now["SEMI.BURN_IN"] == pytest.approx(config["SEMI.BURN_IN"] * share, abs=0.5)
    assert now["SOLVER.STEPS"] == [pytest.approx(s * share, abs=0.5) for s in config["SOLVER.STEPS"]]
    assert 0 < now["SOLVER.WARMUP_ITERS"] <= steps // 8
    words = [str(word) for key, value in now.items() for word in (key, value)]
    load_config(str(recipes() / base), words)  # which refuses what cannot be trained


def test_seconds_of_all_trainings_for_a_step():
    cost = seconds_a_step
    assert cost((0.5, 1.0), 0.2, side_by_side=False, baseline=True) == pytest.approx(0.2 * 0.5 + 0.8 * 1.5)
    assert cost((0.5, 1.0), 0.2, side_by_side=True, baseline=True) == pytest.approx(0.2 * 0.5 + 0.8 * 1.0)
    assert cost((0.5, 1.0), 0.2, side_by_side=False, baseline=False) == pytest.approx(0.2 * 0.5 + 0.8 * 1.0)


def test_the_recipe_is_that_of_the_machine(monkeypatch):
    assert recipe(gpu=True)[0] == "custom.yaml"
    assert recipe(gpu=False)[0] == "custom_small.yaml"
    monkeypatch.setattr(own_config, "find_spec", lambda name: None)
    base, why = recipe(gpu=False)
    assert base == "custom_scratch.yaml"
    assert "pip install 'ssod[laptop]'" in why


def test_a_config_file_reads_back_as_it_was_and_says_why(tmp_path):
    words = ["SEED", "3", "INPUT.MIN_SIZE_TRAIN", "(96,128)", "SEMI.EMA.END", "0.95", "SEMI.BURN_IN", "9"]
    words += ["DATASETS.TRAIN", "['a b.json', 'ü:#.json']", "SOLVER.CLIP_GRADIENTS.ENABLED", "True"]
    asked, defaults = (dict(leaves(load_config(None, extra))) for extra in (words, []))
    changes = {key: value for key, value in asked.items() if value != defaults[key]}
    changes = {key: list(value) if isinstance(value, tuple) else value for key, value in changes.items()}
    text = write_config(changes, [Choice("SEMI.BURN_IN", 9, "a reason: #1")], "head\n\nmore")
    (tmp_path / "config.yaml").write_text(text)
    assert dict(leaves(load_config(tmp_path / "config.yaml"))) == asked
    assert "  BURN_IN: 9 # a reason: #1\n" in text
    assert text.startswith("# head\n#\n# more\n")
    assert yaml.safe_load(text)["SEED"] == 3


def test_seconds_of_a_run_that_began_in_another_ones_burn_in():
    baseline = [{"step": 20, "seconds_per_step": 0.5}, {"step": 40, "seconds_per_step": 0.5}, {"step": 40, "x": 1}]
    method = [{"step": 40, "seconds_per_step": 2.0}, {"step": 60, "seconds_per_step": 2.0}]
    assert training_seconds(baseline) == 20.0
    assert training_seconds(baseline, method) == 20 * 0.5 + 40 * 2.0
    assert training_seconds([]) == 0.0
