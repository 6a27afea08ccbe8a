"""From a config to the data of a run: its images, then its streams of training batches. The same on both engines.

An engine hands in how it reads a data set and how it makes the weak view. The config comes as nested mappings (a
CfgNode is one), so nothing here knows a config library.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from sed.core.structures import LabeledBatch, Targets
from sed.data.augmentation import StrongAugmentation
from sed.data.errors import DataError
from sed.data.geometry import build_geometric, log_dropped
from sed.data.loaders import Order, Stream, collate_labeled, collate_unlabeled
from sed.data.mapper import LABELED, UNLABELED
from sed.data.partition import Data, Split, check_test_images, partition
from sed.data.records import Dataset, Record

Config = Mapping[str, Any]  # nested: config["SEMI"]["METHOD"]
Streams = tuple[Stream, Stream | None]


class TrainMapper(Protocol):
    """Turns records into training samples: `sed.data.mapper.Mapper`, or the one around a Detectron2 mapper."""

    def labeled(self, record: Record, position: int) -> tuple[Tensor, Targets]:
        """One view [3, h, w] uint8 RGB of a labelled image, and its boxes."""

    def unlabeled(self, record: Record, position: int) -> tuple[Tensor, Tensor]:
        """The weak and the strong view of an image, both [3, h, w] uint8 RGB of one geometry."""


def build_data(
    config: Config,
    classes: tuple[str, int],
    *,
    load: Callable[[Sequence[str], str, bool], Dataset],
    load_tests: Callable[[], Sequence[Dataset]],
) -> Data:
    """Read, split and check all data sets of a run.

    Args:
        config: DATASETS, DATALOADER and SEMI are read.
        classes: the config key of the number of classes, and that number.
        load: names or paths, folder of the images, whether labelled -> all of them as one set.
        load_tests: reads the sets to evaluate on.

    Raises:
        DataError: for an empty DATASETS.TRAIN, where the config asks for what cannot be, or for unusable data.
    """
    d, s = config["DATASETS"], config["SEMI"]
    if not d["TRAIN"]:
        raise DataError("DATASETS.TRAIN is empty: set it to the name or the COCO json of the labelled images")
    key, number = classes
    data = partition(
        partial(load, d["TRAIN"], d["IMAGE_ROOT"], True),
        partial(load, d["UNLABELED"], d["IMAGE_ROOT"], False) if d["UNLABELED"] else None,
        load_tests,
        divide=Split(s["LABELED_PERCENT"], s["LABELED_COUNT"], s["FOLD"]),
        method=s["METHOD"],
        filter_empty=config["DATALOADER"]["FILTER_EMPTY_ANNOTATIONS"],
        num_classes=number,
        classes_key=key,
    )
    check_test_images(data.tests)
    return data


def build_streams(
    config: Config,
    data: Data,
    mapper: Callable[..., TrainMapper],
    multiple: int,
    *,
    seed: int,
    rank: int,
    world_size: int,
    order: Callable[[Sequence[Record], int], Order] | None = None,
) -> Streams:
    """This process's labelled and unlabelled stream; the second is None for the supervised baseline.

    Args:
        config: INPUT, DATALOADER, SEMI and SED are read.
        data: what `build_data` returned.
        mapper: makes the mapper of the weak view from `strong`, `strong_labeled`, `geometric` and `seed`.
        multiple: what the sides of a batch are padded to a multiple of; of an unlabelled one, also at 1/2^MAX_SCALE.
        seed: of the run.
        rank: this process.
        world_size: how many there are.
        order: records, stream (LABELED or UNLABELED) -> the order of the images; None: one permutation after the other.

    Raises:
        DataError: where the processes cannot divide a batch evenly.
    """
    i, s, loader = config["INPUT"], config["SEMI"], config["DATALOADER"]
    geometric = build_geometric(i["GEOMETRIC"], i["GEOMETRIC_LEVEL"], seed)
    log_dropped(geometric, data.labeled.records, LABELED)
    views = mapper(
        strong=StrongAugmentation(fill=i["CUTOUT_FILL"]),
        strong_labeled=s["STRONG_LABELED"],
        geometric=geometric,
        seed=seed,
    )

    def stream(records: Sequence[Record], sample: Callable, images: int, number: int, collate: Callable) -> Stream:
        return Stream(
            records,
            sample,
            images,
            seed,
            stream_id=number,
            collate=collate,
            aspect_grouping=loader["ASPECT_RATIO_GROUPING"],
            num_workers=loader["NUM_WORKERS"],
            rank=rank,
            world_size=world_size,
            order=order(records, number) if order else None,
        )

    collate = partial(collate_labeled, multiple=multiple)
    labeled = stream(data.labeled.records, views.labeled, s["IMS_PER_BATCH_LABELED"], LABELED, collate)
    if s["METHOD"] == "supervised":
        return labeled, None
    collate = partial(collate_unlabeled, multiple=multiple * 2 ** config["SED"]["MAX_SCALE"])
    return labeled, stream(data.unlabeled, views.unlabeled, s["IMS_PER_BATCH_UNLABELED"], UNLABELED, collate)


def view_streams(
    config: MutableMapping[str, Any],
    read: Callable[[Any], Data],
    open_streams: Callable[[Any, Data, int], Streams],
) -> tuple[Dataset, Iterator[LabeledBatch], Iterator[LabeledBatch]]:
    """The labelled stream of a training run twice, without and with strong views: both have the same geometry.

    Args:
        config: of the run; it stays as it is.
        read: config -> the data of the run, by the engine.
        open_streams: config, data, multiple -> streams, by the engine.

    Returns:
        The labelled set; endless batches of weak views; the same batches, every second image as its strong view. Sides
        are padded so that all half sizes of SED.MAX_SCALE fit.
    """
    config = copy.deepcopy(config)
    config["SEMI"]["METHOD"], config["DATASETS"]["TEST"] = "supervised", ()  # no other data is needed
    data = read(config)
    streams = []
    for choice in (False, True):
        config["SEMI"]["STRONG_LABELED"] = choice
        streams.append(open_streams(config, data, 2 ** config["SED"]["MAX_SCALE"])[0])
    return data.labeled, *streams
