"""Loads the data sets of DATASETS.*: names of known sets, COCO json files, YOLO and VOC sets, and folders of images.

The result is a `Dataset` of records (`sed.data.records`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sed.data.coco import load_coco
from sed.data.digits import VARIANTS, ensure_digits
from sed.data.errors import DataError
from sed.data.folders import list_images
from sed.data.layouts import Layout, find_layout, is_yolo_file, split_of
from sed.data.records import Dataset, image_record, join
from sed.data.voc import load_voc, load_voc_folder
from sed.data.yolo import load_yolo

log = logging.getLogger(__name__)
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
        source: a name (see `known_names`), the path of a COCO json or of YOLO's data.yaml, or a folder; without labels
            its images, with labels the annotations that `sed.data.layouts` finds. A path of several splits may end in
            ":train", ":val" or ":test".
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
    place, split = split_of(source)
    path = Path(place)
    if path.is_dir() and not labeled and not split:
        return load_folder(path)
    if path.is_dir() or is_yolo_file(path):
        return replace(load_layout(path, split, image_root, labeled), name=source)
    if path.is_file() and not split:
        return replace(load_coco(path, image_root, labeled), json_file=source)
    raise DataError(
        f"{source}: neither a file, a folder nor a known data set; the names are {', '.join(known_names())}"
    )


def load_layout(path: Path, split: str = "", image_root: str = "", labeled: bool = True) -> Dataset:
    """The data set of a folder or of a data.yaml; one line of the log says what it was taken for.

    Raises:
        DataError: see `sed.data.layouts` and the readers of the formats.
    """
    layout = find_layout(path, split) if path.is_dir() else Layout("YOLO", path, split or "train")
    log.info("%s: taken for %s", path, layout)
    if layout.kind == "YOLO":
        return load_yolo(layout.path, layout.split, labeled)
    if layout.kind == "VOC":
        return load_voc_folder(layout.path, layout.split, labeled)
    return replace(load_coco(layout.path, image_root, labeled), json_file=str(layout.path))


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
