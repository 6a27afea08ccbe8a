"""The two things an entry script calls: `train` a config, or `evaluate_only` what a config has trained."""

from __future__ import annotations

import json
import logging
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode

from sed.data.splits import check_manifest, write_manifest
from sed.detectors.export import save_stock
from sed.engine import build, checkpoint
from sed.engine.logging import setup_logging
from sed.evaluation.coco import Results, detect_all, format_table
from sed.methods.build import method_from_config
from sed.runtime.checkpoint_files import checkpoints
from sed.runtime.guards import Counters
from sed.runtime.launch import rank, world_size
from sed.runtime.output import claim_folder, draw_predictions, write_config, write_versions
from sed.runtime.scaling import describe, scaling
from sed.runtime.select import select_engine

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
    """
    changes = scaling(cfg, world_size())
    notes, cfg = describe(cfg, changes), cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([word for pair in changes.items() for word in pair])
    folder = Path(cfg.OUTPUT_DIR)
    last = claim_folder(folder, resume)
    _barrier()  # all have looked before anyone writes
    setup_logging(folder, rank())
    log.info("engine: torchvision (%s)", _why(cfg))
    for note in notes:
        log.info(note)

    # --- data, then model: whatever is wrong with the data is said before anything is downloaded
    device = build.resolve_device(cfg.MODEL.DEVICE)
    data = build.build_data(cfg)
    log.info(
        "%d labelled, %d unlabelled, %d test images; %d classes",
        len(data.labeled),
        len(data.unlabeled),
        len(data.test) if data.test else 0,
        len(data.labeled.classes),
    )
    if data.test is None:
        log.warning("DATASETS.TEST is empty: nothing is evaluated and no best teacher is kept")
    _seed(cfg.SEED)  # the same weights in every process
    student = build.build_student(cfg, cfg.MODEL.WEIGHTS if last is None else "")
    method = method_from_config(cfg, student).to(device)
    trainer = build.build_trainer(cfg, method, data, device, folder)
    _seed(cfg.SEED * 1009 + rank())  # other random numbers in every process
    if last is not None:
        trainer.resume(last)
        log.info("going on from %s after step %d", last, trainer.step)
    elif resume:
        log.info("%s holds no checkpoint yet: starting", folder)

    # --- what the run is, written before its first step
    manifest = folder / "split.json"
    if last is not None and manifest.exists():
        check_manifest(manifest, data.labeled.records, data.unlabeled)
    if rank() == 0:
        for change in write_config(folder, cfg.dump()):
            log.warning("resumed with another config than before: %s", change)
        write_versions(folder, device)
        s = cfg.SEMI
        write_manifest(
            manifest,
            data.labeled.records,
            data.unlabeled,
            data.labeled.classes,
            source="+".join(cfg.DATASETS.TRAIN),
            fold=s.FOLD,
            percent=s.LABELED_PERCENT,
            count=s.LABELED_COUNT,
        )
    counters = trainer.train()

    # --- what it leaves
    if rank() == 0:
        teacher = method.teacher.module
        checkpoint.save_atomic(checkpoint.plain_weights(teacher), folder / "model_final.pth")
        size = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        if save_stock(teacher, folder / "model_final", data.labeled.classes, size):
            log.info("for transformers: from_pretrained(%r)", str(folder / "model_final"))
        if data.test:
            few = replace(data.test, records=data.test.records[:6])
            found = detect_all(teacher, build.batches_of(cfg, few, student.size_divisibility)(), device)
            draw_predictions(folder / "predictions.png", found, few.records, few.classes)
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
    folder, weights = Path(cfg.OUTPUT_DIR), cfg.MODEL.WEIGHTS
    setup_logging(None, rank())
    log.info("engine: torchvision (%s)", _why(cfg))
    device = build.resolve_device(cfg.MODEL.DEVICE)
    test = build.build_test_set(cfg)
    saved = checkpoints(folder)
    is_file = weights not in ("", "imagenet", "coco")
    if is_file and not resume:
        source = weights
    elif saved:
        source = str(saved[-1])
    elif weights == "coco" and not resume:
        source = weights
    else:
        raise checkpoint.CheckpointError(f"{folder} holds no checkpoint; set MODEL.WEIGHTS to the file to evaluate")
    detector = build.trained_detector(cfg, source, which).to(device)
    log.info("evaluating %s (%s) on %s, %d images", source, which, test.name, len(test))
    results = build.build_evaluator(cfg, test, device)(detector)
    if rank() == 0:
        log.info("evaluation:\n%s", format_table({which: results}))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"evaluation_{which}.json").write_text(json.dumps({"weights": source, **results}, indent=1))
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
