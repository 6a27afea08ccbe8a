"""A run: the stages of a config, one after the other, in one output folder that can be left and gone back to.

    output/config.yaml  versions.json  split.json  log.txt        what the run is
    output/00_baseline_A0/ ...  01_label_A1/ ...  02_train_A1/    a folder a stage; result.json: it is finished
    output/summary.json  pseudo_labels.png  progress.html         what came out
    output/model_final.pth                                        the model that summary.json names, a plain state_dict

Everything random in a stage follows from (SEED, number of the stage).
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode
from torch import nn

from dmt.build import Data, augmentation, build_data, inference, model_of, write_split
from dmt.config import check_same_baseline, check_unchanged
from dmt.curriculum import Ranking, least_confidence_of
from dmt.inference import Scores
from dmt.label_store import LabelStore
from dmt.loading import Source, StoredLabels, Stream, TableLabels
from dmt.pipeline import BEST, Stage, plan
from dmt.show import label_error, save_pictures, save_weights, store_of
from dmt.training import Recipe, Training
from dmt.weights import load_whole
from sed.config import ConfigError
from sed.data.files import save_text, try_folder
from sed.engine.build import resolve_device
from sed.engine.logging import setup_logging
from sed.engine.solver import Precision
from sed.runtime.checkpoint_files import read, save_atomic
from sed.runtime.launch import rank, world_size
from sed.runtime.output import claim_folder, write_versions

log = logging.getLogger("sed.dmt")


class Run:
    """The stages of `cfg` and what they share.

    Args:
        cfg: see `dmt.config`.
        resume: go on where the folder's earlier run stopped.

    Raises:
        OutputError: where OUTPUT_DIR holds another run and `resume` is False.
        ConfigError: where it was made with another config.
        DataError: for data that cannot be used.
    """

    def __init__(self, cfg: CfgNode, resume: bool = False) -> None:
        self.cfg, self.folder = cfg, Path(cfg.OUTPUT_DIR)
        begun = any(next(self.folder.glob(f"*/{name}"), None) for name in ("result.json", "checkpoint_*.pth", "*.png"))
        claim_folder(cfg.OUTPUT_DIR, resume or not begun)  # a run that has done nothing yet holds no folder
        config = self.folder / "config.yaml"
        if begun and config.exists():
            check_unchanged(config, cfg)
        _barrier()  # all have looked before anyone writes
        setup_logging(self.folder, rank())
        m = cfg.METHOD
        self.stages = plan(m.SHARES, m.MUTUAL, m.RETRAIN, m.KEEP_BEST, m.ONLINE)
        self.device = resolve_device(cfg.MODEL.DEVICE)
        self.data: Data = build_data(cfg)
        if len(self.stages) > 1 + m.MUTUAL and not self.data.unlabeled:
            raise ConfigError("no image is left without a label: set METHOD.SHARES [] (all labels), or SPLIT.*")
        if rank() == 0:
            save_text(cfg.dump(), config)
            write_versions(self.folder, self.device)
            write_split(self.folder / "split.json", self.data, cfg)
        _barrier()

    # ------------------------------------------------------------------------------------------ the stages
    def run(self) -> dict[str, Any]:
        """Every stage that is not finished yet, then the summary, which is returned."""
        for number, stage in enumerate(self.stages):
            if self._finished(stage):
                self._tidy(stage)  # it may have been killed just before
                continue
            log.info("stage %d/%d: %s", number + 1, len(self.stages), stage.name)
            folder = self.folder / stage.name
            folder.mkdir(exist_ok=True)
            _barrier()
            seed = int(np.random.SeedSequence([self.cfg.SEED, number]).generate_state(1)[0])
            torch.manual_seed(seed)
            began = time.monotonic()
            result = self._train(stage, folder, seed) if stage.kind == "train" else self._label(stage, folder)
            _barrier()  # all processes' files are there
            if rank() == 0:
                result = {**asdict(stage), **result, "seconds": round(time.monotonic() - began, 1)}
                save_text(json.dumps(result, indent=1), folder / "result.json")
            self._tidy(stage)
            _barrier()
            log.info("%s: %s", stage.name, _line(self._finished(stage)))
        return self._summarise()

    def _finished(self, stage: Stage) -> dict[str, Any] | None:
        path = self.folder / stage.name / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def _train(self, stage: Stage, folder: Path, seed: int) -> dict[str, Any]:
        cfg, s, d = self.cfg, self.cfg.SOLVER, self.data
        if not stage.round and cfg.SOLVER.BASELINE_FROM:
            return self._copy_baseline(stage, folder)
        model = model_of(cfg, d, stage.model, load=not stage.start)
        if stage.start:
            load_whole(model, self._weights(stage.start))
        model = model.to(self.device)
        if cfg.MODEL.SYNC_BN and world_size() > 1 and self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)

        batch = s.BATCH_LABELED + s.BATCH_PSEUDO
        view = augmentation(cfg, d, stage.model)
        labeled = d.labeled_of(stage.model) if not stage.round else d.labeled
        sources = [Source(d.train, labeled, s.BATCH_LABELED if stage.round else batch, view)]
        epochs, per_epoch = s.BASELINE_EPOCHS, ceil(len(labeled) / batch)
        if stage.round:
            indices, labels = self._pseudo_labels(stage)
            sources.insert(0, Source(d.train, indices, s.BATCH_PSEUDO, view, labels, pseudo=True))
            epochs, per_epoch = s.EPOCHS, ceil(len(indices) / s.BATCH_PSEUDO)
        steps = max(1, round(epochs * per_epoch))
        recipe = self._recipe(stage, min(steps, s.MAX_STEPS or steps))
        test = inference(cfg, d, stage.model, self.device)
        choose = partial(test.evaluate, images=d.select.images, indices=d.select.indices) if d.select else None
        precision = Precision(s.AMP.ENABLED, s.AMP.DTYPE, self.device)
        stream = Stream(sources, seed, cfg.NUM_WORKERS, rank(), world_size())
        training = Training(model, stream, recipe, precision, self.device, folder, seed, choose)
        best = training.run()
        scores = test.evaluate(training.chosen, d.test.images, d.test.indices, "test")
        if stage.labels and rank() == 0:
            learned = set(indices)
            shown = [index for index in self._shown() if index in learned]
            save_weights(folder, d, shown, labels, recipe, partial(test.ask, training.chosen))
        return {"steps": recipe.steps, "step": best["step"], "select": best["scores"], "test": scores}

    def _recipe(self, stage: Stage, steps: int) -> Recipe:
        s, m = self.cfg.SOLVER, self.cfg.METHOD
        gammas = {} if not stage.round else {"gamma1": m.GAMMA1, "gamma2": m.GAMMA2, "gamma_ramp": m.GAMMA_RAMP}
        return Recipe(
            steps=steps,
            lr=s.BASE_LR if stage.round else s.BASELINE_LR,
            schedule=s.SCHEDULE,
            momentum=s.MOMENTUM,
            weight_decay=s.WEIGHT_DECAY,
            kind=m.WEIGHT,
            threshold=m.THRESHOLD,
            online=m.ONLINE and stage.round > 0,
            mixup=m.MIXUP,
            weighs=stage.round > 0,
            ema=s.EMA,
            eval_period=self.cfg.TEST.EVAL_PERIOD,
            checkpoint_period=s.CHECKPOINT_PERIOD,
            **gammas,
        )

    # ------------------------------------------------------------------------------------------ pseudo-labels
    def _label(self, stage: Stage, folder: Path) -> dict[str, Any]:
        cfg, d, m = self.cfg, self.data, self.cfg.METHOD
        model = model_of(cfg, d, stage.model)
        load_whole(model, self._weights(stage.labeler))
        model.to(self.device)
        test = inference(cfg, d, stage.model, self.device)
        store = LabelStore(folder)
        if d.segmentation:
            what = f"pseudo-labels {stage.round}"
            ranking = test.label(model, d.train, d.unlabeled, store, what=what)
            total = int(ranking.counts.sum())
            if m.RENORMALIZE:  # k_c from the first pass, labels argmax p / k_c from the second
                k = least_confidence_of(ranking.thresholds(stage.share, m.CLASS_BALANCED, m.RULE))
                store = LabelStore(folder / "renormalised")
                ranking = test.label(model, d.train, d.unlabeled, store, k.to(self.device), what)
                thresholds = np.zeros(len(d.classes), np.int64)
            else:
                thresholds = ranking.thresholds(stage.share, m.CLASS_BALANCED, m.RULE)
        else:
            labels, codes = test.label_whole(model, d.train, d.unlabeled, "pseudo-labels")
            ranking = Ranking(len(d.classes))
            ranking.add(labels, codes)
            total = len(labels)
            thresholds = ranking.thresholds(stage.share, m.CLASS_BALANCED, m.RULE)
            if rank() == 0:
                store.write_table([d.train.keys[i] for i in d.unlabeled], labels, codes)
        kept = ranking.kept(thresholds)
        result = {
            "thresholds": thresholds.tolist(),
            "kept": int(kept.sum()) / max(total, 1),
            "kept_per_class": kept.tolist(),
        }
        return result | ({"error": label_error(d, store, thresholds)} if rank() == 0 else {})

    def _pseudo_labels(self, stage: Stage) -> tuple[Sequence[int], Any]:
        """The unlabelled images that a round learns from, and their labels."""
        d = self.data
        if not stage.labels:
            return d.unlabeled, None  # the model labels them
        folder = self.folder / stage.labels
        thresholds = np.asarray(json.loads((folder / "result.json").read_text())["thresholds"])
        if d.segmentation:
            return d.unlabeled, StoredLabels(store_of(folder), d.train.keys, thresholds)
        keys, labels, codes = LabelStore(folder).read_table()
        index_of = {d.train.keys[i]: i for i in d.unlabeled}
        rows = [row for row in range(len(keys)) if codes[row] >= thresholds[labels[row]]]
        indices = [index_of[keys[row]] for row in rows]
        chosen = {index_of[keys[row]]: row for row in rows}
        table = TableLabels(
            {i: int(labels[r]) for i, r in chosen.items()}, {i: int(codes[r]) for i, r in chosen.items()}
        )
        return indices, table

    # ------------------------------------------------------------------------------------------ files
    def _weights(self, start: str) -> Path:
        """The model file of a stage, or of the best training so far."""
        if start == BEST:
            results = [r for r in map(self._finished, self.stages) if r and r["kind"] == "train"]
            start = max(results, key=lambda r: r["select"]["score"])["name"]
        return self.folder / start / "model.pth"

    def _copy_baseline(self, stage: Stage, folder: Path) -> dict[str, Any]:
        """The same stage of another run, whose config must agree in all that a baseline depends on."""
        source = Path(self.cfg.SOLVER.BASELINE_FROM)
        check_same_baseline(source, self.cfg)
        path = source / stage.name / "result.json"
        if not path.exists():
            raise ConfigError(f"SOLVER.BASELINE_FROM: {path} is missing; that run has no finished {stage.name}")
        if rank() == 0:
            shutil.copyfile(source / stage.name / "model.pth", folder / "model.pth")
        found = json.loads(path.read_text())
        return {key: found[key] for key in ("steps", "step", "select", "test")} | {"copied_from": str(source)}

    def _shown(self) -> list[int]:
        return list(self.data.unlabeled[: self.cfg.TEST.PICTURES])

    def _tidy(self, stage: Stage) -> None:
        """Delete what nobody needs after a stage: its checkpoints, and the labels of rounds before the last."""
        if rank() != 0:
            return
        for pattern in ("checkpoint_*.pth", "model_best_*.pth", ".*.tmp"):
            for path in (self.folder / stage.name).glob(pattern):
                path.unlink()
        if stage.labels and self.data.segmentation and stage.round < self.stages[-1].round:
            keep = [self.data.train.keys[i] for i in self._shown()]
            for folder in (self.folder / stage.labels, self.folder / stage.labels / "renormalised"):
                for path in folder.glob("*.png"):
                    if not any(path.name.startswith(key + ".") for key in keep):
                        path.unlink()

    def _summarise(self) -> dict[str, Any]:
        results = [self._finished(stage) for stage in self.stages]
        last = 0 if self.cfg.METHOD.KEEP_BEST else self.stages[-1].round
        final = [r for r in results if r and r["kind"] == "train" and r["round"] >= last]
        selects = [r["select"].get("score") for r in final]
        chosen = final[int(np.argmax(selects))] if None not in selects else next(r for r in final if r["model"] == "A")
        summary = {"final": chosen["name"], "select": chosen["select"], "test": chosen["test"], "stages": results}
        if rank() == 0:
            save_atomic(read(self.folder / chosen["name"] / "model.pth"), self.folder / "model_final.pth")
            save_text(json.dumps(summary, indent=1), self.folder / "summary.json")
            save_pictures(self.folder, results, self.data, self._shown())
            log.info("final model: %s, test %s", chosen["name"], _line(chosen))
        return summary


def evaluate_only(cfg: CfgNode, weights: str | None = None, which: str | None = None) -> Scores:
    """Evaluate a model on the test images; the scores are also in OUTPUT_DIR/evaluation.json.

    Args:
        cfg: of the run.
        weights: the file; None: OUTPUT_DIR/model_final.pth.
        which: "A" or "B", whose MODEL.NORMALIZATION the pixels get; None: as summary.json has it for model_final.pth.

    Raises:
        CheckpointError: for a file that is missing or another model's.
        ConfigError: where it matters and is not known which model the weights are.
    """
    folder, norms = try_folder(cfg.OUTPUT_DIR, "OUTPUT_DIR"), cfg.MODEL.NORMALIZATION
    path = Path(weights or folder / "model_final.pth")
    if which is None and not weights and (folder / "summary.json").exists():
        summary = json.loads((folder / "summary.json").read_text())
        which = next(stage["model"] for stage in summary["stages"] if stage["name"] == summary["final"])
    if which is None and cfg.METHOD.MUTUAL and norms[0] != norms[1]:
        raise ConfigError(f"{path}: is it --model A or B? The pixels depend on it: MODEL.NORMALIZATION is {norms}")
    data, device = build_data(cfg), resolve_device(cfg.MODEL.DEVICE)
    model = model_of(cfg, data, which or "A")
    load_whole(model, path)
    test = inference(cfg, data, which or "A", device)
    scores = test.evaluate(model.to(device), data.test.images, data.test.indices, "test")
    if rank() == 0:
        save_text(json.dumps({"weights": str(path), **scores}, indent=1), folder / "evaluation.json")
    return scores


def _line(result: dict[str, Any] | None) -> str:
    """A finished stage in a few words."""
    if not result:
        return "not finished"
    if result.get("kind") == "label":
        return f"{100 * result['kept']:.1f} % kept, {100 * result['error']:.2f} % of them wrong"
    return ", ".join(
        f"{name} {value:.2f}" for name, value in result["test"].items() if "/" not in name and name != "score"
    )


def _barrier() -> None:
    if world_size() > 1:
        dist.barrier()
