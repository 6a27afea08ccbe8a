"""Endless training batches that can go on from any step, and test images in order.

A training batch is planned over all processes, pseudo-labelled images first; of W processes each takes every W-th. What
a sample
looks like follows from (seed, source, number of the draw) alone: `seek` replays the plan without reading an image, and
neither the number of workers nor of processes changes the data.

Shape shorthand: B images of this process's share, * is (h, w) for segmentation and () for classification.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dmt.augmentation import SegmentationTrain
from dmt.classification_augmentation import ClassificationTrain
from dmt.curriculum import thresholded
from dmt.image_sets import ImageSet
from dmt.label_store import LabelStore
from sed.data.errors import DataError
from sed.data.loaders import Resumable, batch_loader, permutations

Sample = tuple[Tensor, Tensor, Tensor]  # image [3, h, w] float32, labels [*] int64, codes [*] int32


@dataclass(frozen=True)
class Batch:
    """Images of one step.

    Attributes:
        images: [B, 3, h, w] float32, normalised.
        labels: [B, *] int64, 255 ignored; zeros where the model labels online.
        codes: [B, *] int32: stored confidences (`dmt.curriculum`); zeros on labelled images.
        pseudo: [B] bool: whose labels are pseudo-labels.
    """

    images: Tensor
    labels: Tensor
    codes: Tensor
    pseudo: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on `device`, without waiting."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))

    def pin_memory(self) -> Batch:
        """The same in page-locked memory; DataLoader calls it."""
        return Batch(*(tensor.pin_memory() for tensor in vars(self).values()))


@dataclass(frozen=True)
class Source:
    """Where some of a batch's images come from.

    Attributes:
        images: the set.
        indices: which images of it.
        per_batch: how many of them a batch holds, over all processes.
        transform: augmentation and normalisation.
        labels: index -> its pseudo-labels; None: the set's own labels or, for `pseudo`, none: zeros, for the model to
            fill in.
        pseudo: whether the labels are pseudo-labels.
    """

    images: ImageSet
    indices: Sequence[int]
    per_batch: int
    transform: SegmentationTrain | ClassificationTrain
    labels: Callable[[int], tuple[Any, Any]] | None = None
    pseudo: bool = False

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """One augmented image with its labels and codes."""
        image = self.images.image(index)
        whole = isinstance(self.transform, ClassificationTrain)
        labels = codes = 0 if whole else np.zeros(image.shape[:2], np.uint16)
        if self.labels:
            labels, codes = self.labels(index)
        elif not self.pseudo:
            labels = self.images.target(index)
        if whole:
            return self.transform(image, rng), torch.tensor(int(labels)), torch.tensor(int(codes)).int()
        return self.transform(image, labels.astype(np.uint8), codes, rng)


@dataclass(frozen=True)
class StoredLabels:
    """Pseudo-labels of a folder, read when they are asked for; those below the threshold of their class are ignored."""

    store: LabelStore
    keys: Sequence[str]
    thresholds: np.ndarray  # [C] least code that is kept

    def __call__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels and codes [H, W] of an image."""
        labels, codes = self.store.read(self.keys[index])
        return thresholded(labels, codes, self.thresholds), codes


@dataclass(frozen=True)
class TableLabels:
    """Pseudo-labels of whole images, by index."""

    labels: dict[int, int]
    codes: dict[int, int]

    def __call__(self, index: int) -> tuple[int, int]:
        """Label and code of an image."""
        return self.labels[index], self.codes[index]


class Stream(Resumable):
    """Training batches from several sources.

    Args:
        sources: in the order in which a batch holds them: pseudo-labelled images first.
        seed: of the training.
        num_workers: processes that read; 0: this one.
        rank: this process.
        world_size: processes that share a batch; it must divide the batch.

    Raises:
        DataError: for a source without images, or a batch that cannot be shared evenly.
    """

    def __init__(
        self, sources: Sequence[Source], seed: int, num_workers: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        size = sum(source.per_batch for source in sources)
        if any(not len(source.indices) for source in sources):
            raise DataError("a training needs images of every kind: one source has none; see SPLIT.*")
        if size % world_size:
            raise DataError(
                f"a batch of {size} images (SOLVER.BATCH_LABELED + BATCH_PSEUDO) cannot be divided among {world_size} "
                "processes evenly"
            )
        super().__init__()
        self.sources, self.seed, self.num_workers = tuple(sources), seed, num_workers
        self._part = slice(rank, None, world_size)  # so that each process has its share of every source

    def _open(self) -> DataLoader:
        return batch_loader(_Work(self.sources, self.seed), _From(self), self.num_workers)

    def plan(self) -> Iterator[list[tuple[int, int, int]]]:
        """This process's items (source, index, number of the draw), batch after batch, from `position` on."""
        orders = []
        for number, source in enumerate(self.sources):
            order = enumerate(permutations(len(source.indices), self.seed, number))
            orders.append(islice(order, self.position * source.per_batch, None))
        while True:
            batch = [
                (number, source.indices[where], draw)
                for number, (source, order) in enumerate(zip(self.sources, orders, strict=True))
                for draw, where in islice(order, source.per_batch)
            ]
            yield batch[self._part]


class _From:
    """The plan of a stream as a sampler."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        return self.stream.plan()


class _Work(Dataset):
    """What a worker does: a planned batch -> a Batch, or the DataError that its images raise."""

    def __init__(self, sources: Sequence[Source], seed: int) -> None:
        self.sources, self.seed = sources, seed

    def __getitem__(self, items: Sequence[tuple[int, int, int]]) -> Batch | DataError:
        try:
            samples = [
                self.sources[number].sample(index, np.random.default_rng([self.seed, 100 + number, draw]))
                for number, index, draw in items
            ]
        except DataError as error:  # returned: a worker's traceback would hide it
            return error
        images, labels, codes = (torch.stack(tensors) for tensors in zip(*samples, strict=True))
        return Batch(images, labels, codes, torch.tensor([self.sources[number].pseudo for number, _, _ in items]))


@dataclass(frozen=True)
class TestPart:
    """Test images of one size, as one tensor: a worker hands over one file descriptor, not one an image.

    Attributes:
        indices: of the images, B of them.
        sizes: (H, W) of their files.
        pixels: [B, 3, h, w] float32, normalised.
    """

    indices: list[int]
    sizes: list[tuple[int, int]]
    pixels: Tensor

    def pin_memory(self) -> TestPart:
        """The same in page-locked memory; DataLoader calls it."""
        return replace(self, pixels=self.pixels.pin_memory())


class _Tests(Dataset):
    """Batches of test images, in parts of one size."""

    def __init__(self, images: ImageSet, transform: Callable[[np.ndarray], Tensor]) -> None:
        self.images, self.transform = images, transform

    def __getitem__(self, indices: Sequence[int]) -> list[TestPart] | DataError:
        try:
            files = [self.images.image(index) for index in indices]
        except DataError as error:
            return error
        items = [(i, file.shape[:2], self.transform(file)) for i, file in zip(indices, files, strict=True)]
        parts = [list(group) for _, group in groupby(items, key=lambda item: tuple(item[2].shape))]
        return [TestPart([i for i, _, _ in p], [s for _, s, _ in p], torch.stack([x for _, _, x in p])) for p in parts]


def test_batches(
    images: ImageSet, batches: Sequence[Sequence[int]], transform: Callable[[np.ndarray], Tensor], num_workers: int
) -> Iterator[list[TestPart]]:
    """The planned batches, each as parts of one size.

    Raises:
        DataError: for an image that cannot be read.
    """
    for batch in batch_loader(_Tests(images, transform), batches, num_workers):
        if isinstance(batch, DataError):
            raise batch
        yield batch


test_batches.__test__ = False  # type: ignore[attr-defined]  # not a pytest function
