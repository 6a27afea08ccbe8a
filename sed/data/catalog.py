"""Loads the data sets of DATASETS.*: names of known sets, COCO json files, and folders of images.

The result is a `Dataset` of records (`sed.data.records`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sed.data.coco import load_coco
from sed.data.digits import VARIANTS, ensure_digits
from sed.data.errors import DataError
from sed.data.folders import list_images
from sed.data.records import Dataset, image_record, join
from sed.data.voc import load_voc

COCO_2017 = {
    "coco_2017_train": ("coco/annotations/instances_train2017.json", "coco/train2017"),
    "coco_2017_val": ("coco/annotations/instances_val2017.json", "coco/val2017"),
    "coco_2017_unlabeled": ("coco/annotations/image_info_unlabeled2017.json", "coco/unlabeled2017"),
}
VOC = {  # name -> folder, split: Detectron2's builtin ones
    **{f"voc_2007_{split}": ("VOC2007", split) for split in ("trainval", "train", "val", "test")},
    **{f"voc_2012_{split}": ("VOC2012", split) for split in ("trainval", "train", "val")},
}


def data_root() -> Path:
    """The folder of named data sets: $DETECTRON2_DATASETS, else ./datasets."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def known_names() -> list[str]:
    """The names that `load_dataset` accepts."""
    digits = [f"{variant}_{split}" for variant in VARIANTS for split in ("train", "tune", "test")]
    return [*digits, *COCO_2017, *VOC]


def load_dataset(source: str, image_root: str = "", labeled: bool = True) -> Dataset:
    """Read one data set.

    Args:
        source: a name (see `known_names`), the path of a COCO json, or, unlabelled only, a folder of images.
        image_root: folder of a json's images; "": looked for beside the json, see `sed.data.locate`.
        labeled: False drops all annotations.

    Raises:
        DataError: for an unknown source and for data that cannot be used; see `sed.data.coco` and `sed.data.voc`.
    """
    for variant in VARIANTS:
        if source in (f"{variant}_train", f"{variant}_tune", f"{variant}_test"):
            folder, split = ensure_digits(data_root(), variant), source.rpartition("_")[2]
            json_path, images = folder / f"{split}.json", folder / split
            return replace(load_coco(json_path, images, labeled), name=source, json_file=str(json_path))
    if source in COCO_2017:
        json_path, images = (data_root() / part for part in COCO_2017[source])
        if not json_path.is_file():
            raise DataError(
                f"{source}: {json_path} is missing; download COCO 2017 there or set DETECTRON2_DATASETS to "
                "the folder that holds coco/"
            )
        return replace(load_coco(json_path, images, labeled), name=source, json_file=str(json_path))
    if source in VOC:
        folder, split = VOC[source]
        return load_voc(data_root() / folder, split, labeled=labeled, name=source)
    path = Path(source)
    if path.is_dir():
        if labeled:
            raise DataError(f"{source}: a folder holds no annotations; give a COCO json where labels are needed")
        return load_folder(path)
    if path.is_file():
        return replace(load_coco(path, image_root, labeled), json_file=str(path))
    raise DataError(
        f"{source}: neither a file, a folder nor a known data set; the names are {', '.join(known_names())}"
    )


def load_datasets(sources: Sequence[str], image_root: str = "", labeled: bool = True) -> Dataset:
    """Several data sets as one, see `load_dataset` and `join`."""
    return join([load_dataset(source, image_root, labeled) for source in sources], labeled)


def load_folder(folder: str | Path) -> Dataset:
    """All images below a folder, sorted by path, as unlabelled records; sizes are read from the headers.

    Raises:
        DataError: for a folder without images and for a file that is no readable image.
    """
    paths = list_images(folder)
    return Dataset(str(folder), [image_record(path, path.relative_to(folder).as_posix()) for path in paths])
