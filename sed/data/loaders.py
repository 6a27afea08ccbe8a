"""Infinite training streams that can resume from any position, and the finite test loader.

The order of the images is planned apart from reading them: `plan` yields for each batch its pairs (position, index),
where `position` counts the samples of the stream and `index` is that of the record. Workers read what the plan says,
and the random numbers of a sample depend on its position alone. So the data are a function of (seed, stream, position):
`seek` replays the plan without reading any image, and the number of workers or processes changes nothing.

Shape shorthand: B images of the global batch, W processes (ranks), each takes B / W of them.
"""

# ruff: noqa: PT028 (test_loader is no pytest function)

from __future__ import annotations

import ctypes
import gc
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing.queues import Queue
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sed.core.structures import Images, LabeledBatch, Targets, UnlabeledBatch
from sed.data.errors import DataError
from sed.data.mapper import ImageInfo, Mapper
from sed.data.packing import pack
from sed.data.processes import allow_open_files, die_with_parent, leave_signals_to_parent
from sed.data.records import Record

Plan = list[tuple[int, int]]  # (position, index) of every sample of a batch
Order = Callable[[], Iterator[int]]  # returns an endless sequence of indices of records


def collate_labeled(samples: Sequence[tuple[Tensor, Targets]], multiple: int = 1) -> LabeledBatch:
    """A batch of labelled samples, padded to sides that `multiple` divides."""
    images, targets = zip(*samples, strict=True)
    return LabeledBatch(Images.from_list(images, multiple), targets)


def collate_unlabeled(samples: Sequence[tuple[Tensor, Tensor]], multiple: int = 1) -> UnlabeledBatch:
    """A batch of (weak, strong) samples, both padded to sides that `multiple` divides."""
    weak, strong = zip(*samples, strict=True)
    return UnlabeledBatch(Images.from_list(weak, multiple), Images.from_list(strong, multiple))


def collate_test(samples: Sequence[tuple[Tensor, ImageInfo]], multiple: int = 1) -> tuple[Images, list[ImageInfo]]:
    """A batch of test images, padded to sides that `multiple` divides."""
    images, infos = zip(*samples, strict=True)
    return Images.from_list(images, multiple), list(infos)


def permutations(size: int, seed: int, stream_id: int) -> Iterator[int]:
    """One random permutation of 0..size-1 after the other, without end."""
    epoch = 0
    while True:
        yield from np.random.default_rng([seed, stream_id, epoch]).permutation(size).tolist()
        epoch += 1


def plan(
    sizes: Sequence[tuple[int, int]] | Tensor,
    batch_size: int,
    seed: int,
    stream_id: int,
    aspect_grouping: bool = True,
    order: Order | None = None,
) -> Iterator[Plan]:
    """The endless sequence of global batches, as (position, index) of their samples.

    With aspect-ratio grouping a batch holds only landscape or only portrait images, to save padding. An image waits
    until its group fills a batch, also beyond the end of an epoch, so that none is left out.

    Args:
        sizes: (height, width) of every record.
        batch_size: B.
        seed: of the run.
        stream_id: the streams of a run have different ones, and so different orders.
        aspect_grouping: whether to group.
        order: returns the endless sequence of indices, the same at each call; None: `permutations`.
    """
    height, width = np.asarray(sizes).reshape(-1, 2).T
    upright = ((height > width) & aspect_grouping).astype(int).tolist()
    buckets: tuple[list[int], list[int]] = ([], [])
    position = 0
    for index in order() if order else permutations(len(sizes), seed, stream_id):
        bucket = buckets[upright[index]]
        bucket.append(index)
        if len(bucket) == batch_size:
            yield [(position + slot, i) for slot, i in enumerate(bucket)]
            position += batch_size
            bucket.clear()


class Resumable:
    """An infinite iterator over batches that can resume from any position; subclasses implement `_open`.

    Attributes:
        position: number of batches taken so far.
    """

    def __init__(self, position: int = 0) -> None:
        self.position = position
        self._batches: Iterator[Any] | None = None

    def _open(self) -> Iterable[Any]:
        """All batches from `position` on; a DataError in the place of a batch is raised by `__next__`."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The next batch of this rank.

        Raises:
            DataError: for an image that cannot be used.
        """
        if self._batches is None:
            self._batches = iter(self._open())
        batch = next(self._batches)
        if isinstance(batch, DataError):
            self.close()
            raise batch
        self.position += 1
        return batch

    def seek(self, position: int) -> None:
        """Continue with batch number `position`, as if those before it had been taken."""
        self.close()
        self.position = position

    def close(self) -> None:
        """Stop the workers; batches that were read ahead are dropped and read again later."""
        self._batches = None


class Stream(Resumable):
    """Labelled or unlabelled training images, in the order of `plan`."""

    def __init__(
        self,
        records: Sequence[Record],
        mapper_fn: Callable[[Record, int], Any],
        batch_size: int,
        seed: int,
        stream_id: int,
        collate: Callable[[Sequence[Any]], Any],
        aspect_grouping: bool = True,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        order: Order | None = None,
    ) -> None:
        """Set the stream up; nothing is read before the first batch.

        Args:
            records: dataset dicts; packed here if they are not.
            mapper_fn: (record, position) -> sample; `Mapper.labeled` or `Mapper.unlabeled`.
            batch_size: B, over all processes.
            seed: of the run.
            stream_id: `mapper.LABELED` or `mapper.UNLABELED`.
            collate: samples -> batch.
            aspect_grouping: see `plan`.
            num_workers: worker processes; 0 reads in this process.
            rank: of this process.
            world_size: W.
            start: number of the first batch.
            order: see `plan`; the sequence of all processes together.

        Raises:
            DataError: if there is no record, or W does not divide B.
        """
        if not records:
            raise DataError("a data stream needs at least one image, got none")
        if batch_size < 1 or batch_size % world_size:
            raise DataError(f"a batch of {batch_size} images cannot be divided among {world_size} processes evenly")
        super().__init__(start)
        records = pack(records)
        self._work = _Work(records, mapper_fn, collate)
        self._plan = partial(plan, records.sizes, batch_size, seed, stream_id, aspect_grouping, order)
        share = batch_size // world_size
        self._slice = slice(rank * share, (rank + 1) * share)
        self._num_workers = num_workers

    def _open(self) -> Iterable[Any]:
        return batch_loader(self._work, _Resumed(self._plan, self.position, self._slice), self._num_workers)


def test_loader(
    records: Sequence[Record],
    mapper: Mapper,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    multiple: int = 1,
) -> Iterator[tuple[Images, list[ImageInfo]]]:
    """Batches of test images: every W-th record once, from `rank` on, in order.

    Yields:
        A padded batch and an `ImageInfo` for each of its images.

    Raises:
        DataError: for an image that cannot be used.
    """
    indices = list(range(rank, len(records), world_size))
    batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    work = _Work(records, mapper.test, partial(collate_test, multiple=multiple))
    for batch in batch_loader(work, batches, num_workers):
        if isinstance(batch, DataError):
            raise batch
        yield batch


test_loader.__test__ = False  # type: ignore[attr-defined]  # not a pytest function


class _Resumed:
    """The part of the plan that this rank reads, from batch `start` on."""

    def __init__(self, make_plan: Callable[[], Iterator[Plan]], start: int, part: slice) -> None:
        self.make_plan, self.start, self.part = make_plan, start, part

    def __iter__(self) -> Iterator[Plan]:
        for number, batch in enumerate(self.make_plan()):
            if number >= self.start:
                yield batch[self.part]


class _Work(Dataset):
    """The work of a worker process: a planned batch -> a collated one, or the DataError that its images raise."""

    def __init__(self, records: Sequence[Record], sample: Callable, collate: Callable) -> None:
        self.records, self.sample, self.collate = pack(records), sample, collate

    def __getitem__(self, batch: Sequence[Any]) -> Any:
        try:
            return self.collate([self._one(item) for item in batch])
        except DataError as error:  # returned, so that the message does not come wrapped in a worker's traceback
            return error

    def _one(self, item: Any) -> Any:
        index, arguments = (item[1], item[:1]) if isinstance(item, tuple) else (item, ())
        return self.sample(self.records[index], *arguments)


def batch_loader(work: Dataset, batches: Any, num_workers: int) -> Iterator[Any]:
    """What a DataLoader over `batches`, read by `work`, gives, in order; the random state of the run does not change.

    Raises:
        DataError: where a worker process died, or too many files are open.
    """
    loader: DataLoader = DataLoader(
        work,
        batch_size=None,  # a planned batch is one item
        sampler=batches,
        collate_fn=_identity,
        num_workers=num_workers,
        worker_init_fn=partial(_begin_worker, os.getpid()),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # DataLoader draws from it instead of from the run's
    )
    before = signal.getsignal(signal.SIGCHLD)
    try:
        if num_workers:
            allow_open_files(4 * num_workers + 16)  # torch's destructor fails where not all of them could be started
        read = iter(loader)
        if num_workers and threading.current_thread() is threading.main_thread():
            # torch's handler raises in whatever line this process is at; `next` finds a dead worker, too, within 5 s
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        yield from read
    except (RuntimeError, OSError) as error:  # an error of our own in a worker is told as it is
        if str(error).startswith("DataLoader worker"):
            told = f"a process that reads images died ({' '.join(str(error).split())})"
        elif num_workers and re.match(r"(\[Errno \d+\] )?Too many open files", str(error)):
            told = "the processes that read images have too many files open"
            error.__context__ = error.__traceback__ = None  # they hold the files that the end of this process needs
        else:
            raise
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise DataError(
            f"{told}; where memory or files (`ulimit -n` allows {files}) ran out, lower DATALOADER.NUM_WORKERS, now "
            f"{num_workers}"
        ) from None


def _begin_worker(parent: int, worker: int) -> None:
    die_with_parent(parent)
    leave_signals_to_parent()
    Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[method-assign]
    start_worker(worker)


def _end(error: Exception, batch: Any) -> None:
    """A batch that cannot be sent would be waited for; a worker that is gone is noticed and told."""
    os._exit(1)


def _identity(item: Any) -> Any:
    return item


def start_worker(worker: int = 0) -> None:
    """Prepare a process for reading images: one core for OpenCV, and freed memory is kept by the process.

    Image buffers are a few MB. glibc by default gets each from the system and gives it back, and the page faults cost
    as much time as the work itself (640 x 480 JPEG, two views: 5.8 ms an image with, 3.1 ms without them).
    """
    cv2.setNumThreads(0)
    gc.freeze()  # a collection would write to pages shared with the parent process, and so copy them
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent where the C library is not glibc
        if mallopt is not None:
            mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
            mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD
            mallopt(-2, 32 << 20)  # M_TOP_PAD
