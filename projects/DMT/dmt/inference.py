"""What a trained model says: scores on labelled images, pseudo-labels for the others.

Images are shared among the processes; scores and rankings are merged, so that every process returns the same.

Shape shorthand: C classes, H and W of an image's file.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from dmt.augmentation import SegmentationTest
from dmt.classification_augmentation import ClassificationTest
from dmt.curriculum import Ranking, predict
from dmt.image_sets import ImageSet
from dmt.label_store import LabelStore
from dmt.loading import TestPart, test_batches
from dmt.metrics import ClassificationScore, confusion, mean_iou
from sed.engine.solver import Precision
from sed.runtime.launch import rank, world_size

Scores = dict[str, float]
WRITERS = 4  # threads that write pseudo-labels


@dataclass(frozen=True)
class Inference:
    """How images go through a model.

    Attributes:
        transform: file's pixels -> network's input; and for segmentation the way back.
        precision: autocast or not.
        device: where.
        batch_size: images a pass.
        num_workers: processes that read.
    """

    transform: SegmentationTest | ClassificationTest
    precision: Precision
    device: torch.device
    batch_size: int = 8
    num_workers: int = 0

    @torch.inference_mode()
    def parts(
        self,
        model: nn.Module,
        images: ImageSet,
        indices: Sequence[int],
        what: str = "",
        known: Callable[[int], bool] = lambda index: False,
    ) -> Iterator[tuple[TestPart, Tensor]]:
        """This process's images, batch by batch, each with its logits [B, C, h, w] or [B, C], float32.

        Args:
            model: put into eval mode, and back afterwards.
            images: the set.
            indices: which of them, over all processes.
            what: text of the progress bar; "": none.
            known: batches of which every image is known are passed over.
        """
        own = list(indices[rank() :: world_size()])
        batches = [own[i : i + self.batch_size] for i in range(0, len(own), self.batch_size)]
        batches = [batch for batch in batches if not all(map(known, batch))]
        was_training = model.training
        model.eval()
        try:
            shown = test_batches(images, batches, self.transform, self.num_workers)
            quiet = not what or rank() != 0 or not sys.stdout.isatty()
            for batch in tqdm(shown, total=len(batches), desc=what, disable=quiet, file=sys.stdout, leave=False):
                for part in batch:
                    yield part, self._forward(model, part.pixels)
        finally:
            model.train(was_training)

    def masks(self, *args: Any, **options: Any) -> Iterator[tuple[int, Tensor]]:
        """The images of `parts` (same arguments) one by one: index and logits [C, H, W] at the size of its file."""
        for part, answers in self.parts(*args, **options):
            for index, size, logits in zip(part.indices, part.sizes, answers, strict=True):
                yield index, self._restore(logits, size)

    @torch.inference_mode()
    def ask(self, model: nn.Module, image: np.ndarray) -> Tensor:
        """Logits [C, H, W] or [C] of one image [H, W, 3] uint8; `model` is in eval mode afterwards."""
        return self._restore(self._forward(model.eval(), self.transform(image)[None])[0], image.shape[:2])

    def _forward(self, model: nn.Module, pixels: Tensor) -> Tensor:
        with self.precision.autocast():
            logits = model(pixels.to(self.device, non_blocking=True))
        return logits.float()

    def _restore(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        return self.transform.restore(logits, size) if isinstance(self.transform, SegmentationTest) else logits

    # ------------------------------------------------------------------------------------------ scores
    def evaluate(self, model: nn.Module, images: ImageSet, indices: Sequence[int], what: str = "") -> Scores:
        """Percent; "score" is what chooses a model.

        Returns:
            Segmentation: "mIoU" (over classes that occur), "IoU/<class>", "score" (the mIoU); classification:
            "accuracy", "fine_grained" (sum of the winning probabilities of what is right / images), "score".
        """
        classes = len(images.classes)
        if isinstance(self.transform, SegmentationTest):
            matrix = torch.zeros(classes, classes, dtype=torch.int64, device=self.device)
            for index, logits in self.masks(model, images, indices, what):
                truth = torch.from_numpy(images.target(index)).to(self.device)
                matrix += confusion(truth, logits.argmax(0), classes)
            _sum_over_processes(matrix)
            mean, each = mean_iou(matrix)
            known = zip(images.classes, each.tolist(), strict=True)
            scores = {f"IoU/{name}": 100 * value for name, value in known if not math.isnan(value)}
            return {"score": 100 * float(mean), "mIoU": 100 * float(mean), **scores}
        counts = ClassificationScore()
        for part, logits in self.parts(model, images, indices, what):
            counts.add(logits.softmax(1).cpu(), torch.tensor([images.target(index) for index in part.indices]))
        sums = torch.tensor([counts.images, counts.right, counts.confidence], dtype=torch.float64)
        _sum_over_processes(sums)
        counts.images, counts.right, counts.confidence = sums.tolist()
        accuracy, fine_grained = 100 * counts.accuracy, 100 * counts.fine_grained
        return {"score": accuracy, "accuracy": accuracy, "fine_grained": fine_grained}

    # ------------------------------------------------------------------------------------------ pseudo-labels
    def label(
        self,
        model: nn.Module,
        images: ImageSet,
        indices: Sequence[int],
        store: LabelStore,
        thresholds: Tensor | None = None,
        what: str = "",
    ) -> Ranking:
        """Write every pixel's label and confidence to `store`; what lies there already is kept.

        Args:
            model: the labeller.
            images: the set.
            indices: which of them, over all processes.
            store: where to.
            thresholds: [C] k_c in (0, 1]: labels are CBST's argmax p / k_c.
            what: text of the progress bar.

        Returns:
            The confidences of all of them, by class, merged over processes.
        """
        ranking = Ranking(len(images.classes))
        keys = images.keys
        written = set()
        with ThreadPoolExecutor(WRITERS) as pool:  # PNGs are packed beside the next pass
            writes: deque[Future] = deque()
            for index, logits in self.masks(model, images, indices, what, lambda index: keys[index] in store):
                labels, codes = predict(logits[None], thresholds)
                labels, codes = labels[0].cpu().numpy(), codes[0].cpu().numpy().astype(np.uint16)
                writes.append(pool.submit(store.write, keys[index], labels, codes))
                ranking.add(labels, codes)
                written.add(index)
                if len(writes) > 2 * WRITERS:
                    writes.popleft().result()
            for write in writes:
                write.result()
        for index in indices[rank() :: world_size()]:
            if index not in written:  # by a run that was interrupted
                ranking.add(*store.read(keys[index]))
        ranking.merge()
        return ranking

    def label_whole(
        self, model: nn.Module, images: ImageSet, indices: Sequence[int], what: str = ""
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels [N] uint8 and codes [N] uint16 of whole images, in the order of `indices`; in every process all."""
        mine: dict[int, tuple[int, int]] = {}
        for part, logits in self.parts(model, images, indices, what):
            labels, codes = (found.tolist() for found in predict(logits))
            mine.update(zip(part.indices, zip(labels, codes, strict=True), strict=True))
        if world_size() > 1:
            parts: list[dict[int, tuple[int, int]]] = [{}] * world_size()
            dist.all_gather_object(parts, mine)
            mine = {index: pair for part in parts for index, pair in part.items()}
        table = np.array([mine[index] for index in indices], np.int64).reshape(-1, 2)
        return table[:, 0].astype(np.uint8), table[:, 1].astype(np.uint16)


def _sum_over_processes(values: Tensor) -> None:
    if world_size() > 1:
        dist.all_reduce(values)
