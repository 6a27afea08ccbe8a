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

import codecs
import logging
import math
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sed.data.coco import add_annotations
from sed.data.coco_types import MAX_SIDE, shown
from sed.data.errors import DataError
from sed.data.files import read_file
from sed.data.folders import IMAGE_SUFFIXES
from sed.data.records import Dataset, Record, image_record

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
log = logging.getLogger(__name__)
_ENCODING = re.compile(rb"""\s*<\?xml[^>]{,100}?encoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")
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
        DataError: for a missing or unreadable file, a size that no image has, an unknown class, and a labelled split
            without any usable box. Boxes that are none (a corner is missing or no number), of zero size or outside
            their image are dropped, with one warning. Sizes that are missing or 0 are read from the images.
    """
    folder, images = Path(folder), Path(folder) / "JPEGImages"
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    ids = _ids(listing)
    found = frozenset(os.listdir(images)) if images.is_dir() else frozenset()
    missing = [i for i in ids if f"{i}.jpg" not in found]
    if missing:
        raise DataError(
            f"{listing}: image file {images / missing[0]!s:.300}.jpg is missing ({len(missing)} of {len(ids)} are); "
            "unpack the archive's images there"
        )
    rows = [_Row(i, folder / "Annotations" / f"{i}.xml", os.path.join(images, f"{i}.jpg")) for i in ids]
    if labeled:
        records = _labeled(listing, [(row, parse(row.annotation)) for row in rows], classes)
    else:
        records = [image_record(row.image, row.image_id) for row in rows]
    return Dataset(name or f"{folder.name}_{split}", records, tuple(classes), tuple(range(len(classes))))


def load_voc_folder(folder: str | Path, split: str = "", labeled: bool = True) -> Dataset:
    """Read annotations in Pascal VOC's format of other classes than its own, with images of any kind.

    Args:
        folder: with Annotations/*.xml, and the images in JPEGImages, images or the folder itself; or with xml files
            beside their images. Image and annotation have the same name before the dot.
        split: a file of ImageSets/Main without its ".txt"; "": all annotations.
        labeled: False opens no annotation file; without a split these are all images.

    Returns:
        Records in the order of their ids, classes in the order of their names; each annotation also has "difficult".

    Raises:
        DataError: see `load_voc`. Images without an annotation file are left out, with one warning.
    """
    top = Path(folder)
    home = top / "Annotations" if (top / "Annotations").is_dir() else top
    listing = top / "ImageSets" / "Main" / f"{split}.txt" if split else home
    ids = _ids(listing) if split else sorted(path.stem for path in home.glob("*.xml") if not path.name.startswith("."))
    places = dict.fromkeys((top / "JPEGImages", top / "images", home, top))
    roots = [root for root in places if root.is_dir()]
    files: dict[str, str] = {}
    for root in roots:
        for path in sorted(root.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
                files.setdefault(path.stem, str(path))
    if missing := [i for i in ids if i not in files]:
        raise DataError(
            f"{home / missing[0]}.xml: there is no image of this name ({len(missing)} of {len(ids)} have none); looked "
            f"in {', '.join(map(str, roots))} for {', '.join(IMAGE_SUFFIXES)}"
        )
    if labeled and not split and (alone := sorted(files.keys() - set(ids))):
        log.warning("%s: %d images have no annotation file and are left out (%s)", folder, len(alone), alone[0])
    if not labeled:
        ids = ids if split else sorted(files)
        return Dataset(f"{folder}:{split}" if split else str(folder), [image_record(files[i], i) for i in ids])
    rows = [(row, parse(row.annotation)) for row in (_Row(i, home / f"{i}.xml", files[i]) for i in ids)]
    names = {node.findtext("name", "").strip() for _, root in rows for node in root.findall("object")}
    classes = tuple(sorted(names - {""}))
    records = _labeled(listing, rows, classes)
    return Dataset(f"{folder}:{split}" if split else str(folder), records, classes, tuple(range(len(classes))))


class _Row(NamedTuple):
    """The files of an image."""

    image_id: str
    annotation: Path
    image: str


def _labeled(listing: Path, rows: Sequence[tuple[_Row, ET.Element]], classes: Sequence[str]) -> list[Record]:
    """The records of images and the <annotation> of each."""
    index = {name: number for number, name in enumerate(classes)}
    records: list[Record] = []
    objects, unsized = {}, []
    for (i, path, file), root in rows:
        height, width = (_side(root.find("size"), tag, path) for tag in ("height", "width"))
        if height and width:
            records.append({"file_name": file, "image_id": i, "height": height, "width": width})
        else:
            records.append(image_record(file, i))
            unsized.append(path.name)
        objects[i] = [_object(node, path, n, index) for n, node in enumerate(root.findall("object"), 1)]
    if unsized:
        log.warning("%s: read %d sizes from the images, %s has none", listing, len(unsized), unsized[0])
    add_annotations(listing, records, objects, {n: n for n in index.values()}, keep=("difficult",))
    return records


def _ids(listing: Path) -> list[str]:
    remedy = (
        "unpack Pascal VOC there, or set DETECTRON2_DATASETS to the folder that holds VOC2007 and VOC2012 (the "
        "archives' VOCdevkit)"
    )
    try:
        lines = [line.split() for line in read_file(listing, remedy).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{listing}: no text in UTF-8 ({error}); {remedy}") from None
    ids = []
    for number, fields in enumerate(lines, 1):
        if len(fields) > 1:
            raise DataError(f"{listing}: line {number} is {shown(' '.join(fields))}; expected one image id a line")
        ids += fields
    if not ids:
        raise DataError(f"{listing}: it lists no image")
    if len(set(ids)) < len(ids):
        twice = next(i for n, i in enumerate(ids) if i in ids[:n])
        raise DataError(f"{listing}: image id {twice} occurs twice; it must be unique")
    return ids


def parse(path: Path) -> ET.Element:
    """The <annotation> of a file in any encoding.

    Entities of its own are refused: with them a file can grow a million-fold.

    Raises:
        DataError: for what is no such file.
    """
    data = read_file(
        path, "unpack the archive's annotations there, or name the set in DATASETS.UNLABELED, which needs none"
    )
    try:
        text = _utf8(data)
        if b"<!ENTITY" in text:
            raise DataError(f"{path}: it declares entities, which no annotation needs; take <!ENTITY ...> out of it")
        parser = ET.XMLParser(encoding="utf-8")  # whatever it declares itself
        parser.feed(text)
        root = parser.close()
    except DataError:
        raise
    except (ET.ParseError, ValueError, LookupError) as error:  # no text in the encoding that it declares, or no such
        raise DataError(f"{path}: not an XML file ({error}); unpack it again or mend it") from None
    except (RecursionError, MemoryError):
        raise DataError(f"{path}: not an XML file that can be read: nested too deep") from None
    if root.tag != "annotation":
        raise DataError(f"{path}: it is a <{root.tag:.40}>; expected an <annotation>, as Pascal VOC has them")
    return root


def _utf8(data: bytes) -> bytes:
    """An XML file in UTF-8, from what its byte order mark or its declaration says."""
    starts = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16", b"<\0": "utf-16-le", b"\0<": "utf-16-be"}
    if data[:2] in starts:
        return data.decode(starts[data[:2]]).encode()
    declared = _ENCODING.match(data)
    name = declared[1].decode().lower() if declared else ""
    if not name.startswith(("utf-16", "utf-32", "ucs", "utf-8")) and name:  # a wide one was not read byte by byte
        return data.decode(name).encode()
    return data


def _object(node: ET.Element, path: Path, number: int, classes: dict[str, int]) -> dict[str, Any]:
    """The number-th <object> of a file as an annotation [x, y, w, h] that `sed.data.coco` can check."""
    name, difficult = node.findtext("name", "").strip(), node.findtext("difficult", "0").strip()
    where = f"{path}: object {number} ({name[:60] or 'no name'})"
    if name not in classes:
        raise DataError(
            f"{where} is of an unknown class; known are {', '.join(classes)} (a set with other classes: give its "
            "folder in the place of the name)"
        )
    if difficult not in ("0", "1"):
        raise DataError(f"{where} has <difficult> {shown(difficult)}; expected 0 or 1")
    box = node.find("bndbox")
    texts = {tag: None if box is None else box.findtext(tag) for tag in _CORNERS}
    try:
        x0, y0, x1, y1 = map(_number, texts.values())
        corners: Any = [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]
    except ValueError:
        corners = texts  # no box: it is told and dropped where boxes are checked
    return {
        "id": f"{path.name}, object {number}",
        "bbox": corners,
        "category_id": classes[name],
        "difficult": int(difficult),
    }


def _side(size: ET.Element | None, tag: str, path: Path) -> int:
    """A side of the image in pixels; 0 where it is not given."""
    text = "" if size is None else (size.findtext(tag) or "").strip()
    try:
        value = _number(text or "0")
    except ValueError:
        value = math.nan
    if value != 0 and not 1 <= value <= MAX_SIDE:
        raise DataError(f"{path}: its <size> has <{tag}> {shown(text)}; expected a number of pixels, 1 to {MAX_SIDE}")
    return int(value)


def _number(text: str | None) -> float:
    if not text or "_" in text:  # Python would read 1_0 as 10
        raise ValueError(text)
    return float(text)
