"""What a SED step costs beside a supervised one (docs/method.md 8, docs/benchmarks.md); `tools/bench.py` prints it.

The floor is counted in network passes, each measured alone: the supervised step as it is, one more pass with gradient
on the strong view, a quarter of one on the half-size view, the teacher's pass without, and the region heads on the
pairs that the terms need. What the step takes beyond it is this project's overhead.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from sed.core.consistency import dense_consistency, region_consistency
from sed.core.structures import DenseLevel, Images, LabeledBatch, RegionPrediction, Targets, UnlabeledBatch
from sed.core.views import downscale
from sed.data.augmentation import resize_shortest
from sed.data.images import read_image
from sed.data.loaders import start_worker
from sed.data.mapper import Mapper
from sed.detectors.build import DetectorSpec, build_detector
from sed.methods.base import Method, Schedule
from sed.methods.build import build_method
from sed.options.methods import SEDOptions


class Row(NamedTuple):
    """One figure: what, its value, and the bound that it should keep (None: no bound)."""

    what: str
    value: float
    bound: float | None


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        device: of the networks.
        size: side of the square images in pixels, a multiple of 128.
        images: n_s = n_u.
        depth: of the ResNet-FPN.
        regions: proposals a view.
        repeats: the median of so many.
    """

    device: torch.device
    size: int
    images: int
    depth: int
    regions: int
    repeats: int


def step_cost(setting: Setting) -> list[Row]:
    """Time and memory of a training step."""
    n, size, device = setting.images, setting.size, setting.device
    pixels = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, device=device)
    images = Images(pixels, ((size, size),) * n)
    boxes = torch.tensor([[20.0, 20, 120, 140], [60, 30, 200, 180]], device=device)
    labeled = LabeledBatch(images, (Targets(boxes, torch.tensor([1, 2], device=device)),) * n)
    unlabeled = UnlabeledBatch(images, images)

    def measure(name: str) -> tuple[float, float, Method]:
        """Seconds of a step, bytes at its peak (weights and optimizer included), and the method."""
        gc.collect()
        torch.manual_seed(0)
        before = reset_peak(device)
        detector = build_detector(DetectorSpec(depth=setting.depth))
        method = build_method(
            name,
            detector,
            Schedule(0, 100, 90),
            SEDOptions(regions_per_view=setting.regions) if name == "sed" else None,
        )
        method.to(device).train()
        optimizer = torch.optim.SGD((p for p in detector.parameters() if p.requires_grad), lr=1e-5, momentum=0.9)

        def step() -> None:
            losses = method(labeled, unlabeled, 1)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            method.update_teacher(1)

        return timed(step, setting.repeats, device), peak(device) - before, method

    seconds, memory = {}, {}
    seconds["supervised"], memory["supervised"], _ = measure("supervised")
    del _
    seconds["sed"], memory["sed"], method = measure("sed")
    passes, terms, ema = _parts(method, images, setting)
    floor = seconds["supervised"] + passes
    total = seconds["sed"]
    print(
        f"supervised step {seconds['supervised']:.3f} s, SED step {total:.3f} s, floor {floor:.3f} s; "
        f"peak memory {memory['supervised'] / 2**20:.0f} and {memory['sed'] / 2**20:.0f} MiB"
    )
    outside = "outside the network (losses and re-weighting, forward and backward, and EMA) / step"
    return [
        Row("SED step / supervised step", total / seconds["supervised"], None),
        Row(
            "floor of passes (region heads counted) / supervised step",
            floor / seconds["supervised"],
            None,
        ),
        Row("SED step / floor", total / floor, 1.10),
        Row(outside, (terms + ema) / total, 0.03),
        Row("EMA / step", ema / total, 0.01),
        Row("peak memory, SED / supervised", memory["sed"] / memory["supervised"], 1.8),
    ]


def _parts(method: Method, images: Images, setting: Setting) -> tuple[float, float, float]:
    """Seconds of what SED adds: (network passes and region heads, consistency terms, EMA)."""
    student, teacher = method.student, method.teacher.module
    regions, repeats, device = setting.regions, setting.repeats, setting.device
    small = downscale(images, 1)
    rng = np.random.default_rng(0)
    corners = torch.as_tensor(rng.uniform(0, images.padded_size[0] / 2, (2 * regions, 2)), dtype=torch.float32)
    boxes = [torch.cat([corners, corners + 64], dim=1).to(device)] * len(images)

    def dense_pass(view: Images) -> None:
        levels = student.dense(student.encode(view)).levels
        sum(level.logits.sum() + level.deltas.sum() for level in levels).backward()

    @torch.no_grad()
    def teacher_pass() -> None:
        features = teacher.encode(images)
        teacher.propose(features, teacher.dense(features), regions)
        teacher.regions(features, boxes)

    def region_pass(view: Images, scale: float) -> Callable[[], None]:
        with torch.no_grad():
            features = student.encode(view)
        for name, feature_map in features.maps.items():
            features.maps[name] = feature_map.requires_grad_()

        def run() -> None:
            prediction = student.regions(features, [b * scale for b in boxes])
            (prediction.logits.sum() + prediction.deltas.sum()).backward()

        return run

    def clock(call: Callable[[], None]) -> float:
        return timed(call, repeats, device)

    full_regions = clock(region_pass(images, 1.0))
    passes = 1.25 * clock(lambda: dense_pass(images)) + clock(teacher_pass)  # a half-size pass is a quarter
    passes += 2 * full_regions + clock(region_pass(small, 0.5))  # distillation, scale on X, scale on X^
    with torch.no_grad():
        features, half = student.encode(images), student.encode(small)
        target, own = student.regions(features, boxes), teacher.regions(features, boxes)
        views = [_leaves(student.dense(f).levels) for f in (features, features, half)]
    pairs = (list(zip(views[0], views[1], strict=True)), list(zip(views[0][1:], views[2][:-1], strict=True)))

    def terms() -> None:
        for pair, symmetric in zip(pairs, (False, True), strict=True):
            dense = dense_consistency(pair, method.reweight, symmetric=symmetric)
            region = region_consistency(_leaf(target), _leaf(own), method.reweight, symmetric=symmetric)
            (dense.cls + dense.box + region.cls + region.box).backward()

    return passes, clock(terms), clock(lambda: method.update_teacher(1))


def _leaves(levels: tuple[DenseLevel, ...]) -> list[DenseLevel]:
    return [DenseLevel(v.level, v.grid, v.logits.requires_grad_(), v.deltas.requires_grad_(), v.valid) for v in levels]


def _leaf(p: RegionPrediction) -> RegionPrediction:
    return RegionPrediction(p.logits.detach().requires_grad_(), p.deltas.detach().requires_grad_(), p.counts)


def data_cost(images: int = 200) -> Row:
    """Two views against decode + resize on one core, short side 640-800, a 640 x 480 JPEG."""
    start_worker()  # as in a loader's process
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "photo.jpg")
        cv2.imwrite(path, picture)
        record = {"file_name": path, "image_id": 0, "height": 480, "width": 640}
        mapper = Mapper(min_size=(640, 800), max_size=1333)
        shorts = np.random.default_rng(1).integers(640, 801, images)
        plain, both = [], []
        for position, short in enumerate(shorts):  # in turns, so that a busy moment of the machine meets both
            start = time.perf_counter()
            resize_shortest(read_image(record), int(short), 1333)
            middle = time.perf_counter()
            mapper.unlabeled(record, position)
            plain.append(middle - start)
            both.append(time.perf_counter() - middle)
    once, views = statistics.mean(plain), statistics.mean(both)  # the mean: what a view costs is drawn at random
    print(f"data, one core: decode + resize {1 / once:.0f} images/s, both views {1 / views:.0f} images/s")
    return Row("both views / (decode + resize)", views / once, 2.2)


def timed(call: Callable[[], None], repeats: int, device: torch.device) -> float:
    """Median seconds of `call` after one warm-up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def reset_peak(device: torch.device) -> float:
    """Forget the peak; bytes in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(ctypes.util.find_library("c")).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM starts again from the present
    return _status("VmRSS")


def peak(device: torch.device) -> float:
    """Bytes at the peak since `reset_peak`."""
    return float(torch.cuda.max_memory_allocated()) if device.type == "cuda" else _status("VmHWM")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(key))
