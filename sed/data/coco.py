"""Reads COCO json files and checks them item by item.

A fault that makes training impossible or wrong raises one DataError that names the file and the item: not COCO, a
missing image, an unknown category or image id, a duplicate id. Boxes that are none (not four numbers, NaN, zero size,
outside the image) are dropped, and boxes that stick out are clipped; one warning for each file counts them.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sed.data.coco_types import Fault, are_boxes, is_box, settle_types, shown
from sed.data.errors import DataError
from sed.data.files import read_file
from sed.data.frames import check_frame
from sed.data.locate import find_images
from sed.data.packing import without_gc
from sed.data.records import XYWH_ABS, Dataset, Record, image_record

_FIELDS = {  # list -> field -> what it holds; height and width may be missing
    "images": {"id": "a whole number or a text", "file_name": "the name of a file"},
    "categories": {"id": "a whole number", "name": "a name"},
    "annotations": {
        "id": "a whole number or a text",
        "image_id": "the id of an image",
        "category_id": "the id of a category",
        "bbox": "[x, y, width, height] in pixels",
    },
}
_log = logging.getLogger(__name__)
MIN_SIDE = 0.01  # pixels; a box with a shorter side has no size that float32 could keep after a resize
ROUNDING = 1.0  # pixels; boxes that stick out by no more than this are clipped without a warning


@without_gc()
def load_coco(path: str | Path, image_root: str | Path = "", labeled: bool = True) -> Dataset:
    """Read a COCO detection json.

    Args:
        path: the json file.
        image_root: folder of its images; "": looked for beside the json, see `sed.data.locate`.
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
    if not images:
        raise DataError(f"{path}: it lists no image")
    _check_unique(path, "image id", (image["id"] for image in images))
    _check_unique(path, "category id", (c["id"] for c in categories))
    _check_unique(path, "category name", (c["name"] for c in categories))
    files = find_images(Path(path), image_root, [image["file_name"] for image in images])
    records: list[Record] = [_record(image, file) for image, file in zip(images, files, strict=True)]
    if unsized := sum(image["height"] is None or image["width"] is None for image in images):
        _log.warning("%s: %d images without a size; theirs were read from the files", path, unsized)
    if labeled:
        classes = {category["id"]: index for index, category in enumerate(categories)}
        _check_annotations(path, content["annotations"], {image["id"] for image in images}, classes)
        by_image: dict[Any, list[dict]] = {}
        for annotation in content["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        add_annotations(path, records, by_image, classes)
    return Dataset(str(path), records, tuple(c["name"] for c in categories), tuple(int(c["id"]) for c in categories))


def _record(image: dict[str, Any], file: str) -> Record:
    if image["height"] is None or image["width"] is None:
        return image_record(file, image["id"])
    return {
        "file_name": file,
        "image_id": image["id"],
        "height": int(image["height"]),
        "width": int(image["width"]),
    }


def read_json(
    path: Path, labeled: bool, polygons: bool = True, note: Callable[[Fault], None] | None = None
) -> dict[str, Any]:
    """The content of a COCO json, checked to have the lists and fields that object detection needs.

    Unlabelled files need neither annotations nor categories (the latter become an empty list). Without `polygons` the
    segmentations are dropped while reading.

    Args:
        path: the json.
        labeled: whether its annotations are to be read.
        polygons: whether to keep segmentations.
        note: called with every item that lacks a field or has a value that cannot be the field's; the item is then
            left out. None: the first is an error.

    Raises:
        DataError: for a missing file, one that is not json, one without these lists and fields, or with values that
            cannot be theirs (`sed.data.coco_types`).
    """
    try:
        content = json.loads(read_file(path), object_hook=None if polygons else _without_polygon)
    except ValueError as error:  # no json, no text, or a number of thousands of digits
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a json file ({error})") from None
    except (RecursionError, MemoryError):
        raise DataError(f"{path}: not a json file that can be read: nested too deep") from None
    needed = ["images", "categories"] + ["annotations"] * labeled
    if not isinstance(content, dict):
        found = f"got a {type(content).__name__}"
        if isinstance(content, list) and content and isinstance(content[0], dict) and "score" in content[0]:
            found += "; it looks like a list of detections, not like annotations"
        raise DataError(f"{path}: not COCO: expected an object with {needed}, {found}")
    if not labeled:
        content.setdefault("categories", [])
    if missing := [key for key in needed if not isinstance(content.get(key), list)]:
        has = ", ".join(map(repr, sorted(content)[:10])) or "nothing"
        raise DataError(
            f"{path}: not COCO: expected the lists {needed}, but {missing} are missing or no lists (it has {has:.200})"
        )

    def stop(fault: Fault) -> None:
        raise DataError(f"{path}: {fault.item}: {fault.text}")

    note = note or stop
    for key in needed:
        wanted = _FIELDS[key]
        if all(isinstance(item, dict) and wanted.keys() <= item.keys() for item in content[key]):
            continue
        kept = []
        for index, item in enumerate(content[key]):
            absent = [f for f in wanted if not isinstance(item, dict) or f not in item]
            if not absent:
                kept.append(item)
                continue
            text = f"lacks {', '.join(absent)}; expected {wanted[absent[0]]}"
            note(Fault(key, index, absent[0], text, item))
        content[key] = kept
    settle_types(path, content, labeled, note)
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


def _check_annotations(path: str | Path, annotations: Sequence[dict], images: set, classes: dict) -> None:
    _check_unique(path, "annotation id", (a["id"] for a in annotations))
    if _all_known(annotations, images, classes):
        return
    for a in annotations:
        item = f"{path}: annotation {a['id']} (image id {a['image_id']})"
        if a["image_id"] not in images:
            raise DataError(f"{item}: there is no image with this id")
        if a["category_id"] not in classes:
            raise DataError(f"{item}: unknown category id {a['category_id']}; known are {sorted(classes)}")


def _all_known(annotations: Sequence[dict], images: set, classes: dict) -> bool:
    """A quick check of all annotations together; False: check them one by one."""
    return {a["image_id"] for a in annotations} <= images and {a["category_id"] for a in annotations} <= set(classes)


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
    odd: list[str] = []
    dropped: list[int] = []
    clipped: list[int] = []
    no_area: list[int] = []
    usable = 0
    whole = are_boxes([a["bbox"] for annotations in by_image.values() for a in annotations])
    for record in records:
        record["annotations"] = []
        fitting = len(dropped) + len(clipped)
        for a in by_image.get(record["image_id"], ()):
            if not (whole or is_box(a["bbox"])):
                odd.append(f"annotation {a['id']}: bbox {shown(a['bbox'])}")
                continue
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
            check_frame(path, record, [a["bbox"] for a in by_image[record["image_id"]] if is_box(a["bbox"])])
    parts = []
    if odd:
        parts.append(f"dropped {len(odd)} boxes that are not [x, y, width, height] in pixels ({odd[0]})")
    if dropped:
        parts.append(f"dropped {len(dropped)} boxes of zero size or outside the image (annotation {dropped[0]})")
    lost = "; ".join(parts)
    if clipped:
        parts.append(f"clipped {len(clipped)} boxes that stick out of the image (annotation {clipped[0]})")
    if no_area:
        parts.append(f"took {len(no_area)} areas from the box, theirs is no positive number (annotation {no_area[0]})")
    if not usable:
        raise DataError(
            f"{path}: no usable box in its {len(records)} images; an empty labelled set trains nothing"
            + (f" ({lost})" if lost else "")
        )
    if parts:
        _log.warning("%s: %s", path, "; ".join(parts))


def _area(value: Any) -> float | None:
    """An area as a number, also where it is written as text; None: it is no positive one."""
    try:
        usable = isinstance(value, (int, float, str)) and not isinstance(value, bool)
        number = float(value) if usable else math.nan
    except (ValueError, OverflowError):
        return None
    return (number if isinstance(value, str) else value) if 0 < number < math.inf else None
