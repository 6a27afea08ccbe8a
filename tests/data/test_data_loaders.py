"""Streams: order, grouping, exact positions, processes and workers."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import time
from functools import partial

import cv2
import numpy as np
import pytest
import torch

from sed.core.structures import LabeledBatch, UnlabeledBatch
from sed.data.coco import load_coco
from sed.data.errors import DataError
from sed.data.loaders import Stream, collate_labeled, collate_unlabeled, permutations, plan, test_loader
from sed.data.mapper import LABELED, UNLABELED, Mapper
from sed.data.records import strip_annotations

WIDE, TALL = (40, 60), (60, 40)


def take(iterator, count: int) -> list:
    return list(itertools.islice(iterator, count))


def indices(batches: list) -> list[int]:
    return [index for batch in batches for _, index in batch]


@pytest.fixture
def records(make_coco) -> list[dict]:
    return load_coco(make_coco([WIDE, TALL, WIDE, WIDE, TALL, WIDE, WIDE]).write()).records


def labeled_stream(records: list[dict], **options) -> Stream:
    mapper = Mapper((32, 48), 100, strong_labeled=True, seed=options.get("seed", 3))
    options = {"batch_size": 2, "seed": 3, "stream_id": LABELED, **options}
    return Stream(records, mapper.labeled, collate=partial(collate_labeled, multiple=16), **options)


def equal(a: LabeledBatch, b: LabeledBatch) -> bool:
    return (
        a.images.sizes == b.images.sizes
        and torch.equal(a.images.tensor, b.images.tensor)
        and all(torch.equal(s.boxes, t.boxes) for s, t in zip(a.targets, b.targets, strict=True))
        and all(torch.equal(s.classes, t.classes) for s, t in zip(a.targets, b.targets, strict=True))
    )


# ---------------------------------------------------------------------------------------------- plan
def test_every_image_once_an_epoch() -> None:
    batches = take(plan([WIDE] * 12, 3, seed=0, stream_id=0), 8)
    first, second = indices(batches[:4]), indices(batches[4:])
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_positions_count_samples() -> None:
    batches = take(plan([WIDE, TALL] * 10, 4, seed=0, stream_id=0), 9)
    assert [position for batch in batches for position, _ in batch] == list(range(36))


def test_grouping_keeps_leftovers_for_ever() -> None:
    sizes = [WIDE] * 13 + [TALL] * 3  # the three upright ones fill a batch of 4 only over two epochs
    batches = take(plan(sizes, 4, seed=1, stream_id=0), 400)
    for batch in batches:
        assert len({sizes[index] for _, index in batch}) == 1
    counts = np.bincount(indices(batches), minlength=16)
    assert counts.sum() == 1600
    assert counts.min() >= 99  # 100 each, but for what waits in the buckets
    assert counts.max() <= 101


def test_without_grouping_batches_mix() -> None:
    sizes = [WIDE, TALL] * 8
    batches = take(plan(sizes, 4, seed=0, stream_id=0, aspect_grouping=False), 8)
    assert any(len({sizes[i] for _, i in batch}) == 2 for batch in batches)
    assert sorted(indices(batches)) == sorted(list(range(16)) * 2)


def test_more_images_a_batch_than_there_are() -> None:
    batches = take(plan([WIDE] * 3, 8, seed=0, stream_id=0), 3)
    assert np.bincount(indices(batches)).tolist() == [8, 8, 8]


def test_streams_and_seeds_differ() -> None:
    orders = [indices(take(plan([WIDE] * 50, 5, seed, stream), 10)) for seed in (0, 1) for stream in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_the_default_order_is_pinned() -> None:
    """Permutations of default_rng([seed, stream, epoch]): a run that is resumed depends on it."""
    wanted = [i for epoch in (0, 1) for i in np.random.default_rng([5, 1, epoch]).permutation(6).tolist()]
    assert take(permutations(6, seed=5, stream_id=1), 12) == wanted
    ungrouped = plan([WIDE] * 6, 4, seed=5, stream_id=1)
    assert indices(take(ungrouped, 3)) == wanted


def test_a_custom_order_is_grouped_and_divided() -> None:
    sizes = [WIDE, TALL, WIDE, WIDE]
    batches = take(plan(sizes, 2, 0, 0, order=lambda: itertools.cycle([3, 1, 0, 1, 3, 2])), 4)
    assert batches == [[(0, 3), (1, 0)], [(2, 1), (3, 1)], [(4, 3), (5, 2)], [(6, 3), (7, 0)]]


# ---------------------------------------------------------------------------------------------- streams
def test_batches_are_padded_and_complete(records: list[dict]) -> None:
    batch = next(labeled_stream(records))
    assert isinstance(batch, LabeledBatch)
    assert len(batch) == len(batch.targets) == 2
    assert all(side % 16 == 0 for side in batch.images.padded_size)
    assert batch.images.tensor.dtype == torch.uint8


@pytest.mark.parametrize("workers", [0, 2])
def test_seek_continues_exactly(records: list[dict], workers: int) -> None:
    whole = take(labeled_stream(records), 12)
    stream = labeled_stream(records, num_workers=workers)
    before = take(stream, 5)
    assert stream.position == 5
    resumed = labeled_stream(records, num_workers=workers, start=stream.position)
    after = take(resumed, 7)
    assert resumed.position == 12
    assert all(equal(a, b) for a, b in zip(whole, before + after, strict=True))
    stream.seek(2)
    assert equal(next(stream), whole[2])
    assert stream.position == 3


def test_seek_with_a_custom_order(records: list[dict]) -> None:
    stream = Stream(
        records, lambda r, p: (p, r["image_id"]), 2, 0, 0, list, False, order=lambda: itertools.cycle([2, 0, 5])
    )
    whole = take(stream, 6)
    assert whole[:3] == [[(0, 12), (1, 10)], [(2, 15), (3, 12)], [(4, 10), (5, 15)]]
    stream.seek(4)
    assert take(stream, 2) == whole[4:]


def test_consecutive_batches_differ(records: list[dict]) -> None:
    batches = take(labeled_stream(records), 12)
    assert not any(equal(a, b) for a, b in itertools.combinations(batches, 2))


def test_two_processes_see_what_one_sees(records: list[dict]) -> None:
    whole = take(labeled_stream(records, batch_size=4), 6)
    parts = [take(labeled_stream(records, batch_size=4, rank=r, world_size=2), 6) for r in (0, 1)]
    for one, first, second in zip(whole, *parts, strict=True):
        assert one.images.sizes == first.images.sizes + second.images.sizes
        for i, size in enumerate(one.images.sizes):
            half = (first, second)[i // 2].images.tensor[i % 2]
            assert torch.equal(one.images.tensor[i, :, : size[0], : size[1]], half[:, : size[0], : size[1]])


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generators_are_left_alone(records: list[dict], workers: int) -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 it is the legacy generator that is tested
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    take(labeled_stream(records, num_workers=workers), 2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    first = next(labeled_stream(records))
    torch.manual_seed(99)
    assert equal(next(labeled_stream(records)), first)


def test_seek_reads_no_image(records: list[dict]) -> None:
    mapped = []
    stream = Stream(records, lambda r, p: mapped.append(p) or p, 2, 0, 0, collate=list)
    stream.seek(100_000)
    assert mapped == []
    start = time.perf_counter()
    assert next(stream) == [200_000, 200_001]
    assert mapped == [200_000, 200_001]
    assert time.perf_counter() - start < 5.0


def test_unlabelled_stream(records: list[dict]) -> None:
    mapper = Mapper((32, 48), 100)
    collate = partial(collate_unlabeled, multiple=32)
    stream = Stream(strip_annotations(records), mapper.unlabeled, 3, 0, UNLABELED, collate)
    for batch in take(stream, 4):
        assert isinstance(batch, UnlabeledBatch)
        assert len(batch) == 3
        assert not torch.equal(batch.weak.tensor, batch.strong.tensor)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_one_clear_error(records: list[dict], workers: int) -> None:
    records[2]["width"] += 1
    stream = labeled_stream(records, num_workers=workers)
    with pytest.raises(DataError, match=r"2\.jpg: the image is 40 x 60") as error:
        take(stream, 10)
    assert "Traceback" not in str(error.value)
    loader = test_loader(records, Mapper((32, 32), 100), 2, workers)
    with pytest.raises(DataError, match=r"^\S*2\.jpg: the image is 40 x 60"):
        list(loader)


@pytest.mark.parametrize(("batch_size", "world_size"), [(3, 2), (1, 2), (0, 1)])
def test_processes_must_divide_the_batch(records: list[dict], batch_size: int, world_size: int) -> None:
    with pytest.raises(DataError, match="cannot be divided among"):
        labeled_stream(records, batch_size=batch_size, world_size=world_size)


def test_no_image_no_stream() -> None:
    with pytest.raises(DataError, match="at least one image"):
        labeled_stream([])


# ---------------------------------------------------------------------------------------------- test images
@pytest.mark.parametrize("workers", [0, 2])
def test_test_images_come_once_and_in_order(records: list[dict], workers: int) -> None:
    mapper = Mapper((32, 32), 100)
    batches = list(test_loader(records, mapper, 3, workers, multiple=16))
    assert [len(images) for images, _ in batches] == [3, 3, 1]
    assert [info.image_id for _, infos in batches for info in infos] == [r["image_id"] for r in records]
    assert all(side % 16 == 0 for images, _ in batches for side in images.padded_size)
    by_rank = [
        [info.image_id for _, infos in test_loader(records, mapper, 2, 0, rank, 3) for info in infos]
        for rank in range(3)
    ]
    assert sorted(i for ids in by_rank for i in ids) == [r["image_id"] for r in records]


def test_more_processes_than_test_images(records: list[dict]) -> None:
    assert list(test_loader(records[:1], Mapper((32, 32), 100), 2, 0, rank=1, world_size=2)) == []


# ---------------------------------------------------------------------------------------------- cost
def test_two_views_cost_little_more_than_decode_and_resize(tmp_path) -> None:
    """The target is 2.2 (tools/bench.py and bench_views.py measure it); above 3 something is broken."""
    from tests.data.bench_views import benchmark_views, make_photos

    threads = cv2.getNumThreads()
    try:
        result = benchmark_views(make_photos(tmp_path, 10), samples=40, repeats=4)
    finally:
        cv2.setNumThreads(threads)
    assert result["ratio"] < 3.0, result


# ---------------------------------------------------------------------------------------------- open files
FILES = """
import resource, sys
soft, hard, tensors, workers = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
import torch
from sed.data.errors import DataError
from sed.data.loaders import batch_loader

class Work(torch.utils.data.Dataset):
    def __getitem__(self, item):
        return [torch.full((1000,), item) for _ in range(tensors)]

try:
    print(len(list(batch_loader(Work(), list(range(9)), workers))))
except DataError as error:
    sys.exit(f"error: {error}")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ((40, 40, 30, 1), r"error: a process that reads images died \(.*\); "),  # in a worker
        ((36, 36, 3, 8), r"error: the processes that read images have too many files open; "),  # here
        ((40, 4096, 30, 1), ""),  # the limit may be raised
    ],
)
def test_too_many_open_files_are_one_line(limits, told) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FILES, *map(str, limits)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if not told:
        assert (done.returncode, done.stdout) == (0, "9\n")
        return
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    advice = rf"where memory or files \(`ulimit -n` allows {limits[0]}\) ran out, lower DATALOADER.NUM_WORKERS, now "
    assert re.fullmatch(rf"{told}{advice}{limits[-1]}", line)
