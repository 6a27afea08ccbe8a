"""From a config to the data of a run on Detectron2: its catalog, samplers and mappers feed the two streams.

    data = read_data(cfg)
    loader = build_train_loader(cfg, multiple, data=data)      # (labelled batch, unlabelled batch | None, step), ...
    loader.seek(1000)                                         # resume: nothing but the step need be known

Detectron2's samplers give the order of the images, as one sequence for all processes; batches are cut from it before
they are divided among processes and workers (`sed.data.loaders`), so that the data of a step are a function of the
config alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.samplers import RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm

from sed.config import ConfigError
from sed.core.structures import LabeledBatch, UnlabeledBatch
from sed.d2.catalog import align, dataset_of, datasets_of, evaluable
from sed.d2.config import num_classes
from sed.d2.mapper import CHANNELS, ImageMapper, ViewMapper
from sed.data.loaders import Order, Stream
from sed.data.mapper import LABELED
from sed.data.partition import Data, check_num_classes
from sed.data.records import Dataset, Record
from sed.evaluation.coco import tell_crowded
from sed.runtime.data import Streams, build_data, build_streams

__all__ = [
    "DualLoader",
    "ViewMapper",
    "build_test_sets",
    "build_train_loader",
    "dataset_of",
    "datasets_of",
    "open_streams",
    "read_data",
]
Batches = tuple[LabeledBatch, UnlabeledBatch | None, int]
DatasetMapping = Callable[[dict[str, Any]], dict[str, Any]]  # a dataset mapper of Detectron2


# ---------------------------------------------------------------------------------------------- data sets
def read_data(cfg: CfgNode) -> Data:
    """All data sets of `cfg`, split and checked, see `sed.runtime.data.build_data`."""
    tests: list[Dataset] = []

    def load_tests() -> list[Dataset]:
        tests.extend(build_test_sets(cfg))
        return tests

    data = build_data(cfg, num_classes(cfg), load=datasets_of, load_tests=load_tests)
    for before, test in zip(tests, data.tests, strict=True):
        align(before, test)
    return data


def build_test_sets(cfg: CfgNode) -> list[Dataset]:
    """The sets of DATASETS.TEST, one each; Detectron2 knows them all by their names afterwards.

    Raises:
        DataError: if one cannot be used, or has more classes than the model.
    """
    key, classes = num_classes(cfg)
    tests = [evaluable(dataset_of(source, cfg.DATASETS.IMAGE_ROOT)) for source in cfg.DATASETS.TEST]
    for test in tests:
        if len(test.classes) > classes:
            check_num_classes(test, classes, key)
        tell_crowded(test, cfg.TEST.DETECTIONS_PER_IMAGE)
    return tests


# ---------------------------------------------------------------------------------------------- loader
class DualLoader:
    """An endless iterator over (labelled batch, unlabelled batch or None, step), both of this process.

    Iterating over it again goes on where it stopped.

    Attributes:
        labeled: the labelled stream.
        unlabeled: the unlabelled one; None where there is none.
        burn_in: steps without unlabelled batch.
        step: of the next batches; how many were given so far.
        data: what the streams read, where that is known.
    """

    def __init__(self, labeled: Stream, unlabeled: Stream | None, burn_in: int, data: Data | None = None) -> None:
        self.labeled, self.unlabeled, self.burn_in, self.data = labeled, unlabeled, burn_in, data
        self.step = 0

    def __iter__(self) -> Iterator[Batches]:
        return self

    def __next__(self) -> Batches:
        """The batches of a step.

        Raises:
            DataError: for an image that cannot be used.
        """
        step = self.step
        labeled = next(self.labeled)
        unlabeled = next(self.unlabeled) if self.unlabeled and step >= self.burn_in else None
        self.step += 1
        return labeled, unlabeled, step

    def seek(self, step: int) -> None:
        """Go on with the batches of `step`, as if all before had been taken."""
        self.step = step
        self.labeled.seek(step)
        if self.unlabeled:
            self.unlabeled.seek(max(step - self.burn_in, 0))

    def close(self) -> None:
        """Stop the workers."""
        self.labeled.close()
        if self.unlabeled:
            self.unlabeled.close()


def build_train_loader(
    cfg: CfgNode,
    multiple: int,
    mapper: DatasetMapping | None = None,
    data: Data | None = None,
) -> DualLoader:
    """The training loader of this process: labelled and unlabelled batches, step by step.

    Args:
        cfg: the run.
        multiple: what the sides of the batches must be multiples of; those of unlabelled ones, also at half size.
        mapper: makes the weak view; default: `default_mapper(cfg)`.
        data: default: `read_data(cfg)`.

    Raises:
        ConfigError: for a sampler or an image format that cannot be used here.
        DataError: if the batches cannot be divided among the processes; see also `sed.runtime.data.build_data`.
    """
    data = read_data(cfg) if data is None else data
    return DualLoader(*open_streams(cfg, data, multiple, mapper), cfg.SEMI.BURN_IN, data)


def open_streams(cfg: CfgNode, data: Data, multiple: int, mapper: DatasetMapping | None = None) -> Streams:
    """This process's labelled and unlabelled stream; arguments and errors as of `build_train_loader`."""
    if cfg.INPUT.FORMAT not in CHANNELS:
        raise ConfigError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; it must be one of {', '.join(CHANNELS)}")
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()  # Detectron2's default: another one each time
    return build_streams(
        cfg,
        data,
        partial(ViewMapper, default_mapper(cfg) if mapper is None else mapper, cfg.INPUT.FORMAT),
        multiple,
        seed=seed,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        order=partial(_order, cfg, seed),
    )


def default_mapper(cfg: CfgNode) -> ImageMapper:
    """Detectron2's own mapper for training, with its augmentations of `cfg.INPUT`; of boxes only, see `ImageMapper`."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = cfg.MODEL.LOAD_PROPOSALS = False  # records hold boxes only
    return ImageMapper(cfg, is_train=True)


def _order(cfg: CfgNode, run_seed: int, records: Sequence[Record], stream: int) -> Order:
    """The sequence over all processes: of the labelled images that of DATALOADER.SAMPLER_TRAIN."""
    d, seed = cfg.DATALOADER, int(np.random.SeedSequence([run_seed, stream]).generate_state(1)[0])
    name = d.SAMPLER_TRAIN if stream == LABELED else "TrainingSampler"
    if name == "TrainingSampler":
        sampler = TrainingSampler(len(records), seed=seed)
    elif name == "RepeatFactorTrainingSampler":
        count = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
        root = {} if d.get("REPEAT_SQRT") is None else {"sqrt": d.REPEAT_SQRT}  # 0.6 has no such key
        sampler = RepeatFactorTrainingSampler(count(records, d.REPEAT_THRESHOLD, **root), seed=seed)
    elif name == "RandomSubsetTrainingSampler":
        ratio = d.get("RANDOM_SUBSET_RATIO")  # Detectron2 reads this key, but has no default for it
        if not ratio or int(len(records) * ratio) < 1:
            raise ConfigError(f"DATALOADER.RANDOM_SUBSET_RATIO is {ratio}, which leaves none of {len(records)} images")
        sampler = RandomSubsetTrainingSampler(len(records), ratio, seed_shuffle=seed, seed_subset=seed)
    else:
        raise ConfigError(
            f"DATALOADER.SAMPLER_TRAIN is {name!r}; with two streams it must be one of TrainingSampler, "
            "RepeatFactorTrainingSampler, RandomSubsetTrainingSampler"
        )
    return sampler._infinite_indices
