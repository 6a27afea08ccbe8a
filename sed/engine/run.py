"""Training and evaluation on the native engine: `train` a config, or `evaluate_only` what a config has trained."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode

from sed.config import leaves
from sed.data.files import try_folder
from sed.data.records import reorder
from sed.engine import build, checkpoint
from sed.engine.logging import setup_logging
from sed.evaluation.coco import Results, format_table
from sed.methods.build import method_from_config
from sed.runtime.engine import select_engine
from sed.runtime.guards import Counters
from sed.runtime.launch import rank, sum_over_processes, world_size
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
from sed.runtime.scaling import describe, scaling
from sed.runtime.tracking import Tracker

log = logging.getLogger(__name__)


def train(cfg: CfgNode, resume: bool = False) -> Counters:
    """Train what `cfg` describes into its OUTPUT_DIR; every process of the run calls this.

    Leaves there: config.yaml, versions.json, split.json, log.txt, metrics.jsonl, TensorBoard events, the last
    checkpoints, model_best.pth and model_final.pth (plain weights of the teacher; for the DETR family also the folder
    model_final, which `from_pretrained` loads) and predictions.png.

    Args:
        cfg: the run.
        resume: go on from OUTPUT_DIR's last checkpoint; start where there is none.

    Returns:
        Counters with the best and the last evaluation.

    Raises:
        DataError: for data, or a number of processes (SOLVER.REFERENCE_WORLD_SIZE), that cannot be used.
        OutputError: where OUTPUT_DIR holds another run, one is writing to it, or its disk is full.
        Stopped: where SIGINT or SIGTERM ends it, see `sed.runtime.stopping`.
    """
    with only_run(cfg.OUTPUT_DIR), room_needed(cfg.OUTPUT_DIR):
        return _train(cfg, resume)


def _train(cfg: CfgNode, resume: bool) -> Counters:
    changes = scaling(cfg, world_size())
    notes, cfg = describe(cfg, changes), cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([word for pair in changes.items() for word in pair])
    folder = Path(cfg.OUTPUT_DIR)
    last = claim_folder(cfg.OUTPUT_DIR, resume)
    _barrier()  # all have looked before anyone writes
    setup_logging(folder, rank())
    end_with_log("sed")
    log.info("engine: torchvision (%s)", _why(cfg))
    for note in notes:
        log.info(note)

    # --- data, then model: whatever is wrong with the data is said before anything is downloaded
    device = build.resolve_device(cfg.MODEL.DEVICE)
    data = build.read_data(cfg)
    test = data.tests[0] if data.tests else None
    log.info(
        "%d labelled, %d unlabelled, %d test images; %d classes",
        len(data.labeled),
        len(data.unlabeled),
        len(test) if test else 0,
        len(data.labeled.classes),
    )
    if test is None:
        log.warning("DATASETS.TEST is empty: nothing is evaluated and no best teacher is kept")
    _seed(cfg.SEED)  # the same weights in every process
    student = build.build_student(cfg, cfg.MODEL.WEIGHTS if last is None else "")
    student.class_names = data.labeled.classes
    method = method_from_config(cfg, student, sum_over_processes).to(device)
    trainer = build.build_trainer(cfg, method, data, device, folder)
    _seed(cfg.SEED * 1009 + rank())  # other random numbers in every process
    if last is not None:
        trainer.resume(last)
        log.info("going on from %s after step %d", last, trainer.step)
    elif resume:
        log.info("%s holds no checkpoint yet: starting", folder)

    # --- what the run is, written before its first step
    record_split(folder, data, cfg, resumed=last is not None)
    if rank() == 0:
        for change in write_config(folder, cfg.dump()):
            log.warning("resumed with another config than before: %s", change)
        write_versions(folder, device)
        trainer.tracker = Tracker(cfg.TRACKER, folder, dict(leaves(cfg))) if cfg.TRACKER else None
    counters = trainer.train()

    # --- what it leaves
    if rank() == 0:
        teacher = method.teacher.module
        checkpoint.save_atomic(checkpoint.plain_weights(teacher), folder / "model_final.pth")
        leave_stock_folder(folder, teacher, data.labeled.classes, cfg)
        if test:
            mapper = build.test_mapper(cfg)
            draw_predictions(folder / "predictions.png", teacher, test, mapper, cfg.TEST.IMS_PER_BATCH)
            best = f"best teacher (step {counters.best_step}, model_best.pth)"
            log.info("evaluation:\n%s", format_table({**counters.last, best: counters.best}))
        log.info("done: %s", folder / "model_final.pth")
    _barrier()
    return counters


def evaluate_only(cfg: CfgNode, resume: bool = False, which: str = "teacher") -> Results:
    """Evaluate on DATASETS.TEST: MODEL.WEIGHTS where it is a file, else OUTPUT_DIR's last checkpoint.

    Args:
        cfg: the run.
        resume: take the last checkpoint even where MODEL.WEIGHTS names a file.
        which: "teacher" or "student" of a full checkpoint; plain files hold only one model.

    Returns:
        The metrics, also written to OUTPUT_DIR/evaluation_<which>.json.

    Raises:
        CheckpointError: where there is nothing to evaluate, or it does not fit.
    """
    folder, weights = try_folder(cfg.OUTPUT_DIR, "OUTPUT_DIR"), cfg.MODEL.WEIGHTS
    setup_logging(None, rank())
    log.info("engine: torchvision (%s)", _why(cfg))
    device = build.resolve_device(cfg.MODEL.DEVICE)
    test = build.build_test_set(cfg)
    file = weights not in ("", "imagenet", "coco")
    whole = not resume and (file or weights == "coco")
    source = evaluated_weights(folder, weights, resume, own=file, whole=whole)
    detector = build.trained_detector(cfg, source, which).to(device)
    test = reorder(test, detector.class_names, source, subset=True)
    build.check_classes(cfg, test)
    log.info("evaluating %s (%s) on %s, %d images", source, which, test.name, len(test))
    results = build.build_evaluator(cfg, test, device)(detector)
    if rank() == 0:
        log.info("evaluation:\n%s", format_table({which: results}))
        write_evaluation(folder, which, source, results)
    return results


def _why(cfg: CfgNode) -> str:
    engine, why = select_engine(cfg.ENGINE)
    return why if engine == "torchvision" else "called by its name"


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries may draw from the global generator)
    torch.manual_seed(seed)


def _barrier() -> None:
    if world_size() > 1:
        dist.barrier()
