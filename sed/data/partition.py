"""Makes the data of a run: labelled, unlabelled and test images, checked to share none.

The same for both engines; an engine hands in the functions that read its data sets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sed.data.errors import DataError
from sed.data.images import check_file
from sed.data.packing import pack, without_gc
from sed.data.records import (
    Dataset,
    Record,
    check_disjoint,
    reorder,
    strip_annotations,
    without_empty,
    without_labeled,
)
from sed.data.splits import split

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """The labelled, unlabelled and test images of a run; no image is in two of them.

    Attributes:
        labeled: records (packed) with annotations, and the classes of the run.
        unlabeled: records (packed) without annotations; empty for a supervised run without a split.
        tests: the sets to evaluate on.
    """

    labeled: Dataset
    unlabeled: Sequence[Record]
    tests: tuple[Dataset, ...] = ()


@dataclass(frozen=True)
class Split:
    """How to divide DATASETS.TRAIN into labelled and unlabelled images; see `sed.data.splits.split`."""

    percent: float = 0.0
    count: int = 0
    fold: int = 0

    @property
    def wanted(self) -> bool:
        """Whether to divide it at all."""
        return self.percent > 0 or self.count > 0


@without_gc()
def partition(
    load_train: Callable[[], Dataset],
    load_unlabeled: Callable[[], Dataset] | None,
    load_tests: Callable[[], Sequence[Dataset]],
    *,
    divide: Split,
    method: str,
    filter_empty: bool,
    num_classes: int,
    classes_key: str,
) -> Data:
    """Read, split and check the data sets of a run.

    Args:
        load_train: reads the labelled set.
        load_unlabeled: reads the unlabelled one; None: there is none. Not called for the supervised baseline.
        load_tests: reads the sets to evaluate on.
        divide: how to divide the labelled set.
        method: SEMI.METHOD; every one but "supervised" needs unlabelled images.
        filter_empty: leave out labelled images without any box.
        num_classes: K of the model.
        classes_key: the config key of K, for the message.

    Raises:
        DataError: where the keys of the config exclude each other, or the data cannot be used.
    """
    if load_unlabeled and divide.wanted:
        raise DataError(
            "DATASETS.UNLABELED and a split (SEMI.LABELED_PERCENT or SEMI.LABELED_COUNT) exclude each other; "
            "set one of them"
        )
    train = load_train()
    labeled, unlabeled = train.records, []
    if divide.wanted:
        labeled, unlabeled = split(labeled, divide.percent, divide.count, divide.fold)
    elif load_unlabeled and method != "supervised":
        extra = strip_annotations(load_unlabeled().records)
        shown = [r for r in labeled if any(not a["iscrowd"] for a in r["annotations"])] if filter_empty else labeled
        unlabeled = without_labeled(extra, shown)
        if extra and not unlabeled:
            raise DataError(
                f"all {len(extra)} images of DATASETS.UNLABELED are labelled ones of {train.name}, so that there is no "
                "unlabelled image: add some, or set SEMI.METHOD supervised"
            )
    if not unlabeled and method != "supervised":
        raise DataError(
            f"SEMI.METHOD is {method}, but there is no unlabelled image: set DATASETS.UNLABELED, or split "
            "DATASETS.TRAIN by SEMI.LABELED_PERCENT or SEMI.LABELED_COUNT, or set SEMI.METHOD supervised"
        )
    if filter_empty:
        labeled, before = without_empty(labeled, train.name), len(labeled)
        if len(labeled) < before:
            log.info(
                "%s: %d labelled images have no box and are left out; DATALOADER.FILTER_EMPTY_ANNOTATIONS False keeps "
                "them",
                *(train.name, before - len(labeled)),
            )
    check_num_classes(train, num_classes, classes_key)
    tests = tuple(reorder(test, train.classes, train.name, subset=True) for test in load_tests())
    if load_unlabeled and unlabeled:
        tested = [record for test in tests for record in test.records]
        unlabeled, before = without_labeled(unlabeled, tested, "to evaluate on"), len(unlabeled)
        if not unlabeled:
            raise DataError(
                f"all {before} unlabelled images of DATASETS.UNLABELED are in DATASETS.TEST: add some, or set "
                "SEMI.METHOD supervised"
            )
    check_disjoint(labeled, unlabeled, [record for test in tests for record in test.records])
    return Data(replace(train, records=pack(labeled)), pack(unlabeled), tests)


def check_test_images(tests: Sequence[Dataset]) -> None:
    """Look at every image to evaluate on, before hours of training end at one of them: its header and its end.

    Raises:
        DataError: for a missing file, no image, one that is cut off, or of another size than its record's.
    """
    for test in tests:
        for record in test.records:
            check_file(record["file_name"], (record["height"], record["width"]))


def check_num_classes(dataset: Dataset, wanted: int, key: str) -> None:
    """Raise DataError unless `dataset` has `wanted` classes, the value of the config key `key`."""
    if wanted != len(dataset.classes):
        raise DataError(
            f"{key} is {wanted}, but {dataset.name} has {len(dataset.classes)} categories "
            f"({', '.join(dataset.classes[:10])}); set it to {len(dataset.classes)}"
        )
