"""The options of optimisation and evaluation: sections SOLVER and TEST, with Detectron2's names where it has one."""

from __future__ import annotations

from dataclasses import dataclass

from sed.options.option import option, section


@dataclass(frozen=True)
class AMP:
    """SOLVER.AMP."""

    enabled: bool = option(False, "mixed precision")
    dtype: str = option("bfloat16", "float16 is used with loss scaling", choices=("bfloat16", "float16"))


@dataclass(frozen=True)
class ClipGradients:
    """SOLVER.CLIP_GRADIENTS."""

    enabled: bool = option(False, "whether gradients are clipped")
    clip_type: str = option(
        "value",
        "value: elementwise | norm: of each parameter | full_model: norm of all together",
        choices=("value", "norm", "full_model"),
    )
    clip_value: float = option(1.0, "the limit", low=1e-9)


@dataclass(frozen=True)
class Solver:
    """SOLVER."""

    optimizer: str = option("SGD", "kind of optimizer", choices=("SGD", "AdamW"))
    base_lr: float = option(0.01, "learning rate", low=0)
    backbone_multiplier: float = option(1.0, "factor on it for the backbone but its pyramid", low=0)
    momentum: float = option(0.9, "momentum of SGD", low=0, high=1)
    weight_decay: float = option(0.0001, "weight decay of everything but normalisation layers", low=0)
    weight_decay_norm: float = option(0.0, "weight decay of normalisation layers", low=0)
    max_iter: int = option(180000, "steps", low=1)
    lr_scheduler_name: str = option(
        "WarmupMultiStepLR",
        "drops at STEPS, or half a cosine over the whole run",
        choices=("WarmupMultiStepLR", "WarmupCosineLR"),
    )
    steps: tuple[int, ...] = option((120000, 160000), "where the learning rate drops by GAMMA", low=0)
    gamma: float = option(0.1, "factor of a drop", low=0, high=1)
    warmup_iters: int = option(1000, "steps until the full learning rate", low=0)
    warmup_factor: float = option(0.001, "where the warm-up starts", low=0, high=1)
    accumulate: int = option(1, "batches a step (torchvision engine)", low=1)
    reference_world_size: int = option(
        0, "processes that this config is meant for; with another number it is scaled; 0: never", low=0
    )
    checkpoint_period: int = option(5000, "steps between checkpoints", low=1)
    checkpoints_kept: int = option(2, "how many of them are kept", low=1)
    amp: AMP = section(AMP)
    clip_gradients: ClipGradients = section(ClipGradients)


@dataclass(frozen=True)
class Test:
    """TEST."""

    __test__ = False  # not a pytest class

    eval_period: int = option(5000, "steps between evaluations of student and teacher; 0: at the end alone", low=0)
    ims_per_batch: int = option(8, "test images a batch", low=1)
    detections_per_image: int = option(100, "detections kept of an image; above 100 also the limit of COCO's AP", low=1)
