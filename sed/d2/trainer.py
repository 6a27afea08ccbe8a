"""`SemiSupervisedTrainer`: Detectron2's `DefaultTrainer` with two data streams and two networks.

    cfg = load_config("configs/coco_10.yaml")
    default_setup(cfg, args)
    trainer = SemiSupervisedTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()

The step is Detectron2's own (`SimpleTrainer`; `AMPTrainer` for float16): data from the loader, losses from the model,
backward, optimizer. Its hooks, writers and `build_*` methods are Detectron2's too and can be overridden as there.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, create_ddp_model, hooks
from detectron2.engine.train_loop import HookBase, TrainerBase
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from detectron2.utils.logger import setup_logger
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sed.config import ConfigError, leaves
from sed.core.structures import LabeledBatch, UnlabeledBatch
from sed.d2.checkpoint import RunCheckpointer, load_weights
from sed.d2.config import scaled
from sed.d2.data import DualLoader, build_train_loader
from sed.d2.hooks import Checkpoints, Metrics, Stop, TeacherUpdate, TeacherWeights, TrackerWriter
from sed.d2.voc import VOCEvaluator
from sed.detectors.base import Detector
from sed.detectors.detr import NotADetrError
from sed.methods.base import Method
from sed.methods.build import method_from_config
from sed.runtime.guards import diverged
from sed.runtime.launch import sum_over_processes
from sed.runtime.learning_rates import in_backbone
from sed.runtime.rng import rng_state, set_rng_state
from sed.runtime.stopping import at_step_end
from sed.runtime.tracking import Tracker

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
Step = tuple[LabeledBatch, UnlabeledBatch | None, int]


class SemiSupervisedModel(nn.Module):
    """Student and teacher in one module: what `build_model` gives, DDP wraps and a checkpoint holds.

    Args:
        method: on its device.
        autocast: dtype of mixed precision; None: float32.
    """

    def __init__(self, method: Method, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.method, self.autocast = method, autocast

    def forward(self, data: Step | list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """In training the weighted losses of a step; in eval mode the teacher's detections of Detectron2's inputs."""
        if not self.training:
            return self.method.teacher.module(data)
        labeled, unlabeled, step = data
        device = next(self.method.parameters()).device
        unlabeled = None if unlabeled is None else unlabeled.to(device)
        with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
            return self.method(labeled.to(device), unlabeled, step)


class SemiSupervisedTrainer(DefaultTrainer):
    """Trains SEMI.METHOD; see the module's docstring."""

    def __init__(self, cfg: CfgNode) -> None:
        """Build everything from `cfg`, as `DefaultTrainer` does.

        Its own `__init__` is passed over: it puts every distributed model on a GPU, and knows float16 only.

        Raises:
            ConfigError: for what cannot be trained so.
            DataError: for data that cannot be used.
        """
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):  # default_setup was not called
            setup_logger()
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        amp, dtype = cfg.SOLVER.AMP.ENABLED, DTYPES[cfg.SOLVER.AMP.DTYPE]
        loss_scaled = amp and dtype == torch.float16
        if loss_scaled and cfg.MODEL.DEVICE == "cpu":
            raise ConfigError("SOLVER.AMP.DTYPE float16 needs a GPU on Detectron2; set it to bfloat16")

        model = self.build_model(cfg)
        model.autocast = dtype if amp else None
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        device = next(model.parameters()).device
        device_ids = [device.index] if device.type == "cuda" else None
        # The supervised losses of the others reach every trainable parameter in every step; the DETR family has some
        # that a batch may leave out (denoising without boxes, mask tokens), and DDP must look for them
        look = "query" in model.method.student.heads
        ddp = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids, find_unused_parameters=look)
        self._trainer = (AMPTrainer if loss_scaled else SimpleTrainer)(ddp, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = RunCheckpointer(ddp, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self.register_hooks(self.build_hooks())

    @property
    def method(self) -> Method:
        """Student, teacher and the step."""
        return _unwrap(self.model).method

    # ------------------------------------------------------------------------------------------ running
    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint of OUTPUT_DIR, or start both networks from MODEL.WEIGHTS.

        Raises:
            CheckpointError: a file that cannot be read, or a checkpoint of another model.
            WeightsError: MODEL.WEIGHTS that cannot be had or fit nothing.
        """
        self._name_classes()
        if resume and self.checkpointer.has_checkpoint():
            self.checkpointer.load(self.checkpointer.get_checkpoint_file())
            self.start_iter = self.iter + 1
            return
        load_weights(self.method.student, self.cfg.MODEL.WEIGHTS, self.cfg, whole=False)
        self.method.teacher.update(self.method.student, 0.0)
        self._name_classes()

    def _name_classes(self) -> None:
        """Student and teacher know the names of the classes of the data; a loader of the user's own may not."""
        data = getattr(self.data_loader, "data", None)
        for model in (self.method.student, self.method.teacher.module):
            model.class_names = tuple(data.labeled.classes) if data is not None else ()

    def train(self) -> Any:
        """Run to SOLVER.MAX_ITER.

        Raises:
            TrainingError: where the loss is not finite; the last checkpoint stays.
            Stopped: after the step in which SIGINT or SIGTERM came, with a checkpoint of it.
        """
        try:
            with at_step_end():
                return super().train()
        except FloatingPointError as error:
            files = self.checkpointer
            last = Path(files.get_checkpoint_file()) if files.has_checkpoint() else None
            raise diverged(self.iter, "is not finite", last) from error
        finally:
            if hasattr(self.data_loader, "close"):  # its workers would wait for the next step
                self.data_loader.close()

    # ------------------------------------------------------------------------------------------ parts
    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """`cfg` for so many processes where SOLVER.REFERENCE_WORLD_SIZE is set; with our keys too.

        Raises:
            DataError: where the processes that it names do not divide a batch evenly.
        """
        cfg, lines = scaled(cfg, num_workers)
        for line in lines:
            logging.getLogger(__name__).info(line)
        return cfg

    @classmethod
    def build_model(cls, cfg: CfgNode) -> SemiSupervisedModel:
        """MODEL.META_ARCHITECTURE as the student, a copy of it as the teacher, in the method of SEMI.METHOD.

        Raises:
            ConfigError: for a detector that the methods cannot train.
        """
        try:
            student = super().build_model(cfg)
        except NotADetrError as error:
            raise ConfigError(f"MODEL.DETR.CONFIG {cfg.MODEL.DETR.CONFIG}: {error}") from None
        if not isinstance(student, Detector):
            raise ConfigError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}: set it to ScaleConsistentRCNN, "
                "ScaleConsistentRetinaNet or ScaleConsistentDETR (or to a subclass of your own)"
            )
        return SemiSupervisedModel(method_from_config(cfg, student, sum_over_processes).to(cfg.MODEL.DEVICE))

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Detectron2's SGD, or AdamW (SOLVER.OPTIMIZER), over the student; with all of CLIP_GRADIENTS' types.

        Raises:
            ConfigError: for a SOLVER.BACKBONE_MULTIPLIER without any backbone.
        """
        s, clip = cfg.SOLVER, cfg.SOLVER.CLIP_GRADIENTS
        student = model.method.student if isinstance(model, SemiSupervisedModel) else model
        whole = clip.ENABLED and clip.CLIP_TYPE == "full_model"  # which Detectron2 leaves to its projects
        trained = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
        if s.BACKBONE_MULTIPLIER != 1.0 and not any(map(in_backbone, trained)):
            raise ConfigError(
                f"SOLVER.BACKBONE_MULTIPLIER is {s.BACKBONE_MULTIPLIER}, but {type(student).__name__} trains no module "
                "named backbone; set it to 1.0"
            )
        plain = cfg.clone()
        plain.defrost()
        plain.SOLVER.CLIP_GRADIENTS.ENABLED = clip.ENABLED and not whole
        if s.OPTIMIZER == "SGD" and s.BACKBONE_MULTIPLIER == 1.0:
            optimizer = super().build_optimizer(plain, student)
        else:
            factor = {} if s.BACKBONE_MULTIPLIER == 1.0 else {"lr_factor_func": _backbone_factor(s.BACKBONE_MULTIPLIER)}
            groups = get_default_optimizer_params(
                student,
                base_lr=s.BASE_LR,
                weight_decay=s.WEIGHT_DECAY,
                weight_decay_norm=s.WEIGHT_DECAY_NORM,
                bias_lr_factor=s.BIAS_LR_FACTOR,
                weight_decay_bias=s.WEIGHT_DECAY_BIAS,
                **factor,
            )
            kinds = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW}
            more = {"momentum": s.MOMENTUM, "nesterov": s.NESTEROV} if s.OPTIMIZER == "SGD" else {}
            optimizer = maybe_add_gradient_clipping(plain, kinds[s.OPTIMIZER](groups, lr=s.BASE_LR, **more))
        if whole:
            _clip_together(optimizer, clip.CLIP_VALUE, clip.NORM_TYPE)
        return optimizer

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DualLoader:
        """Both streams; override to give `sed.d2.data.build_train_loader` a mapper of your own."""
        return build_train_loader(cfg, multiple=1)  # the detectors pad to what they need

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """COCO metrics; for the data sets of Pascal VOC its own, with COCO's beside them."""
        if MetadataCatalog.get(dataset_name).get("evaluator_type") == "pascal_voc":
            return VOCEvaluator(dataset_name)
        kept = cfg.TEST.DETECTIONS_PER_IMAGE
        limit = kept if kept > 100 else None  # COCO's own
        return COCOEvaluator(dataset_name, output_dir=str(Path(cfg.OUTPUT_DIR) / "inference"), max_dets_per_image=limit)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Evaluate both: {"student": results, "teacher": results}, with files below OUTPUT_DIR/student and /teacher.

        A single detector is evaluated as `DefaultTrainer` does. Training does not notice: random numbers go on as
        if nothing had been drawn. While the teacher is a copy of the student (burn-in), it is evaluated once.
        """
        model = _unwrap(model)
        if not isinstance(model, SemiSupervisedModel):
            return super().test(cfg, model, evaluators)
        state = rng_state()
        student, teacher = model.method.student, model.method.teacher.module
        results: dict[str, Any] = OrderedDict()
        results["student"] = super().test(_in_folder(cfg, "student"), student, evaluators)
        if _equal(student, teacher):
            results["teacher"] = results["student"]
        else:
            results["teacher"] = super().test(_in_folder(cfg, "teacher"), teacher, evaluators)
        set_rng_state(state)
        return results

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's, and that of TRACKER."""
        cfg = self.cfg
        tracked = [TrackerWriter(Tracker(cfg.TRACKER, Path(cfg.OUTPUT_DIR), dict(leaves(cfg))))] if cfg.TRACKER else []
        return [*super().build_writers(), *tracked]

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's; besides the teacher's update, our checkpoints, and the teacher's files after evaluation."""
        cfg, tests = self.cfg, self.cfg.DATASETS.TEST
        result: list[HookBase | None] = [TeacherUpdate(), Metrics(cfg.SEMI.COLLAPSE_STEPS)]
        for hook in super().build_hooks():
            if isinstance(hook, hooks.EvalHook):  # right after Detectron2's checkpointer, which only one process has
                saves = Checkpoints(cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINTS_KEPT)
                result += [saves, hook if tests else None, TeacherWeights(tests[0] if tests else "", len(tests) > 1)]
            elif not isinstance(hook, hooks.PeriodicCheckpointer):
                result.append(hook)
        return [*result, Stop(saves)]


def _unwrap(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _equal(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


def _in_folder(cfg: CfgNode, name: str) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / name)
    return cfg


def _clip_together(optimizer: torch.optim.Optimizer, limit: float, norm: float) -> None:
    """Clip the norm of all gradients together before each step (after AMP has unscaled them)."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def clip(*_: Any) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, limit, norm)

    optimizer.register_step_pre_hook(clip)


def _backbone_factor(multiplier: float) -> Any:
    return lambda name: multiplier if in_backbone(name) else 1.0
