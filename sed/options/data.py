"""The options of the data: sections DATASETS, DATALOADER and INPUT, with Detectron2's names wherever it has one."""

from __future__ import annotations

from dataclasses import dataclass

from sed.options.option import option


@dataclass(frozen=True)
class Datasets:
    """DATASETS."""

    train: tuple[str, ...] = option(
        (), "labelled: names, COCO json files, or folders in COCO's, YOLO's or Pascal VOC's layout (docs/own_data.md)"
    )
    unlabeled: tuple[str, ...] = option(
        (), "names, COCO json files or folders of images; empty: DATASETS.TRAIN is split"
    )
    test: tuple[str, ...] = option((), "labelled images to evaluate on; empty: nothing is evaluated")
    image_root: str = option("", "folder of the images of a json given by path; '': looked for beside the json")


@dataclass(frozen=True)
class DataLoader:
    """DATALOADER."""

    num_workers: int = option(4, "processes that read images, each stream", low=0)
    aspect_ratio_grouping: bool = option(True, "a batch holds only wide or only tall images")
    filter_empty_annotations: bool = option(True, "leave out labelled images without any box")


@dataclass(frozen=True)
class Input:
    """INPUT."""

    min_size_train: tuple[int, ...] = option(
        (640, 800), "short side in training, pixels, drawn from this range", low=1, count=(1, 2)
    )
    max_size_train: int = option(1333, "limit of the long side in training", low=1)
    min_size_test: int = option(800, "short side of test images", low=1)
    max_size_test: int = option(1333, "limit of the long side of test images", low=1)
    random_flip: str = option("horizontal", "horizontal: flip with probability 0.5", choices=("horizontal", "none"))
    cutout_fill: str = option(
        "random", "fill of the strong view's cutouts. random: noise per pixel [O]", choices=("random", "constant")
    )
    geometric: str = option(
        "none",
        "randaugment: rotate, translate or shear the weak view, from which the other views are made (A.2)",
        choices=("none", "randaugment"),
    )
    geometric_level: float = option(5.0, "strength of that, of RandAugment's 10", low=0, high=10)
