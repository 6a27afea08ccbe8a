"""Weights and checkpoints on Detectron2, read without running code and never silently ignored.

Three kinds of file:

    a Detectron2 file          model zoo (.pkl), or {"model": state_dict} (.pth): one detector
    model_best.pth, _final     the teacher, as such a file, with what it expects of its input beside it
    checkpoint_0001000.pth     everything a run needs to go on, after 1000 steps: student and teacher under "model"
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

from sed.d2.backbone import load_imagenet
from sed.d2.config import TRAINED_FOR, preprocessing, trained_for
from sed.d2.detr import ScaleConsistentDETR
from sed.data.torch_files import kind_of, other_kinds
from sed.detectors.base import Detector
from sed.detectors.detr_build import load_detr_weights
from sed.detectors.timm_backbone import TimmFPN
from sed.detectors.weights import WeightsError, load_body, read_state_dict
from sed.runtime.checkpoint_files import (
    REMEDY,
    CheckpointError,
    check_classes,
    checkpoints,
    names_of_classes,
    read,
    save_atomic,
    tensors_of,
)
from sed.runtime.resume import LARGEST, Field, check_optimizer, check_rng, check_scaler, check_step, check_tensors

PREFIXES = {"student": "method.student.", "teacher": "method.teacher.module."}
CLASSES = "classes"  # the entry of the names of the classes
DETR_NAMES = ("", "imagenet", "coco")  # MODEL.WEIGHTS of the DETR family that are no paths
# All that a pickle of arrays by name is made of
_HARMLESS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}


def export(detector: Detector, path: Path, cfg: CfgNode, **more: Any) -> None:
    """Write one detector as a plain Detectron2 checkpoint, atomically; `more` lies beside the weights."""
    state = {name: tensor.detach().cpu().clone() for name, tensor in detector.plain_state_dict().items()}
    names = list(detector.class_names)
    save_atomic({"model": state, TRAINED_FOR: trained_for(cfg), CLASSES: names, **more}, path)


def load_weights(detector: Detector, path: str, cfg: CfgNode, which: str = "teacher", *, whole: bool = True) -> None:
    """Load a Detectron2 file, an exported one, or one model of a full checkpoint, into `detector`.

    Args:
        detector: changed in place.
        path: local, or anything that Detectron2's PathManager finds (detectron2://, https://); "" does nothing. For the
            DETR family also "imagenet", "coco" (the weights of MODEL.DETR.CONFIG) and a folder of transformers.
        cfg: what the detector was built from; compared with what an exported file was trained for.
        which: "teacher" or "student" of a full checkpoint.
        whole: every tensor of the detector must be there (to evaluate). Otherwise Detectron2's rule: what has
            another shape (other classes) or is missing starts fresh, with a warning.

    Raises:
        CheckpointError: a file that cannot be read or would run code.
        WeightsError: a file that cannot be had, or fits nothing, or not all where `whole`.
    """
    if path == "imagenet" and whole:
        raise WeightsError("MODEL.WEIGHTS imagenet: a backbone alone, which detects nothing; name a trained file")
    if isinstance(detector, ScaleConsistentDETR) and (path in DETR_NAMES or Path(path).is_dir()):
        load_detr_weights(detector, path, cfg.MODEL.DETR.CONFIG)
    elif path == "imagenet":  # ResNet-18; Detectron2 has a file for ResNet-50 (`sed.d2.config`)
        load_imagenet(detector, cfg.MODEL.RESNETS.DEPTH)
    elif path and (whole or not _load_timm(detector, path)):
        _DetectorCheckpointer(detector, cfg, which, whole).load(path)


def _load_timm(detector: Detector, path: str) -> bool:
    """Fill a backbone of timm from a local file of timm's own; False where the detector or the file is another one."""
    body = next((m.body for m in detector.modules() if isinstance(m, TimmFPN)), None)
    if body is None or not Path(path).is_file() or path.endswith(".pkl"):
        return False
    state = read_state_dict(path)
    if any("backbone." in name for name in state):  # a detector's
        return False
    load_body(body, state, path)
    return True


class SafeCheckpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` that runs no code of the files it reads."""

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pyth"):  # of pycls, which Detectron2 reads without this care
            model = Field(self._torch_load(filename), filename)["model_state"].table()
            return {"model": {name: row.value for name, row in model.items()}, "matching_heuristics": True}
        if filename.endswith(".pkl"):
            with PathManager.open(filename, "rb") as stream:
                content = _ArraysOnly(stream, filename).read()
            if not isinstance(content, dict):
                raise CheckpointError(f"{filename}: expected a dictionary, found {type(content).__name__}")
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        return read(f)


class RunCheckpointer(SafeCheckpointer):
    """The checkpoints of a run: its model is a `SemiSupervisedModel`, its `save_dir` OUTPUT_DIR."""

    def save(self, name: str, **kwargs: Any) -> None:
        """As `Checkpointer.save`, but the file is there whole or not at all."""
        if not self.save_dir or not self.save_to_disk:
            return
        parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        names = list(self.model.method.student.class_names)
        save_atomic({"model": self.model.state_dict(), CLASSES: names, **parts, **kwargs}, path)
        self.tag_last_checkpoint(path.name)

    def _torch_load(self, f: str) -> dict[str, Any]:
        try:
            return super()._torch_load(f)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {REMEDY}") from None

    def has_checkpoint(self) -> bool:
        """Whether the run has been saved."""
        return bool(checkpoints(self.save_dir))

    def get_checkpoint_file(self) -> str:
        """The newest checkpoint of the run."""
        return str(checkpoints(self.save_dir)[-1])

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        own, file = self.model.state_dict(), self.get_checkpoint_file()
        check_classes(checkpoint.pop(CLASSES, None), self.model.method.student.class_names, file)
        root = Field(checkpoint, file)
        found = {name: getattr(row.value, "shape", None) for name, row in root["model"].table().items()}
        wrong = [name for name in own if name not in found or own[name].shape != found[name]]
        if wrong or len(found) != len(own):
            raise CheckpointError(
                f"{file}: not a checkpoint of this run's model "
                f"({len(wrong)} of {len(own)} tensors are missing or of another shape, first: {wrong[:1]}); resume "
                "with the config it was written with, or set MODEL.WEIGHTS to it and start a new run"
            )
        check_tensors(root["model"], own)
        if "trainer" in self.checkpointables:
            check_progress(root, self.checkpointables["trainer"], file)
        return super()._load_model(checkpoint)


def check_progress(root: Field, trainer: Any, path: str) -> None:
    """Raise CheckpointError for a field of a run's checkpoint, beside the model, that its trainer cannot go on with."""
    whole = root["trainer"]
    own, inner = trainer.state_dict(), whole["_trainer"]
    done = check_step(whole["iteration"], path, before=1)
    inner["iteration"].whole(done, done)
    if "iteration" in root.table():
        root["iteration"].whole(done, done)
    check_optimizer(inner["optimizer"], trainer._trainer.optimizer)
    if "grad_scaler" in own["_trainer"]:
        check_scaler(inner["grad_scaler"], own["_trainer"]["grad_scaler"])
    hooks, expected = whole["hooks"], own["hooks"]  # a user's trainer may have others
    for row in hooks["Checkpoints"]["processes"].processes() if "Checkpoints" in expected else ():
        check_rng(row["rng"])
        for value in row["loss_normalizer"].table().values():
            value.number(0, LARGEST)
    if "Metrics" in expected:
        hooks["Metrics"]["silent"].whole()
        hooks["Metrics"]["warned"].flag()
    if "base_lrs" in expected.get("LRScheduler", {}):
        hooks["LRScheduler"]["last_epoch"].whole(0, done + 1)
        hooks["LRScheduler"]["base_lrs"].like(expected["LRScheduler"]["base_lrs"])


class _DetectorCheckpointer(SafeCheckpointer):
    """Loads into a single detector and says what did not fit."""

    def __init__(self, detector: nn.Module, cfg: CfgNode, which: str, whole: bool) -> None:
        super().__init__(detector, save_to_disk=False)
        self.cfg, self.which, self.whole = cfg, which, whole

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.path = path
        if Path(path).exists() and not Path(path).is_file():
            read(path)  # says what it is
        try:
            return super().load(path, *args, **kwargs)
        except (OSError, AssertionError, ValueError) as error:  # no such file, no network, a `?` in the name
            raise WeightsError(
                f"MODEL.WEIGHTS {path}: cannot be had ({error}); download it and set MODEL.WEIGHTS to the file"
            ) from None
        finally:
            self._parsed_url_during_load = None

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        self._compare_preprocessing(checkpoint.pop(TRAINED_FOR, None))
        names = names_of_classes(checkpoint.pop(CLASSES, None))
        self.model.class_names = names if len(names) == self.model.num_classes else ()
        model, prefix = tensors_of(_as_tensors(checkpoint["model"]), self.path), PREFIXES[self.which]
        if any(name.startswith(prefix) for name in model):  # a full checkpoint of a run
            model = {n.removeprefix(prefix): v for n, v in model.items() if n.startswith(prefix)}
        if isinstance(self.model, ScaleConsistentDETR):
            model = self.model.own_names(model)
        own = self.model.state_dict()
        if odd := other_kinds(own, model):
            raise WeightsError(f"{self.path}: {odd}; expected weights as they were trained")
        checkpoint["model"] = model
        result = super()._load_model(checkpoint)
        wrong = {*result.missing_keys, *(name for name, *_ in result.incorrect_shapes)}
        if len(wrong) >= len(own) or (self.whole and wrong):
            names = f"{sorted(own)[0]}, ..." if len(wrong) >= len(own) else ", ".join(sorted(wrong)[:3])
            raise WeightsError(
                f"{self.path}: does not fit this {type(self.model).__name__}: {len(wrong)} of {len(own)} tensors are "
                f"missing or of another shape ({names}); it holds {', '.join(sorted(model)[:3])}, ... "
                "Use the config that it was trained with"
            )
        return result

    def _compare_preprocessing(self, theirs: Any) -> None:
        if not isinstance(theirs, Mapping):  # a file of another tool
            return
        other = [
            f"{key} {theirs[key]!r} (here {value!r})"
            for key, value in preprocessing(self.cfg).items()
            if theirs.get(key, value) != value
        ]
        if other:
            raise WeightsError(f"{self.path} was trained with {', '.join(other)}; set these keys as there")


def _as_tensors(content: Any) -> Any:
    """What a pickle holds, with its arrays of numbers as tensors; text and lists among them stay."""
    if not isinstance(content, dict):
        return content
    arrays = {k: v for k, v in content.items() if isinstance(v, np.ndarray) and v.dtype.kind in "fiub"}
    return {**content, **{name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in arrays.items()}}


class _ArraysOnly(pickle.Unpickler):
    """Reads a pickle of arrays, numbers and text; anything else is refused before it runs."""

    def __init__(self, stream: Any, name: str) -> None:
        super().__init__(stream, encoding="latin1")
        self.name = name

    def read(self) -> Any:
        """The content.

        Raises:
            CheckpointError: where it would run code, or is no whole pickle.
        """
        try:
            return self.load()
        except CheckpointError:
            raise
        except Exception as error:  # a cut or changed pickle fails in any way
            raise CheckpointError(
                f"{self.name}: cannot be read; it seems to be {kind_of(self.name)} ({type(error).__name__}: {error})"
            ) from None

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise CheckpointError(
                f"{self.name}: refused, it would run {module}.{name}; a model-zoo file holds arrays only"
            )
        return super().find_class(module, name)
