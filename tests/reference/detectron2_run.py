"""Runs of seconds on the Detectron2 engine. Import it only where Detectron2 is installed."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from sed.d2.config import load_config
from sed.d2.trainer import SemiSupervisedTrainer

CONFIG = "configs/digits.yaml"
TINY = {
    "ENGINE": "detectron2",
    "MODEL.DEVICE": "cpu",
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "MODEL.RETINANET.NUM_CLASSES": 2,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "INPUT.MIN_SIZE_TRAIN": "(64, 64)",
    "INPUT.MIN_SIZE_TEST": 64,
    "SEMI.LABELED_COUNT": 4,
    "SEMI.IMS_PER_BATCH_LABELED": 2,
    "SEMI.IMS_PER_BATCH_UNLABELED": 2,
    "SEMI.BURN_IN": 3,
    "SED.REGIONS_PER_VIEW": 8,
    "SOLVER.MAX_ITER": 6,
    "SOLVER.STEPS": "(5,)",
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.CHECKPOINT_PERIOD": 4,
    "SOLVER.CHECKPOINTS_KEPT": 9,
    "TEST.EVAL_PERIOD": 3,
}
RETINANET = {"MODEL.META_ARCHITECTURE": "ScaleConsistentRetinaNet"}


def words(values: dict[str, object]) -> list[str]:
    """Overrides as the command line has them."""
    return [str(word) for pair in values.items() for word in pair]


def tiny_config(data: dict[str, str], output: Path | str, **more: object) -> CfgNode:
    """`TINY` on `data`; `more` has "__" for the dots."""
    extra = {key.replace("__", "."): value for key, value in more.items()}
    return load_config(CONFIG, words({**TINY, **data, "OUTPUT_DIR": output, **extra}))


def make_trainer(cfg: CfgNode, kind: type[SemiSupervisedTrainer] = SemiSupervisedTrainer) -> SemiSupervisedTrainer:
    """A trainer whose weights follow from the seed, as `train` makes it."""
    torch.manual_seed(cfg.SEED)
    return kind(cfg)


def stock_weights(cfg: CfgNode, path: Path, seed: int = 1) -> dict[str, torch.Tensor]:
    """Write a plain Detectron2 checkpoint of `cfg`'s detector with other weights; returns them."""
    torch.manual_seed(seed)
    state = build_model(cfg).state_dict()
    torch.save({"model": state, "iteration": 7}, path)
    return state
