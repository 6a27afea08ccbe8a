"""Training and evaluation on Detectron2: `train` a config, or `evaluate_only` what a config has trained."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any

import detectron2
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from sed.config import ConfigError
from sed.d2.catalog import align
from sed.d2.checkpoint import DETR_NAMES, load_weights
from sed.d2.config import DETR, architecture, num_classes, scaled, stock_config
from sed.d2.data import build_test_sets
from sed.d2.inference import painter, test_mapper
from sed.d2.trainer import SemiSupervisedTrainer
from sed.data.files import save_text, try_folder
from sed.data.partition import check_num_classes
from sed.data.records import reorder
from sed.runtime.output import (
    claim_folder,
    end_with_log,
    only_run,
    record_split,
    room_needed,
    write_config,
    write_versions,
)
from sed.runtime.results import draw_predictions, evaluated_weights, leave_stock_folder, write_evaluation

log = logging.getLogger(__name__)


def train(cfg: CfgNode, resume: bool = False) -> dict[str, Any]:
    """Train what `cfg` describes into its OUTPUT_DIR; every process of the run calls this.

    Leaves there what Detectron2 leaves (config.yaml, log.txt, metrics.json, TensorBoard events, inference/) and
    versions.json, split.json, the last checkpoints, model_best.pth and model_final.pth (plain Detectron2 checkpoints of
    the teacher), detectron2.yaml (a config with which stock Detectron2 loads them; of the DETR family instead the
    folder model_final, which `from_pretrained` of transformers loads) and predictions.png.

    Args:
        cfg: of `sed.d2.load_config`.
        resume: go on from OUTPUT_DIR's last checkpoint; start where there is none.

    Returns:
        {"student": results, "teacher": results} of the last evaluation, in the main process.

    Raises:
        DataError: for data, or a number of processes (SOLVER.REFERENCE_WORLD_SIZE), that cannot be used.
        OutputError: where OUTPUT_DIR holds another run, one is writing to it, or its disk is full.
        Stopped: where SIGINT or SIGTERM ends it, see `sed.runtime.stopping`.
    """
    with only_run(cfg.OUTPUT_DIR), room_needed(cfg.OUTPUT_DIR):
        return _train(cfg, resume)


def _train(cfg: CfgNode, resume: bool) -> dict[str, Any]:
    cfg, scaling = scaled(cfg, comm.get_world_size())
    folder = Path(cfg.OUTPUT_DIR)
    last = claim_folder(cfg.OUTPUT_DIR, resume)
    comm.synchronize()  # all have looked before anyone writes
    changes = write_config(folder, cfg.dump()) if comm.is_main_process() else []
    _setup(cfg)
    end_with_log("sed", "detectron2", "fvcore")
    log.info("engine: detectron2 %s (ENGINE is %s)", detectron2.__version__, cfg.ENGINE)
    for line in scaling:
        log.info(line)
    for change in changes:
        log.warning("resumed with another config than before: %s", change)

    trainer = SemiSupervisedTrainer(cfg)
    data = getattr(trainer.data_loader, "data", None)  # a loader of the user's own may not know
    trainer.resume_or_load(resume=resume)
    if resume and last is None:
        log.info("%s holds no checkpoint yet: starting", folder)
    if data is not None:
        record_split(folder, data, cfg, resumed=last is not None)
    if comm.is_main_process():
        write_versions(folder, trainer.method.student.pixel_mean.device)
        if architecture(cfg) != DETR:
            save_text(stock_config(cfg, str(folder / "model_final.pth")).dump(), folder / "detectron2.yaml")
    trainer.train()
    if comm.is_main_process():
        teacher = trainer.method.teacher.module
        classes = data.labeled.classes if data is not None else tuple(map(str, range(teacher.num_classes)))
        leave_stock_folder(folder, teacher, classes, cfg)
        if cfg.DATASETS.TEST:
            test = (data.tests if data is not None else build_test_sets(cfg))[0]
            mapper, paint = test_mapper(cfg), painter(test)
            draw_predictions(folder / "predictions.png", teacher, test, mapper, cfg.TEST.IMS_PER_BATCH, paint)
        log.info("done: %s", folder / "model_final.pth")
    comm.synchronize()
    return getattr(trainer, "_last_eval_results", {})


def evaluate_only(cfg: CfgNode, resume: bool = False, which: str = "teacher") -> dict[str, Any]:
    """Evaluate on DATASETS.TEST: MODEL.WEIGHTS where it is a file or folder, else OUTPUT_DIR's last checkpoint.

    Args:
        cfg: of `sed.d2.load_config`.
        resume: take the last checkpoint even where MODEL.WEIGHTS is set.
        which: "teacher" or "student" of a full checkpoint; other files hold only one model.

    Returns:
        The metrics, also written to OUTPUT_DIR/evaluation_<which>.json.

    Raises:
        CheckpointError: where there is nothing to evaluate.
        WeightsError: where it does not fit.
    """
    folder, weights = try_folder(cfg.OUTPUT_DIR, "OUTPUT_DIR"), cfg.MODEL.WEIGHTS
    _setup(cfg, eval_only=True)
    # Where the config names what training starts from, the run's own checkpoint is meant, as on the native engine
    file = weights not in DETR_NAMES and Path(weights).exists()
    whole = weights not in ("", "imagenet") and "ImageNetPretrained" not in weights
    weights = evaluated_weights(folder, weights, resume, own=file, whole=whole)
    tests = build_test_sets(cfg)
    if not tests:
        raise ConfigError("DATASETS.TEST is empty: set it to the name or the COCO json of the images to evaluate on")
    detector = build_model(cfg)
    load_weights(detector, weights, cfg, which)
    for test in tests:
        named = reorder(test, detector.class_names, weights, subset=True)
        check_num_classes(named, num_classes(cfg)[1], num_classes(cfg)[0])
        align(test, named)
    log.info("evaluating %s (%s) on %s", weights, which, ", ".join(cfg.DATASETS.TEST))
    results = SemiSupervisedTrainer.test(cfg, detector)
    if comm.is_main_process():
        flat = results["bbox"] if "bbox" in results else results
        write_evaluation(folder, which, weights, flat)
    return results


def _setup(cfg: CfgNode, eval_only: bool = False) -> None:
    """Detectron2's own set-up of a process: output folder, loggers (this package's too), seeds."""
    cfg.freeze()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", comm.get_world_size()))
    if comm.get_world_size() > 1 and getattr(comm, "_LOCAL_PROCESS_GROUP", True) is None:
        comm.create_local_process_group(local)
    folder = Path(cfg.OUTPUT_DIR)
    kept = (folder / "config.yaml").read_bytes() if eval_only and (folder / "config.yaml").exists() else None
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="sed")
    logging.getLogger("detectron2.engine.train_loop").addFilter(_without_traceback)  # the command tells what ends it
    default_setup(cfg, argparse.Namespace(eval_only=eval_only))
    if kept is not None and comm.is_main_process():
        (folder / "config.yaml").write_bytes(kept)  # of the training; default_setup writes the present one


def _without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True
