"""A detector, a method and streams of a few numbers, so that a whole training takes less than a second."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sed.core.structures import Detections, Images, LabeledBatch, Targets, UnlabeledBatch
from sed.detectors.base import Detector, Features
from sed.engine.solver import Clip, LearningRate, Precision, build_optimizer, lr_factor
from sed.engine.trainer import LoopOptions, Trainer
from sed.methods.base import Method, Schedule

SIDE = 8


class TinyDetector(Detector):
    """Two convolutions; its losses are means over images, so that batches add up exactly."""

    heads = frozenset({"dense"})
    size_divisibility = 4

    def __init__(self, channels: int = 4, norm: str = "GN", dropout: float = 0.0) -> None:
        super().__init__()
        self.num_classes = 2
        layer = nn.GroupNorm(2, channels) if norm == "GN" else nn.BatchNorm2d(channels)
        conv = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.model = nn.ModuleDict({"backbone": nn.Sequential(conv, layer), "head": nn.Conv2d(channels, 5, 1)})
        self.dropout = nn.Dropout(dropout)

    def raw(self, images: Images) -> Tensor:
        """[N, 5] numbers an image."""
        x = self.model["backbone"](images.tensor.float() / 255).relu()
        return self.model["head"](self.dropout(x)).mean((2, 3))

    def supervised_losses(self, batch: LabeledBatch) -> dict[str, Tensor]:
        out = self.raw(batch.images)
        classes = torch.stack([t.classes[0] for t in batch.targets])
        boxes = torch.stack([t.boxes[0] for t in batch.targets]) / SIDE
        return {
            "dense_cls": nn.functional.cross_entropy(out[:, :2].float(), classes),
            "dense_box": (out[:, 1:].float() - boxes).square().mean(),
        }

    def encode(self, images: Images) -> Features:
        raise NotImplementedError

    def detect(self, images: Images) -> list[Detections]:
        boxes = torch.tensor([[1.0, 1.0, 5.0, 5.0]])
        return [Detections(boxes, row[:1].sigmoid(), torch.zeros(1, dtype=torch.long)) for row in self.raw(images)]

    def plain_state_dict(self) -> dict[str, Tensor]:
        return self.model.state_dict()


class TinyMethod(Method):
    """Supervised losses and a squared distance to the teacher."""

    def forward(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, step: int) -> dict[str, Tensor]:
        losses = self.supervised(labeled)
        if unlabeled is not None:
            with torch.no_grad():
                target = self.teacher.module.raw(unlabeled.weak)
            losses["distill/dense_cls"] = (self.student.raw(unlabeled.strong) - target).square().mean()
            self.metrics["teacher_positives"] = (target > 1e6).sum()
        return losses


class TinyStream:
    """Batch number p is a function of (seed, p); `poison` lists positions whose pixels are NaN."""

    def __init__(
        self, batch: int, seed: int, labeled: bool, rank: int = 0, world: int = 1, poison: tuple[int, ...] = ()
    ) -> None:
        self.batch, self.seed, self.labeled, self.rank, self.world = batch, seed, labeled, rank, world
        self.poison, self.position = poison, 0

    def __iter__(self) -> TinyStream:
        return self

    def seek(self, position: int) -> None:
        self.position = position

    def __next__(self) -> LabeledBatch | UnlabeledBatch:
        rows = [self.sample(self.position * self.batch + i) for i in range(self.batch)]
        share = self.batch // self.world
        rows = rows[self.rank * share : (self.rank + 1) * share]
        pixels = torch.stack([row[0] for row in rows])
        if self.position in self.poison:
            pixels[:] = torch.nan
        self.position += 1
        images = Images(pixels, ((SIDE, SIDE),) * len(rows))
        if self.labeled:
            return LabeledBatch(images, tuple(Targets(b[None], c[None]) for _, b, c in rows))
        return UnlabeledBatch(images, Images(pixels * 0.9, images.sizes))

    def sample(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + number)
        pixels = torch.rand(3, SIDE, SIDE, generator=generator) * 255
        box = torch.tensor([0.0, 0.0, 1.0, 1.0]) + torch.rand(4, generator=generator) * 3
        return pixels, box, torch.randint(0, 2, (), generator=generator)


def make_trainer(
    folder: Path,
    *,
    max_iter: int = 6,
    batch: int = 4,
    burn_in: int = 2,
    detector: dict | None = None,
    optimizer: str = "AdamW",
    evaluate=None,
    poison: tuple[int, ...] = (),
    amp: str = "",
    clip: Clip | None = None,
    rank: int = 0,
    world: int = 1,
    **options,
) -> Trainer:
    """A whole trainer around the tiny parts; the same seed gives the same weights."""
    torch.manual_seed(0)
    student = TinyDetector(**(detector or {}))
    method = TinyMethod(student, Schedule(burn_in=burn_in, max_iter=max_iter, first_drop=max_iter))
    built = build_optimizer(
        student,
        optimizer,
        lr=0.01,
        momentum=0.9,
        weight_decay=0.01,
        weight_decay_norm=0.0,
        backbone_multiplier=1.0,
    )
    factor = lr_factor("WarmupMultiStepLR", max_iter=max_iter, steps=(), gamma=0.1, warmup_iters=2, warmup_factor=0.5)
    defaults = {"max_iter": max_iter, "accumulate": 1, "checkpoint_period": 2, "checkpoints_kept": 2, "eval_period": 0}
    defaults["collapse_steps"] = 1000
    device = torch.device("cpu")
    return Trainer(
        method,
        built,
        LearningRate.of(built, factor),
        TinyStream(batch, 1, True, rank, world, poison),
        TinyStream(batch, 2, False, rank, world),
        evaluate,
        LoopOptions(**{**defaults, **options}),
        Precision(bool(amp), amp or "bfloat16", device),
        clip or Clip("full_model", 1.0),
        folder,
        device,
    )


def same(a: object, b: object, path: str = "") -> None:
    """Assert that two nests of dicts, lists and tensors agree bit for bit."""
    if isinstance(a, Tensor):
        assert isinstance(b, Tensor), path
        assert a.dtype == b.dtype, path
        assert torch.equal(a, b), f"{path}: {(a - b).abs().max() if a.is_floating_point() else 'differs'}"
    elif isinstance(a, dict):
        assert isinstance(b, dict), path
        assert a.keys() == b.keys(), path
        for key in a:
            same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{path}[{i}]")
    else:
        assert a == b or (a != a and b != b), f"{path}: {a!r} != {b!r}"


# ------------------------------------------------------------------------------- run in spawned processes
def train_two(folder: str, max_iter: int, accumulate: int) -> None:
    """One of two gloo processes, each with its half of the batch."""
    from sed.runtime.launch import rank, world_size

    assert world_size() == 2
    torch.set_num_threads(1)
    trainer = make_trainer(
        Path(folder), max_iter=max_iter, rank=rank(), world=2, checkpoint_period=max_iter, accumulate=accumulate
    )
    trainer.train()
    torch.save(trainer.method.state_dict(), Path(folder) / f"rank{rank()}.pth")


def poisoned_rank(folder: str) -> None:
    """Only rank 1 meets a NaN (step 1) and an infinite loss with finite gradients (step 2); both must skip."""
    from sed.runtime.launch import rank

    torch.set_num_threads(1)
    poison = (1,) if rank() == 1 else ()
    trainer = make_trainer(Path(folder), max_iter=4, burn_in=9, rank=rank(), world=2, poison=poison)
    plain = trainer.method.supervised

    def supervised(labeled: LabeledBatch) -> dict[str, Tensor]:
        bad = rank() == 1 and trainer.step == 2
        return plain(labeled) | (
            {"sup/constant": torch.tensor(torch.inf)} if bad else {"sup/constant": torch.zeros(())}
        )

    trainer.method.supervised = supervised
    trainer.train()
    torch.save((trainer.counters.skipped, trainer.method.state_dict()), Path(folder) / f"poison{rank()}.pth")


def evaluate_two(folder: str) -> None:
    """Each process detects on every second image; both get the metrics of all."""
    from sed.evaluation.coco import evaluate
    from sed.runtime.launch import rank, world_size
    from tests.reference.metrics import hand_made

    dataset, detector, loader = hand_made(rank(), world_size())
    torch.save(evaluate(detector, loader, dataset, "cpu"), Path(folder) / f"metrics{rank()}.pth")


def both(folder: str) -> None:
    """All two-process checks in one pair of processes: starting them is what takes time."""
    for name, accumulate in (("plain", 1), ("accumulate", 2)):
        sub = Path(folder) / name
        sub.mkdir(exist_ok=True)
        train_two(str(sub), 4, accumulate)
    poisoned_rank(folder)
    evaluate_two(folder)
