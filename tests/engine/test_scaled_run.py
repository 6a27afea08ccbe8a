"""SOLVER.REFERENCE_WORLD_SIZE on the native engine: a run with another number of processes than its recipe's."""

import pytest
import yaml

from sed.data.errors import DataError
from sed.engine.run import train
from sed.runtime.checkpoint_files import checkpoints
from sed.runtime.launch import launch, rank
from tests.engine.test_whole_run import config
from tests.reference.squares import write_set

SHORT = {
    "DATASETS.TEST": "()",
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.STEPS": "(4,)",
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SEMI.BURN_IN": 2,
    "SEMI.RAMP_STEPS": 0,
    "SEMI.EMA.POLICY": "constant",
    "SEMI.EMA.START": 0.81,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {"train": write_set(folder, "train", 10, 0), "test": write_set(folder, "test", 5, 1), "folder": folder}


def written(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


def test_a_recipe_for_two_processes_on_one(data, tmp_path):
    recipe = config(data, tmp_path / "run", **SHORT, **{"SOLVER.MAX_ITER": 3, "SOLVER.REFERENCE_WORLD_SIZE": 2})
    recipe.SOLVER.STEPS = (2,)
    train(recipe)
    assert (recipe.SOLVER.MAX_ITER, recipe.SEMI.BURN_IN) == (3, 2)  # the caller's config is left alone
    cfg = written(tmp_path / "run")
    assert (cfg["SEMI"]["IMS_PER_BATCH_LABELED"], cfg["SEMI"]["IMS_PER_BATCH_UNLABELED"]) == (1, 1)
    assert (cfg["SOLVER"]["MAX_ITER"], cfg["SOLVER"]["STEPS"], cfg["SEMI"]["BURN_IN"]) == (6, [4], 4)
    assert cfg["SEMI"]["EMA"]["START"] == pytest.approx(0.9)
    assert cfg["SOLVER"]["REFERENCE_WORLD_SIZE"] == 1
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint_0000004.pth", "checkpoint_0000006.pth"]
    told = (tmp_path / "run" / "log.txt").read_text()
    assert "scaled from 2 to 1 processes (SOLVER.REFERENCE_WORLD_SIZE):" in told
    assert "SOLVER.MAX_ITER: 3 -> 6" in told


def test_a_batch_that_does_not_divide_is_told_before_anything_is_written(data, tmp_path):
    with pytest.raises(DataError, match=r"SEMI\.IMS_PER_BATCH_LABELED is 2, which SOLVER\.REFERENCE_WORLD_SIZE 4"):
        train(config(data, tmp_path / "run", **SHORT, **{"SOLVER.REFERENCE_WORLD_SIZE": 4}))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.lock"]


def run(recipe):
    assert rank() in (0, 1)
    train(recipe)


@pytest.mark.slow
def test_a_recipe_for_one_process_on_two(data, tmp_path):
    recipe = config(data, tmp_path / "run", **SHORT, **{"SOLVER.MAX_ITER": 6, "SOLVER.REFERENCE_WORLD_SIZE": 1})
    launch(run, num_gpus=2, args=(recipe,))
    cfg = written(tmp_path / "run")
    assert (cfg["SEMI"]["IMS_PER_BATCH_LABELED"], cfg["SEMI"]["IMS_PER_BATCH_UNLABELED"]) == (4, 4)
    assert (cfg["SOLVER"]["MAX_ITER"], cfg["SOLVER"]["STEPS"], cfg["SEMI"]["BURN_IN"]) == (3, [2], 1)
    assert cfg["SOLVER"]["BASE_LR"] == pytest.approx(2 * recipe.SOLVER.BASE_LR)
    assert cfg["SEMI"]["EMA"]["START"] == pytest.approx(0.81**2)
    assert checkpoints(tmp_path / "run")[-1].name == "checkpoint_0000003.pth"
