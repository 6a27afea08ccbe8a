"""Images a second of a training step and of its data, on whatever device: `tools/gpu_check.py` prints them.

Beside each method stand its passes: those of the network that it cannot do without, each measured alone on the same
device. They are a yardstick, no lower bound: alone, small passes fill a GPU worse (docs/benchmarks.md).
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from sed.core.structures import Images, LabeledBatch, Targets, UnlabeledBatch
from sed.core.views import downscale
from sed.data.loaders import Stream, collate_unlabeled
from sed.data.mapper import UNLABELED, Mapper
from sed.detectors.build import DetectorSpec, build_detector
from sed.methods.base import Method, Schedule
from sed.methods.build import build_method
from sed.methods.pseudo_label import PseudoLabel, predict_pseudo_labels
from sed.options.methods import PseudoLabelOptions, SEDOptions, SEDPlusOptions
from sed.studies.cost import peak, reset_peak, timed

OBJECTS = 7  # of an image, as COCO has on average: of labelled images, and pseudo-labels


class UnbiasedTeacherPasses(PseudoLabel):
    """The pass structure of Unbiased Teacher's code: two views of each labelled image, one of each unlabelled one.

    Its losses and thresholds are those of `PseudoLabel`; only what a step costs is comparable.
    """

    def forward(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, step: int) -> dict[str, torch.Tensor]:
        """See `Method.forward`."""
        images = labeled.images
        both = Images(torch.cat([images.tensor, images.tensor]), images.sizes * 2)
        return super().forward(LabeledBatch(both, labeled.targets * 2), unlabeled, step)


class Passes(NamedTuple):
    """Network passes of a step: labelled, unlabelled at full and at half size (all with gradient), the teacher's."""

    labeled: int
    full: int = 0
    half: int = 0
    teacher: int = 0


PSEUDO = PseudoLabelOptions(threshold=0.0, box_loss=True)
METHODS: dict[str, tuple[str, Any, Passes]] = {
    "supervised": ("supervised", None, Passes(1)),
    "pseudo_label": ("pseudo_label", PSEUDO, Passes(1, 1, 0, 1)),
    "sed": ("sed", SEDOptions(), Passes(1, 1, 1, 1)),
    "sed_plus": ("sed_plus", SEDPlusOptions(threshold=0.0), Passes(1, 1, 1, 1)),
    "Unbiased Teacher's passes": ("", PSEUDO, Passes(2, 1, 0, 1)),
}


@dataclass(frozen=True)
class Load:
    """What is measured.

    Attributes:
        device: of the networks.
        size: side of the square images in pixels, a multiple of 128.
        images: n_s = n_u.
        precision: "float32", "tf32" (float32 with TF32 in products and convolutions) or "bfloat16" (autocast).
        depth: of the ResNet-FPN.
        channels_last: memory format of the network's weights.
        compiled: whether torch.compile compiles the backbones.
        repeats: the median of so many steps.
    """

    device: torch.device
    size: int = 800
    images: int = 8
    precision: str = "bfloat16"
    depth: int = 50
    channels_last: bool = False
    compiled: bool = False
    repeats: int = 6


def step_rates(load: Load, methods: Sequence[str] = tuple(METHODS)) -> Iterator[dict[str, Any]]:
    """One row a method, as soon as it is measured: the time of a step, images/s, peak memory, and its passes.

    The network is a ResNet-FPN Faster R-CNN with random weights, the images are noise; the teacher makes `OBJECTS`
    pseudo-labels an image. Images/s count those of both batches once, whatever the number of their views.
    """
    batches = _batches(load)
    seconds: dict[str, float] = {}
    for name in methods:
        kind, options, passes = METHODS[name]
        gc.collect()
        before = reset_peak(load.device)
        method = _method(load, kind, options)
        step = partial(_step, load, method, *batches, _optimizer(method))
        step()
        reset_peak(load.device)  # what choosing kernels and compiling took once is not the step's
        took = timed(step, load.repeats, load.device)
        memory = peak(load.device) - before
        if not seconds:
            seconds = _passes(load, method, *batches)
        alone = sum(count * seconds[kind] for kind, count in passes._asdict().items()) + seconds["update"]
        images = load.images * (1 if passes.teacher == 0 else 2)
        yield {
            "method": name,
            "precision": load.precision,
            "images": f"{load.images} + {load.images if passes.teacher else 0}",
            "network": " ".join(["channels_last"] * load.channels_last + ["compiled"] * load.compiled or ["as it is"]),
            "ms a step": 1000 * took,
            "images/s": images / took,
            "peak GiB": memory / 2**30,
            "ms passes": 1000 * alone,
            "step / passes": took / alone,
        }
        del method, step


def _batches(load: Load) -> tuple[LabeledBatch, UnlabeledBatch]:
    rng, n, size = np.random.default_rng(0), load.images, load.size
    pixels = torch.as_tensor(rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8))
    images = Images(pixels, ((size, size),) * n).to(load.device)
    corners = rng.uniform(0, size * 0.7, (n, OBJECTS, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(size * 0.04, size * 0.3, corners.shape)], axis=2)
    targets = [Targets(torch.as_tensor(b, dtype=torch.float32), torch.arange(OBJECTS)) for b in boxes]
    return LabeledBatch(images, tuple(t.to(load.device) for t in targets)), UnlabeledBatch(images, images)


def _method(load: Load, kind: str, options: Any) -> Method:
    torch.manual_seed(0)
    detector = build_detector(DetectorSpec(depth=load.depth, detections=OBJECTS))
    schedule = Schedule(0, 100, 90)
    if kind:
        method = build_method(kind, detector, schedule, options)
    else:
        method = UnbiasedTeacherPasses(detector, schedule, options)
    method.to(load.device).train()
    if load.channels_last:
        method.to(memory_format=torch.channels_last)
    if load.compiled:
        for network in (method.student, method.teacher.module):
            network.model.backbone.compile()
    return method


def _optimizer(method: Method) -> torch.optim.Optimizer:
    weights = [w for w in method.student.parameters() if w.requires_grad]
    return torch.optim.SGD(weights, lr=1e-6, momentum=0.9, fused=True)


def _step(
    load: Load,
    method: Method,
    labeled: LabeledBatch,
    unlabeled: UnlabeledBatch,
    optimizer: torch.optim.Optimizer,
) -> None:
    with _precision(load):
        losses = method(labeled, unlabeled, 1)
    optimizer.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    optimizer.step()
    method.update_teacher(1)


def _precision(load: Load) -> AbstractContextManager[None]:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = load.precision != "float32"
    return torch.autocast(load.device.type, torch.bfloat16, enabled=load.precision == "bfloat16")


def _passes(load: Load, method: Method, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> dict[str, float]:
    """Seconds of one pass of each kind, and of the update of weights and teacher."""
    student, teacher, optimizer = method.student, method.teacher.module, _optimizer(method)
    small = downscale(unlabeled.weak.pad_to_multiple(2 * student.size_divisibility), 1)
    halved = tuple(Targets(t.boxes / 2, t.classes) for t in labeled.targets)

    def with_gradient(batch: LabeledBatch) -> None:
        with _precision(load):
            losses = student.supervised_losses(batch)
        sum(losses.values()).backward()

    def teachers() -> None:
        with _precision(load):
            predict_pseudo_labels(teacher, unlabeled.weak, 0.0)

    def update() -> None:
        optimizer.step()
        method.update_teacher(1)

    def clock(call: Any) -> float:
        return timed(call, load.repeats, load.device)

    full = clock(partial(with_gradient, labeled))
    half = clock(partial(with_gradient, LabeledBatch(small, halved)))
    return {"labeled": full, "full": full, "half": half, "teacher": clock(teachers), "update": clock(update)}


# ---------------------------------------------------------------------------------------------- data
def data_rates(workers: Sequence[int], seconds: float = 8.0, batch: int = 16) -> Iterator[dict[str, Any]]:
    """Images/s of two views each, from 640 x 480 JPEGs to a short side of 640-800, by the number of worker processes.

    Args:
        workers: numbers of processes; 0 reads in this one.
        seconds: of measuring, after a batch from every worker.
        batch: images of a batch.
    """
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        records = []
        for i in range(64):
            noise = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
            path = str(Path(folder) / f"{i}.jpg")
            cv2.imwrite(path, cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC))
            records.append({"file_name": path, "image_id": i, "height": 480, "width": 640})
        mapper = Mapper(min_size=(640, 800), max_size=1333)
        for number in workers:
            stream = Stream(records, mapper.unlabeled, batch, 0, UNLABELED, collate_unlabeled, num_workers=number)
            for _ in range(3 * max(1, number)):  # what the workers have read ahead is not counted
                next(stream)
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                next(stream)
                count += batch
            rate = count / (time.perf_counter() - start)
            stream.close()
            yield {"workers": number, "images/s, two views": rate}
