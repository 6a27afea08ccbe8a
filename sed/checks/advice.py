"""Suggests settings of the config for a user's data, each with its reason.

They are starting points derived from sizes and counts, not results of a search. They follow configs/custom.yaml (4
labelled and 4 unlabelled images on one GPU) and the paper's recipes (docs/method.md 9).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SMALLEST = 20  # pixels that nine of ten objects should have in training (square root of the area)
LARGE_ENOUGH = 800  # pixels of the short side; larger only for small objects
SIDES = (320, 1216)  # pixels of the short side, limits
COVERED = 0.5  # least IoU of an anchor's shape with a box that it covers
ENOUGH = 0.95  # share of covered boxes that needs no other anchors
GAIN = 0.02  # share of boxes that other anchors must cover in addition
PER_GPU = 4  # labelled images a GPU and step, as in configs/custom.yaml
LARGEST = 16  # labelled images a step: in proportion, the paper's highest learning rate, 0.02
RATE, RATE_IMAGES = 0.01, 16  # the paper's learning rate and its images a step, labelled and unlabelled
SEEN = 64  # times that a step sees each labelled image: VOC, 40000 steps of 8 of 5011 images
SEEN_LIMITS = (72_000, 1_440_000)  # labelled images: custom.yaml's 18000 x 4, the paper's 180000 x 8


@dataclass(frozen=True)
class Advice:
    """A suggested value of one config key.

    Attributes:
        key: of the config.
        value: what to set.
        now: what the config has.
        reason: why.
    """

    key: str
    value: object
    now: object
    reason: str


@dataclass(frozen=True)
class Setup:
    """The settings of a config that the check needs, as scalars.

    Attributes:
        classes_key: the key of the number of classes.
        num_classes: its value.
        min_size: INPUT.MIN_SIZE_TRAIN.
        max_size: INPUT.MAX_SIZE_TRAIN.
        min_size_test: INPUT.MIN_SIZE_TEST.
        max_size_test: INPUT.MAX_SIZE_TEST.
        anchor_sizes: MODEL.ANCHOR_GENERATOR.SIZES; empty: a detector without anchors.
        anchor_ratios: MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS, height by width.
        labelled: SEMI.IMS_PER_BATCH_LABELED.
        unlabelled: SEMI.IMS_PER_BATCH_UNLABELED.
        rate: SOLVER.BASE_LR.
        optimizer: SOLVER.OPTIMIZER.
        iterations: SOLVER.MAX_ITER.
        steps: SOLVER.STEPS.
        burn_in: SEMI.BURN_IN.
        method: SEMI.METHOD.
        percent: SEMI.LABELED_PERCENT.
        count: SEMI.LABELED_COUNT.
        fold: SEMI.FOLD.
        gpus: processes of the run.
        reference: SOLVER.REFERENCE_WORLD_SIZE.
    """

    classes_key: str
    num_classes: int
    min_size: tuple[int, ...]
    max_size: int
    min_size_test: int
    max_size_test: int
    anchor_sizes: Sequence[Sequence[float]]
    anchor_ratios: Sequence[Sequence[float]]
    labelled: int
    unlabelled: int
    rate: float
    optimizer: str
    iterations: int
    steps: tuple[int, ...]
    burn_in: int
    method: str
    percent: float
    count: int
    fold: int
    gpus: int = 1
    reference: int = 0


def advise(
    setup: Setup,
    classes: int,
    boxes: np.ndarray,
    frames: np.ndarray,
    images: np.ndarray,
    labelled: int,
    unlabelled: int,
) -> list[Advice]:
    """The suggested settings for a data set.

    Args:
        setup: the config.
        classes: K of the labelled set.
        boxes: [B, 2] width and height in pixels of the labelled boxes that can be used, B > 0.
        frames: [B, 2] width and height of their images.
        images: [N, 2] width and height of all training images, N > 0.
        labelled: number of labelled images.
        unlabelled: number of unlabelled images.
    """
    rows = [Advice(setup.classes_key, classes, setup.num_classes, "the categories of the labelled set")]
    side, low, longest, why = _image_size(boxes, frames, images)
    short = f"drawn from {low} on, eight tenths of it, as the paper's 640 to 800"
    rows.append(Advice("INPUT.MIN_SIZE_TRAIN", (low, side), setup.min_size, f"{why}; {short}"))
    rows.append(Advice("INPUT.MAX_SIZE_TRAIN", longest, setup.max_size, "19 of 20 images keep their full short side"))
    rows.append(Advice("INPUT.MIN_SIZE_TEST", side, setup.min_size_test, "the largest size of training"))
    rows.append(Advice("INPUT.MAX_SIZE_TEST", longest, setup.max_size_test, "as in training"))
    if len(setup.anchor_sizes):
        rows += _anchors(setup, boxes, frames, (low + side) / 2, longest)
    return rows + _schedule(setup, side, longest, labelled, unlabelled)


def _image_size(boxes: np.ndarray, frames: np.ndarray, images: np.ndarray) -> tuple[int, int, int, str]:
    """Longest and shortest short side, limit of the long side, and why."""
    native = float(np.median(images.min(1)))
    relative = float(np.quantile(np.sqrt(boxes.prod(1)) / frames.min(1), 0.1))
    base = min(native, LARGE_ENOUGH)
    wanted = SMALLEST / max(relative, 1e-6)
    side = max(base, min(wanted, 2 * native))
    why = f"the files have a short side of {native:.0f} pixels, nine of ten boxes {relative * native:.0f} or more"
    if side > base:
        why += f"; enlarged so that they have {relative * min(side, SIDES[1]):.0f}"
    elif native > base:
        why += f", {relative * base:.0f} at this size"
    why += f"; no less than {SIDES[0]}" if side < SIDES[0] else ""
    side = round(min(max(side, SIDES[0]), SIDES[1]) / 32) * 32
    aspect = float(np.quantile(images.max(1) / images.min(1), 0.95))
    limit = round(1.67 * side)  # the paper's 1333 for 800
    longest = min(math.ceil(side * aspect / 32) * 32, math.ceil(limit / 32) * 32)
    return side, round(0.8 * side / 32) * 32, max(longest, side), why


def _anchors(setup: Setup, boxes: np.ndarray, frames: np.ndarray, side: float, longest: float) -> list[Advice]:
    """Anchors that cover the boxes, as many as in the config, so that pretrained heads fit."""
    scale = np.minimum(side / frames.min(1), longest / frames.max(1))
    seen = boxes * scale[:, None]
    sizes, ratios = [list(s) for s in setup.anchor_sizes], [list(r) for r in setup.anchor_ratios]
    now = coverage(seen, sizes, ratios)
    best, best_sizes, best_ratios = now, sizes, ratios
    choices = [ratios] if now < ENOUGH else []  # the fewest changes first
    if choices and len(ratios) == 1 and len(ratios[0]) == 3:
        choices += [[[round(1 / r, 3), 1.0, float(r)]] for r in (1.5, 3.0, 4.0)]
        middle = float(np.exp(np.median(np.log(seen[:, 1] / seen[:, 0]))))
        choices.append([[round(middle * f, 2) for f in (0.5, 1.0, 2.0)]])
    for choice in choices:
        for factor in (0.25, 0.5, 1.0, 2.0):
            scaled = [[_tidy(s * factor) for s in level] for level in sizes]
            share = coverage(seen, scaled, choice)
            if share > best + GAIN:
                best, best_sizes, best_ratios = share, scaled, choice
        if best >= ENOUGH:
            break
    reason = f"cover {100 * best:.1f} % of the boxes at this image size (IoU of the shapes at least {COVERED})"
    if best_sizes != sizes or best_ratios != ratios:
        reason += f"; the config's cover {100 * now:.1f} %"
    return [
        Advice("MODEL.ANCHOR_GENERATOR.SIZES", best_sizes, sizes, reason),
        Advice("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", best_ratios, ratios, "height by width; see the sizes"),
    ]


def _tidy(value: float) -> float:
    return int(value) if value == int(value) else round(value, 1)


def coverage(boxes: np.ndarray, sizes: Sequence[Sequence[float]], ratios: Sequence[Sequence[float]]) -> float:
    """Share of boxes [B, 2] (width, height) that some anchor of the same centre covers with IoU >= COVERED."""
    shapes = []
    for level, edges in enumerate(sizes):
        for ratio in ratios[level if len(ratios) > 1 else 0]:
            shapes += [(edge / math.sqrt(ratio), edge * math.sqrt(ratio)) for edge in edges]
    anchors = np.array(shapes)
    best = np.zeros(len(boxes))
    for width, height in anchors:
        inner = np.minimum(boxes[:, 0], width) * np.minimum(boxes[:, 1], height)
        best = np.maximum(best, inner / (boxes.prod(1) + width * height - inner))
    return float((best >= COVERED).mean())


def _schedule(setup: Setup, side: int, longest: int, labelled: int, unlabelled: int) -> list[Advice]:
    gpus = max(1, setup.gpus)
    per_gpu = PER_GPU if side * longest <= 800 * 1344 else PER_GPU // 2
    per_gpu = max(1, min(per_gpu, LARGEST // gpus, labelled // gpus))
    batch = per_gpu * gpus
    second = batch if unlabelled or setup.method != "supervised" else setup.unlabelled
    total = batch + second
    reason = f"{per_gpu} a GPU on {gpus}"
    if per_gpu < PER_GPU:
        reason += " (fewer than custom.yaml's 4: " + (
            f"{labelled} labelled images)" if labelled // gpus <= per_gpu else "large images, or many GPUs)"
        )
    rows = [Advice("SOLVER.REFERENCE_WORLD_SIZE", 0, setup.reference, "what follows is for these GPUs already")]
    rows = [
        *(rows if setup.reference else []),
        Advice("SEMI.IMS_PER_BATCH_LABELED", batch, setup.labelled, reason),
        Advice("SEMI.IMS_PER_BATCH_UNLABELED", second, setup.unlabelled, "as many as labelled ones"),
    ]
    if setup.optimizer == "SGD":
        rate = float(f"{RATE * total / RATE_IMAGES:.4g}")
        reason = f"{RATE} for 8 + 8 images, in proportion to {batch} + {second}"
        rows.append(Advice("SOLVER.BASE_LR", rate, setup.rate, reason))
    views = min(max(SEEN * labelled, SEEN_LIMITS[0]), SEEN_LIMITS[1])
    iterations = max(500, round(views / batch / 500) * 500)
    epochs = iterations * batch / max(1, labelled)
    reason = f"each of {labelled} labelled images is seen {epochs:.0f} times"
    if views == SEEN_LIMITS[0]:
        reason += "; as many images in all as configs/custom.yaml sees, a small set needs no more"
    elif views == SEEN_LIMITS[1]:
        reason += "; as many images in all as the paper's COCO recipe sees"
    steps = (round(iterations * 2 / 3 / 100) * 100, round(iterations * 8 / 9 / 100) * 100)
    burn_in = round(iterations / 9 / 100) * 100
    return [
        *rows,
        Advice("SOLVER.MAX_ITER", iterations, setup.iterations, reason),
        Advice("SOLVER.STEPS", steps, setup.steps, "after 2/3 and 8/9 of the steps, as in the paper"),
        Advice("SEMI.BURN_IN", burn_in, setup.burn_in, "a ninth of the steps, as in configs/custom.yaml"),
    ]
