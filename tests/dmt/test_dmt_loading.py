"""dmt.loading: batches by plan: every image, the same ones whatever the workers and processes, from any position on."""

from __future__ import annotations

import resource
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from dmt.augmentation import SegmentationTest, SegmentationTrain
from dmt.classification_augmentation import ClassificationTest, ClassificationTrain
from dmt.label_store import LabelStore
from dmt.loading import Batch, Source, StoredLabels, Stream, TableLabels, test_batches
from sed.data.errors import DataError
from tests.reference.dmt_sets import Squares, classes

TRAIN = Squares("train", 10, 0)
VIEW = SegmentationTrain((16, 16), scale=(0.5, 1.5), normalization="half")


def sources(pseudo: int = 3, labeled: int = 1) -> list[Source]:
    return [
        Source(TRAIN, range(4, 10), pseudo, VIEW, pseudo=True),
        Source(TRAIN, range(4), labeled, VIEW),
    ]


def stream(**options) -> Stream:
    return Stream(sources(), seed=5, **options)


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def test_pseudo_images_come_first_and_every_image_once_a_pass() -> None:
    plan = list(islice(stream().plan(), 4))  # 4 x 3 = two passes over 6 images, 4 x 1 one over 4
    assert all([source for source, _, _ in batch] == [0, 0, 0, 1] for batch in plan)
    pseudo = [index for batch in plan for source, index, _ in batch if source == 0]
    assert sorted(pseudo[:6]) == sorted(pseudo[6:]) == list(range(4, 10))
    assert sorted(index for batch in plan for source, index, _ in batch if source == 1) == list(range(4))
    assert [draw for batch in plan for source, _, draw in batch if source == 0] == list(range(12))
    batch = next(stream())
    assert batch.pseudo.tolist() == [True, True, True, False]
    assert (batch.images.shape, batch.labels.shape, batch.codes.shape) == ((4, 3, 16, 16), (4, 16, 16), (4, 16, 16))
    assert (batch.labels.dtype, batch.codes.dtype) == (torch.int64, torch.int32)


def test_a_stream_goes_on_from_any_position() -> None:
    whole, again = stream(), stream()
    batches = list(islice(whole, 6))
    again.seek(4)
    assert equal(next(again), batches[4])
    assert again.position == 5
    again.seek(1)
    assert equal(next(again), batches[1])
    assert not equal(batches[0], batches[1])


def test_workers_change_nothing() -> None:
    for one, other in zip(islice(stream(), 5), islice(stream(num_workers=2), 5), strict=True):
        assert equal(one, other)


def test_processes_share_a_batch() -> None:
    whole = next(stream())
    parts = [next(stream(rank=rank, world_size=2)) for rank in range(2)]
    mixed = [torch.stack(pair, 1).flatten(0, 1) for pair in zip(*(vars(p).values() for p in parts), strict=True)]
    assert equal(whole, Batch(*mixed))  # every second image each
    with pytest.raises(DataError, match=r"batch of 4 images .* cannot be divided among 3 processes"):
        stream(world_size=3)


def test_the_seed_changes_order_and_augmentation() -> None:
    assert not equal(next(Stream(sources(), seed=5)), next(Stream(sources(), seed=6)))


def test_pseudo_labels_come_from_the_store_with_those_below_the_threshold_ignored(tmp_path) -> None:
    store = LabelStore(tmp_path)
    labels, codes = np.full((16, 16), 1, np.uint8), np.full((16, 16), 500, np.uint16)
    labels[:8], codes[:, :8] = 2, 300
    store.write(TRAIN.keys[4], labels, codes)
    found, kept = StoredLabels(store, TRAIN.keys, np.array([0, 400, 300]))(4)
    assert (found[:8] == 2).all()  # 300 and 500 both reach 300
    assert (found[8:, :8] == 255).all()
    assert (found[8:, 8:] == 1).all()
    assert (kept == codes).all()
    with pytest.raises(DataError, match=f"{TRAIN.keys[5]}.png: no such file"):
        next(Stream([Source(TRAIN, [5], 1, VIEW, StoredLabels(store, TRAIN.keys, np.zeros(3))), sources()[1]], 0))


def test_online_images_have_labels_for_the_model_to_fill() -> None:
    batch = next(stream())
    inside = batch.labels[:3] != 255  # padding of a shrunk image
    assert inside.any()
    assert (batch.labels[:3][inside] == 0).all()


def test_whole_images() -> None:
    train = classes().train
    view = ClassificationTrain(1, 0.0, "none", "half")
    table = TableLabels({7: 1, 9: 0}, {7: 900, 9: 65535})
    batch = next(Stream([Source(train, [9, 7], 2, view, table, pseudo=True), Source(train, [3], 1, view)], 0))
    assert batch.images.shape == (3, 3, 8, 8)
    assert sorted(zip(batch.labels[:2].tolist(), batch.codes[:2].tolist(), strict=True)) == [(0, 65535), (1, 900)]
    assert (int(batch.labels[2]), int(batch.codes[2])) == (train.target(3), 0)
    shown = list(test_batches(train, [[0, 1], [2]], ClassificationTest("half"), 0))
    assert [[part.indices for part in batch] for batch in shown] == [[[0, 1]], [[2]]]
    assert shown[0][0].sizes == [(8, 8)] * 2
    assert shown[0][0].pixels.shape == (2, 3, 8, 8)


@pytest.mark.slow
def test_a_large_batch_of_test_images_takes_few_file_descriptors() -> None:
    """Workers hand over tensors by descriptors: one an image would end batches of 500 at the usual limit of 1024."""
    train = classes().train
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 60, hard))
    try:
        shown = list(test_batches(train, [[i % 30 for i in range(200)]] * 3, ClassificationTest("half"), 1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [part.pixels.shape[0] for batch in shown for part in batch] == [200, 200, 200]


class Uneven(Squares):
    """The second image is cut."""

    def image(self, index: int) -> np.ndarray:
        return super().image(index)[: 12 if index == 1 else 16]


def test_test_images_of_different_sizes_come_in_parts() -> None:
    parts = next(test_batches(Uneven("test", 4, 1), [[0, 1, 2, 3]], SegmentationTest(normalization="half"), 0))
    assert [part.indices for part in parts] == [[0], [1], [2, 3]]
    assert [part.pixels.shape[2] for part in parts] == [16, 12, 16]


def test_a_source_without_images_is_an_error() -> None:
    with pytest.raises(DataError, match="needs images of every kind"):
        Stream([Source(TRAIN, [], 1, VIEW)], 0)
