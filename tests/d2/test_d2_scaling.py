"""SOLVER.REFERENCE_WORLD_SIZE on Detectron2: its own rule for its own keys, and ours with them."""

from __future__ import annotations

import logging

import pytest

pytest.importorskip("detectron2", reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)")

import yaml
from detectron2.engine import DefaultTrainer

from sed.d2 import SemiSupervisedTrainer
from sed.d2.config import scaled
from sed.d2.run import train
from sed.data.errors import DataError
from tests.reference.detectron2_run import make_trainer, tiny_config

RECIPE = {
    "SOLVER__REFERENCE_WORLD_SIZE": 8,
    "SEMI__IMS_PER_BATCH_LABELED": 8,
    "SEMI__IMS_PER_BATCH_UNLABELED": 8,
    "SOLVER__BASE_LR": 0.01,
    "SOLVER__MAX_ITER": 4800,
    "SOLVER__STEPS": "(3200, 4000)",
    "SOLVER__WARMUP_ITERS": 160,
    "SOLVER__CHECKPOINT_PERIOD": 320,
    "TEST__EVAL_PERIOD": 480,
    "SEMI__BURN_IN": 1600,
}


@pytest.mark.parametrize("processes", [1, 2, 4, 8, 16])
def test_its_keys_get_what_detectron2_gives_them(squares, tmp_path, processes):
    cfg = tiny_config(squares, tmp_path, **RECIPE)
    mine = SemiSupervisedTrainer.auto_scale_workers(cfg, processes)
    theirs = DefaultTrainer.auto_scale_workers(cfg, processes)
    solver, wanted = dict(mine.SOLVER), dict(theirs.SOLVER)
    assert solver.pop("BASE_LR") == pytest.approx(wanted.pop("BASE_LR"))
    assert solver == wanted
    assert mine.TEST == theirs.TEST
    assert mine.SEMI.BURN_IN == 1600 * 8 // processes
    assert mine.SEMI.IMS_PER_BATCH_LABELED == processes
    assert (cfg.SOLVER.MAX_ITER, cfg.SEMI.BURN_IN) == (4800, 1600)
    assert (mine is cfg) == (processes == 8)


def test_a_frozen_config_stays_frozen_and_off_is_off(squares, tmp_path):
    cfg = tiny_config(squares, tmp_path, **RECIPE)
    cfg.freeze()
    assert scaled(cfg, 2)[0].is_frozen()
    off = tiny_config(squares, tmp_path, **{**RECIPE, "SOLVER__REFERENCE_WORLD_SIZE": 0})
    assert scaled(off, 2) == (off, [])


def test_warm_up_and_drops_stay_within_a_short_run(squares, tmp_path):
    """Rounding brings them to the end; Detectron2's schedulers would fail there."""
    short = {"SOLVER__MAX_ITER": 9, "SOLVER__STEPS": "(7,)", "SOLVER__WARMUP_ITERS": 8, "SEMI__BURN_IN": 0}
    cfg = tiny_config(squares, tmp_path, **{**RECIPE, **short, "SOLVER__REFERENCE_WORLD_SIZE": 1})
    s = scaled(cfg, 8)[0].SOLVER
    assert (s.MAX_ITER, s.STEPS, s.WARMUP_ITERS) == (1, (), 0)


def test_a_batch_that_does_not_divide(squares, tmp_path):
    cfg = tiny_config(squares, tmp_path / "run", SOLVER__REFERENCE_WORLD_SIZE=16)
    for call in (SemiSupervisedTrainer, train):
        with pytest.raises(DataError, match=r"which SOLVER\.REFERENCE_WORLD_SIZE 16 processes cannot divide evenly"):
            call(cfg)
    assert not (tmp_path / "run").exists()


def test_a_run_and_a_trainer_of_ones_own(squares, tmp_path, caplog):
    two = {"SOLVER__REFERENCE_WORLD_SIZE": 2, "SEMI__IMS_PER_BATCH_LABELED": 4, "SEMI__IMS_PER_BATCH_UNLABELED": 4}
    short = {"SOLVER__MAX_ITER": 2, "SOLVER__STEPS": "()", "SEMI__BURN_IN": 1, "DATASETS__TEST": "()"}
    cfg = tiny_config(squares, tmp_path / "run", **two, **short)
    with caplog.at_level(logging.INFO, "sed"):
        trainer = make_trainer(cfg)
    assert "SOLVER.MAX_ITER: 2 -> 4" in caplog.text
    assert (trainer.max_iter, trainer.cfg.SEMI.BURN_IN, len(next(trainer.data_loader)[0])) == (4, 2, 2)
    trainer.data_loader.close()
    train(cfg)
    content = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (content["SOLVER"]["MAX_ITER"], content["SOLVER"]["REFERENCE_WORLD_SIZE"]) == (4, 1)
    assert (content["SEMI"]["IMS_PER_BATCH_LABELED"], content["SOLVER"]["IMS_PER_BATCH"]) == (2, 4)
    told = (tmp_path / "run" / "log.txt").read_text()
    assert told.count("scaled from 2 to 1 processes") == 1
    assert (tmp_path / "run" / "checkpoint_0000004.pth").is_file()
