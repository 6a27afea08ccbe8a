"""Reads Pascal VOC folders, in the layout of the devkit and of Detectron2.

    VOC2007/ImageSets/Main/trainval.txt     one image id a line
    VOC2007/Annotations/<id>.xml
    VOC2007/JPEGImages/<id>.jpg

Boxes, class order and image ids are those of Detectron2 (`load_voc_instances`). VOC counts pixels from 1 with both ends
included, so that 1 is subtracted from (xmin, ymin) and not from (xmax, ymax). Ids are the file names, unique over the
years ("000005", "2008_000008"). Objects marked difficult are trained on, as in Detectron2; their annotations have
"difficult": 1, for the evaluation by VOC's own rules (`sed.evaluation.voc`).
"""

from __future__ import annotations

import math
import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sed.data.coco import add_annotations
from sed.data.errors import DataError
from sed.data.records import Dataset, Record, image_record

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def load_voc(
    folder: str | Path, split: str, classes: Sequence[str] = CLASSES, labeled: bool = True, name: str = ""
) -> Dataset:
    """Read one split.

    Args:
        folder: of one year, such as `datasets/VOC2007`.
        split: a file of ImageSets/Main without its ".txt".
        classes: in the order of their indices.
        labeled: False opens no annotation file at all: sizes are read from the images' headers.
        name: of the data set; "": made from folder and split.

    Returns:
        Records in the split's order; each annotation also has "difficult": 0 | 1.

    Raises:
        DataError: for a missing or unreadable file, an unknown class, a box without its four numbers, and a labelled
            split without any usable box. Boxes of zero size or outside their image are dropped, with one warning.
    """
    folder, images = Path(folder), Path(folder) / "JPEGImages"
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    ids = _ids(listing)
    found = frozenset(os.listdir(images)) if images.is_dir() else frozenset()
    missing = [i for i in ids if f"{i}.jpg" not in found]
    if missing:
        raise DataError(
            f"{listing}: image file {images / missing[0]}.jpg is missing ({len(missing)} of {len(ids)} are); unpack "
            "the archive's images there"
        )
    if labeled:
        index = {name: number for number, name in enumerate(classes)}
        records, objects = [], {}
        for i in ids:
            path = folder / "Annotations" / f"{i}.xml"
            root = _parse(path)
            size = root.find("size")
            width, height = (_number(size, tag, f"{path}: its <size>") for tag in ("width", "height"))
            if min(width, height) < 1:
                raise DataError(f"{path}: its <size> is {width:g} x {height:g}; expected the image's pixels")
            records.append(_record(images, i, int(height), int(width)))
            objects[i] = [_object(node, path, n, index) for n, node in enumerate(root.findall("object"), 1)]
        add_annotations(listing, records, objects, {n: n for n in index.values()}, keep=("difficult",))
    else:
        records = [image_record(os.path.join(images, f"{i}.jpg"), i) for i in ids]
    return Dataset(name or f"{folder.name}_{split}", records, tuple(classes), tuple(range(len(classes))))


def _ids(listing: Path) -> list[str]:
    try:
        lines = [line.split() for line in listing.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{listing}: cannot be read ({reason}); unpack Pascal VOC there, or set DETECTRON2_DATASETS to the folder "
            "that holds VOC2007 and VOC2012 (the archives' VOCdevkit)"
        ) from None
    ids = []
    for number, fields in enumerate(lines, 1):
        if len(fields) > 1:
            raise DataError(f"{listing}: line {number} is {' '.join(fields)!r}; expected one image id a line")
        ids += fields
    if not ids:
        raise DataError(f"{listing}: it lists no image")
    if len(set(ids)) < len(ids):
        twice = next(i for n, i in enumerate(ids) if i in ids[:n])
        raise DataError(f"{listing}: image id {twice} occurs twice; it must be unique")
    return ids


def _parse(path: Path) -> ET.Element:
    try:
        return ET.parse(path).getroot()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); unpack the archive's annotations there, or name the set in "
            "DATASETS.UNLABELED, which needs none"
        ) from None
    except ET.ParseError as error:
        raise DataError(f"{path}: not an XML file ({error}); unpack it again or mend it") from None


def _record(images: Path, image_id: str, height: int, width: int) -> Record:
    return {
        "file_name": os.path.join(images, f"{image_id}.jpg"),
        "image_id": image_id,
        "height": height,
        "width": width,
    }


def _object(node: ET.Element, path: Path, number: int, classes: dict[str, int]) -> dict[str, Any]:
    """The number-th <object> of a file as an annotation [x, y, w, h] that `sed.data.coco` can check."""
    name, difficult = node.findtext("name", "").strip(), node.findtext("difficult", "0").strip()
    where = f"{path}: object {number} ({name or 'no name'})"
    if name not in classes:
        raise DataError(
            f"{where} is of an unknown class; known are {', '.join(classes)} (data with other classes: convert them to "
            "a COCO json)"
        )
    if difficult not in ("0", "1"):
        raise DataError(f"{where} has <difficult> {difficult!r}; expected 0 or 1")
    x0, y0, x1, y1 = (_number(node.find("bndbox"), tag, f"{where}: its <bndbox>") for tag in _CORNERS)
    return {
        "id": f"{path.name}, object {number}",
        "bbox": [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1],
        "category_id": classes[name],
        "difficult": int(difficult),
    }


def _number(parent: ET.Element | None, tag: str, where: str) -> float:
    text = parent.findtext(tag) if parent is not None else None
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where} has <{tag}> {text!r}; expected a number" if text else f"{where} has no <{tag}>")
    return value
