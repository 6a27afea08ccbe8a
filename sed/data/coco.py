"""Reads COCO json files and checks them item by item.

A fault that makes training impossible or wrong raises one DataError that names the file and the item: not COCO, a
missing image, an unknown category or image id, a duplicate id, a box with NaN. Boxes of zero size or outside the image
are dropped, and boxes that stick out are clipped; one warning for each file counts them.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sed.data.coco_types import settle_types
from sed.data.errors import DataError
from sed.data.frames import check_frame
from sed.data.packing import without_gc
from sed.data.records import XYWH_ABS, Dataset, Record

_CROWD = (None, 0, 1)  # values of iscrowd; None: absent
_log = logging.getLogger(__name__)
MIN_SIDE = 0.01  # pixels; a box with a shorter side has no size that float32 could keep after a resize
ROUNDING = 1.0  # pixels; boxes that stick out by no more than this are clipped without a warning


@without_gc()
def load_coco(path: str | Path, image_root: str | Path = "", labeled: bool = True) -> Dataset:
    """Read a COCO detection json.

    Args:
        path: the json file.
        image_root: folder of its images; "": the json's folder, its subfolder `images`, or its subfolder named like
            the json.
        labeled: False drops all annotations unread.

    Returns:
        Records in the json's order; classes in the order of their category ids.

    Raises:
        DataError: see the module's docstring; also for a labelled file without any usable box.
    """
    content = read_json(Path(path), labeled, polygons=False)
    if not labeled:
        content.pop("annotations", None)
    images, categories = content["images"], sorted(content["categories"], key=lambda c: c["id"])
    _check_images(path, images)
    _check_unique(path, "category id", (c["id"] for c in categories))
    _check_unique(path, "category name", (c["name"] for c in categories))
    root = _find_images(Path(path), image_root, [image["file_name"] for image in images])
    records: list[Record] = [
        {
            "file_name": str(root / image["file_name"]),
            "image_id": image["id"],
            "height": int(image["height"]),
            "width": int(image["width"]),
        }
        for image in images
    ]
    if labeled:
        classes = {category["id"]: index for index, category in enumerate(categories)}
        _check_annotations(path, content["annotations"], {image["id"] for image in images}, classes)
        by_image: dict[Any, list[dict]] = {}
        for annotation in content["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        add_annotations(path, records, by_image, classes)
    return Dataset(str(path), records, tuple(c["name"] for c in categories), tuple(int(c["id"]) for c in categories))


def read_json(path: Path, labeled: bool, polygons: bool = True) -> dict[str, Any]:
    """The content of a COCO json, checked to have the lists and fields that object detection needs.

    Unlabelled files need neither annotations nor categories (the latter become an empty list). Without `polygons` the
    segmentations are dropped while reading.

    Raises:
        DataError: for a missing file, one that is not json, one without these lists and fields, or with values that
            cannot be theirs (`sed.data.coco_types`).
    """
    try:
        content = json.loads(path.read_bytes(), object_hook=None if polygons else _without_polygon)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:  # a folder, a closed file
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:  # no json, no text, or a number of thousands of digits
        raise DataError(f"{path}: not a json file ({error})") from None
    except (RecursionError, MemoryError):
        raise DataError(f"{path}: not a json file that can be read: nested too deep") from None
    needed = ["images", "categories"] + ["annotations"] * labeled
    if not isinstance(content, dict):
        raise DataError(f"{path}: not COCO: expected an object with {needed}, got a {type(content).__name__}")
    if not labeled:
        content.setdefault("categories", [])
    missing = [key for key in needed if not isinstance(content.get(key), list)]
    if missing:
        raise DataError(f"{path}: not COCO: expected the lists {needed}, but {missing} are missing or no lists")
    fields = {
        "images": ("id", "file_name", "height", "width"),
        "categories": ("id", "name"),
        "annotations": ("id", "image_id", "category_id", "bbox"),
    }
    for key in needed:
        wanted = frozenset(fields[key])
        for index, item in enumerate(content[key]):
            if isinstance(item, dict) and wanted <= item.keys():
                continue
            absent = [f for f in fields[key] if not isinstance(item, dict) or f not in item]
            raise DataError(f"{path}: not COCO: {key}[{index}] lacks {', '.join(absent)}")
    settle_types(path, content, labeled)
    return content


def _without_polygon(item: dict[str, Any]) -> dict[str, Any]:
    item.pop("segmentation", None)  # four fifths of COCO's json, and half of the memory that reading takes
    return item


def _check_unique(path: str | Path, kind: str, ids: Iterable[Any]) -> None:
    seen = set()
    for value in ids:
        if value in seen:
            raise DataError(f"{path}: {kind} {value!r} occurs twice; it must be unique")
        seen.add(value)


def _check_images(path: str | Path, images: Sequence[dict]) -> None:
    if not images:
        raise DataError(f"{path}: it lists no image")
    _check_unique(path, "image id", (image["id"] for image in images))
    for image in images:
        sides = (image["height"], image["width"])
        if not all(isinstance(side, (int, float)) and side >= 1 for side in sides):
            raise DataError(
                f"{path}: image {image['file_name']} (id {image['id']}) has height, width {sides}; "
                "expected numbers of pixels"
            )


def _find_images(path: Path, image_root: str | Path, names: Sequence[str]) -> Path:
    missing = locate_images(path, image_root, names)
    best = min(missing, key=lambda root: len(missing[root]))
    if missing[best]:
        raise DataError(
            f"{path}: image file {missing[best][0]} is missing ({len(missing[best])} of {len(names)} are); "
            f"looked in {', '.join(map(str, missing))}; set DATASETS.IMAGE_ROOT to the folder of the images"
        )
    return best


def locate_images(path: Path, image_root: str | Path, names: Sequence[str]) -> dict[Path, list[str]]:
    """Folder -> the image names that are missing there, for every folder where the images of a json may be."""
    folder = path.parent
    roots = [Path(image_root)] if str(image_root) else [folder, folder / "images", folder / path.stem]
    listed: dict[str, frozenset[str]] = {}

    def files(parent: str) -> frozenset[str]:
        if parent not in listed:
            listed[parent] = frozenset(os.listdir(parent)) if os.path.isdir(parent) else frozenset()
        return listed[parent]

    parts = [os.path.split(name) for name in names]
    missing: dict[Path, list[str]] = {}
    for root in roots:
        there = {parent: files(os.path.join(root, parent)) for parent in {parent for parent, _ in parts}}
        missing[root] = [name for name, (parent, leaf) in zip(names, parts, strict=True) if leaf not in there[parent]]
    return missing


def _check_annotations(path: str | Path, annotations: Sequence[dict], images: set, classes: dict) -> None:
    _check_unique(path, "annotation id", (a["id"] for a in annotations))
    if _all_fine(annotations, images, classes):
        return
    for a in annotations:
        item = f"{path}: annotation {a['id']} (image id {a['image_id']})"
        if a["image_id"] not in images:
            raise DataError(f"{item}: there is no image with this id")
        if a["category_id"] not in classes:
            raise DataError(f"{item}: unknown category id {a['category_id']}; known are {sorted(classes)}")
        box = a["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, (int, float)) for v in box):
            raise DataError(f"{item}: bbox {box!r} is not [x, y, width, height]")
        if not all(math.isfinite(v) for v in box):
            raise DataError(f"{item}: bbox {box} holds NaN or infinity")
        if a.get("iscrowd") not in _CROWD:
            raise DataError(f"{item}: iscrowd is {a['iscrowd']!r}; expected 0 or 1")


def _all_fine(annotations: Sequence[dict], images: set, classes: dict) -> bool:
    """A quick check of all annotations together; False: check them one by one."""
    try:
        boxes = np.array([a["bbox"] for a in annotations])
        known = {a["image_id"] for a in annotations} <= images
        known &= {a["category_id"] for a in annotations} <= set(classes)
        known &= {a.get("iscrowd") for a in annotations} <= set(_CROWD)
    except (TypeError, ValueError):  # ids that cannot be keys, boxes of different lengths
        return False
    return known and boxes.dtype.kind in "if" and boxes.shape[1:] == (4,) and bool(np.isfinite(boxes).all())


def add_annotations(
    path: str | Path, records: list[Record], by_image: dict, classes: dict, keep: Sequence[str] = ()
) -> None:
    """Add "annotations" to records, boxes clipped to the image; one warning counts what was clipped, dropped or made.

    An area, by which APs, APm and APl divide the objects, that is no positive number is that of the box.

    Args:
        path: of the annotation file, for messages.
        records: without annotations; changed in place.
        by_image: image id -> dicts with id, bbox [x, y, w, h], category_id and perhaps iscrowd and area.
        classes: category id -> contiguous class.
        keep: further fields to copy.

    Raises:
        DataError: where no usable box is left, or boxes fit only the other frame of an image turned by EXIF.
    """
    dropped: list[int] = []
    clipped: list[int] = []
    no_area: list[int] = []
    usable = 0
    for record in records:
        record["annotations"] = []
        fitting = len(dropped) + len(clipped)
        for a in by_image.get(record["image_id"], ()):
            x, y, w, h = a["bbox"]
            x0, y0 = max(x, 0), max(y, 0)
            x1, y1 = min(x + w, record["width"]), min(y + h, record["height"])
            if min(x1 - x0, y1 - y0) < MIN_SIDE:
                dropped.append(a["id"])
                continue
            if max(x0 - x, y0 - y, x + w - x1, y + h - y1) > ROUNDING:
                clipped.append(a["id"])
            crowd = int(a.get("iscrowd", 0) or 0)
            usable += not crowd
            area = _area(a.get("area"))
            if area is None:
                if a.get("area") not in (None, 0):  # 0 and none are usual
                    no_area.append(a["id"])
                area = (x1 - x0) * (y1 - y0)
            record["annotations"].append(
                {
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "bbox_mode": XYWH_ABS,
                    "category_id": classes[a["category_id"]],
                    "iscrowd": crowd,
                    "area": area,
                    **{key: a[key] for key in keep},
                }
            )
        if len(dropped) + len(clipped) > fitting:
            check_frame(path, record, [a["bbox"] for a in by_image[record["image_id"]]])
    if dropped or clipped or no_area:
        parts = []
        if dropped:
            parts.append(f"dropped {len(dropped)} boxes of zero size or outside the image (annotation {dropped[0]})")
        if clipped:
            parts.append(f"clipped {len(clipped)} boxes that stick out of the image (annotation {clipped[0]})")
        if no_area:
            parts.append(
                f"took {len(no_area)} areas from the box, theirs is no positive number (annotation {no_area[0]})"
            )
        _log.warning("%s: %s", path, "; ".join(parts))
    if not usable:
        raise DataError(f"{path}: no usable box in its {len(records)} images; an empty labelled set trains nothing")


def _area(value: Any) -> float | None:
    """An area as a number, also where it is written as text; None: it is no positive one."""
    try:
        usable = isinstance(value, (int, float, str)) and not isinstance(value, bool)
        number = float(value) if usable else math.nan
    except (ValueError, OverflowError):
        return None
    return (number if isinstance(value, str) else value) if 0 < number < math.inf else None
