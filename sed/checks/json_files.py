"""Reads data sets as far as possible, and notes every fault of their structure: fields, ids, categories.

`sed.data.coco` stops at the first fault; this goes on, so that a user sees all of them at once. Both read a json by
`sed.data.coco.read_json`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sed.checks.findings import Findings
from sed.data.catalog import COCO_2017, data_root, known_names
from sed.data.coco import read_json
from sed.data.coco_types import Fault, is_box, shown
from sed.data.errors import DataError
from sed.data.folders import HIDDEN, IMAGE_SUFFIXES, OTHER, look_through
from sed.data.layouts import find_layout, is_yolo_file, split_of
from sed.data.locate import locate_images, looked_for
from sed.data.records import Dataset, Record

LABELLED, UNLABELLED, TEST = "labelled", "unlabelled", "test"  # roles
KEYS = {LABELLED: "DATASETS.TRAIN", UNLABELLED: "DATASETS.UNLABELED", TEST: "DATASETS.TEST"}
_OTHER_IMAGES = (".gif", ".heic", ".heif", ".avif", ".jp2", ".jfif", ".raw", ".dng", ".ppm", ".pgm")
_CODES = {"height": "image-sides", "width": "image-sides", "iscrowd": "crowd-flag"}  # field -> of its faults
Reader = Callable[[str, str, bool], Dataset]  # (source, image_root, labelled) -> its records


@dataclass
class Source:
    """One data set, as far as it could be read.

    Attributes:
        name: as in the config.
        role: LABELLED, UNLABELLED or TEST.
        file: the json or folder that findings name.
        images: records without annotations; `file_name` is "" where the file is missing, `height` and `width` are 0
            where they are not known.
        classes: K names in the order of their ids.
        numbers: B annotation ids, of the annotations whose image and category are known and whose box is four numbers.
        image: [B] int, positions in `images`.
        category: [B] int, 0..K-1.
        boxes: [B, 4] float64, x, y, width, height as they are written; may hold NaN.
        crowd: [B] bool.
        structured: whether it could be read at all.
    """

    name: str
    role: str
    file: str
    images: list[Record] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    numbers: list[Any] = field(default_factory=list)
    image: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    category: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    crowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    structured: bool = True

    def item(self, index: int) -> str:
        """The name of annotation `index` in findings."""
        record = self.images[int(self.image[index])]
        return f"annotation {self.numbers[index]} (image {record['image_id']}, {record['name']})"

    def sizes(self) -> np.ndarray:
        """[B, 2] float64, (width, height) of each box's image; 0 where unknown."""
        table = np.array([(r["width"], r["height"]) for r in self.images], np.float64).reshape(-1, 2)
        return table[self.image]

    def set_boxes(self, rows: Sequence[tuple[Any, int, int, Sequence[float], bool]]) -> None:
        """Set the annotations, each (annotation id, image, category, box, crowd)."""
        self.numbers = [row[0] for row in rows]
        self.image = np.array([row[1] for row in rows], np.int64)
        self.category = np.array([row[2] for row in rows], np.int64)
        self.boxes = np.array([row[3] for row in rows], np.float64).reshape(-1, 4)
        self.crowd = np.array([row[4] for row in rows], bool)


def read_source(name: str, role: str, image_root: str, read: Reader, found: Findings) -> Source:
    """Read one data set of the config; its faults are added to `found`."""
    path, root = Path(name), image_root
    if name in COCO_2017:
        path, root = (data_root() / part for part in COCO_2017[name])
    source = Source(name, role, str(path))
    there = Path(split_of(name)[0])
    json_file = path if path.is_file() and not is_yolo_file(path) else _json_of(there, name) if there.is_dir() else None
    if path.is_dir() and role == UNLABELLED:
        _read_folder(source, path, found)
    elif json_file:
        source.file = str(json_file)
        _read_json(source, json_file, root, found)
    else:
        with _warnings() as told:
            try:
                _take(source, read(name, image_root, role != UNLABELLED))
            except DataError as error:
                source.structured = False
                code = "refused" if name in known_names() or there.exists() else "source-missing"
                found.add(code, name, KEYS[role], str(error).removeprefix(f"{name}: "))
        for text in told:
            found.add("told", name, KEYS[role], text)
    return source


def _json_of(folder: Path, name: str) -> Path | None:
    """The COCO json of a folder of annotations; None where it is another format or none."""
    try:
        layout = find_layout(folder, split_of(name)[1])
    except DataError:  # the reader says what is wrong
        return None
    return layout.path if layout.kind == "COCO" else None


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """What a reader warns of: boxes that it drops, values that it converts."""
    told: list[str] = []
    logger, handler = logging.getLogger("sed"), logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    levels = {one: one.level for one in (logger, logging.getLogger("sed.data"))}
    logger.addHandler(handler)
    for one in levels:
        one.setLevel(logging.WARNING)
    try:
        yield told
    finally:
        logger.removeHandler(handler)
        for one, level in levels.items():
            one.setLevel(level)


def image_item(record: Record) -> str:
    """The name of an image in findings; the id of an image of a folder is its file name."""
    number, name = record["image_id"], record["name"]
    return f"image {number}" if number == name else f"image {number} ({name})"


def _take(source: Source, dataset: Dataset) -> None:
    """Fill `source` with records that another reader has checked."""
    source.file, source.classes = dataset.json_file or dataset.name, dataset.classes
    rows = []
    for position, record in enumerate(dataset.records):
        kept = {key: record[key] for key in ("file_name", "image_id", "height", "width")}
        source.images.append({**kept, "name": Path(record["file_name"]).name})
        for number, a in enumerate(record.get("annotations", ())):
            rows.append((f"{number + 1} of its image", position, a["category_id"], a["bbox"], bool(a["iscrowd"])))
    source.set_boxes(rows)


def _read_folder(source: Source, folder: Path, found: Findings) -> None:
    images, left_out = look_through(folder)
    for reason, names in left_out.items():
        for name in names if reason != HIDDEN else ():
            suffix = Path(name).suffix.lower()
            code = "ignored-images" if reason != OTHER or suffix in _OTHER_IMAGES else "ignored-files"
            text = f"{suffix or 'no ending'}; read are {', '.join(IMAGE_SUFFIXES)}" if reason == OTHER else reason
            found.add(code, source.file, name, text)
    if not images:
        count = sum(map(len, left_out.values()))
        text = f"none of its {count} files ends in {', '.join(IMAGE_SUFFIXES)} (looked at any depth)"
        found.add("folder-empty", source.file, KEYS[source.role], text)
        source.structured = False
    for path in images:
        name = path.relative_to(folder).as_posix()
        source.images.append({"file_name": str(path), "image_id": name, "name": name, "height": 0, "width": 0})


def _read_json(source: Source, path: Path, image_root: str | Path, found: Findings) -> None:
    lost: dict[str, set[Any]] = {"images": set(), "categories": set(), "annotations": set()}  # ids of faulty items

    def note(fault: Fault) -> None:
        number = fault.row.get("id") if isinstance(fault.row, dict) else None
        if isinstance(number, (int, str)):
            lost[fault.kind].add(number)
        found.add(_CODES.get(fault.field, "item-fields"), source.file, fault.item, fault.text)

    try:
        content = read_json(path, source.role != UNLABELLED, polygons=False, note=note)
    except DataError as error:
        text, source.structured = str(error).removeprefix(f"{path}: "), False
        if text.startswith("not COCO"):
            found.add("json-structure", source.file, "top level", text)
        else:
            line = re.search(r"line \d+", text)
            found.add("json-broken", source.file, line[0] if line else "the file", text)
        return
    categories, source.classes = _categories(source, content["categories"], found)
    places = _images(source, path, image_root, content["images"], found)
    if not source.images:
        found.add("no-images", source.file, "images", "the list holds no image that can be used")
    if source.role == UNLABELLED:
        if content.get("annotations"):
            number = len(content["annotations"])
            found.add("unlabelled-annotated", source.file, "annotations", f"{number} annotations are not read")
        return
    whole = [
        a
        for a in content["annotations"]
        if a["image_id"] not in lost["images"] - places.keys()
        and a["category_id"] not in lost["categories"] - categories.keys()
    ]
    _annotations(source, whole, places, categories, found)


def _categories(source: Source, entries: list, found: Findings) -> tuple[dict[Any, int], tuple[str, ...]]:
    """Category id -> class 0..K-1, and the names."""
    ids: dict[Any, str] = {}
    names: dict[str, Any] = {}
    for entry in entries:
        number, name = entry["id"], entry["name"]
        plain = " ".join(name.lower().replace("_", " ").replace("-", " ").split())
        if number in ids:
            text = f"{ids[number]!r} and {name!r} have this id"
            found.add("category-id-twice", source.file, f"category {number}", text)
            continue
        ids[number] = name
        if plain in names:
            other = names[plain]
            code = "category-name-twice" if ids[other] == name else "category-name-similar"
            found.add(code, source.file, f"category {number} ({name})", f"category {other} is {ids[other]!r}")
        names.setdefault(plain, number)
    order = sorted(ids)
    return {number: k for k, number in enumerate(order)}, tuple(ids[number] for number in order)


def _images(source: Source, path: Path, image_root: str | Path, entries: list, found: Findings) -> dict[Any, int]:
    """Image id -> position in `source.images`."""
    places: dict[Any, int] = {}
    files: dict[str, Any] = {}
    for entry in entries:
        number, name = entry["id"], entry["file_name"]
        item = f"image {number} ({name})"
        if number in places:
            other = source.images[places[number]]["name"]
            found.add("image-id-twice", source.file, item, f"{other} has this id, too")
            continue
        if name in files:
            found.add("file-twice", source.file, item, f"image {files[name]} is the same file")
        files.setdefault(name, number)
        sides = (entry["height"], entry["width"])
        if None in sides:
            found.add("image-no-size", source.file, item, f"height, width are {sides}")
            sides = (0, 0)
        places[number] = len(source.images)
        height, width = (int(side) for side in sides)
        source.images.append({"file_name": name, "image_id": number, "name": name, "height": height, "width": width})
    files, looked, _ = locate_images(path, image_root, [record["file_name"] for record in source.images])
    for record, file in zip(source.images, files, strict=True):
        name = record["name"]
        record["file_name"] = file
        if not file:
            text = f"no such file; {looked_for(name, looked)}"
            found.add("image-missing", source.file, f"image {record['image_id']} ({name})", text)
    return places


def _annotations(source: Source, entries: list, places: dict, categories: dict, found: Findings) -> None:
    rows = []
    seen = set()
    for entry in entries:
        number, image, category, box = entry["id"], entry["image_id"], entry["category_id"], entry["bbox"]
        name = source.images[places[image]]["name"] if image in places else "not listed"
        item = f"annotation {number} (image {image}, {name})"
        if number in seen:
            found.add("annotation-id-twice", source.file, item, "another annotation has this id")
        seen.add(number)
        if image not in places:
            found.add("image-unknown", source.file, item, f"no image has the id {image!r}")
        if category not in categories:
            text = f"unknown category id {category!r}; known are {sorted(categories)}"
            found.add("category-unknown", source.file, item, text)
        if not is_box(box) and not _holds_nan(box):
            found.add("box-form", source.file, item, f"bbox is {shown(box)}")
        elif image in places and category in categories:
            area = entry.get("area")
            if _is_number(area) and box[2] > 0 and box[3] > 0 and area > 1.05 * box[2] * box[3] + 1:
                text = f"area {area:g}, but the box has {box[2] * box[3]:g} pixels"
                found.add("area-wrong", source.file, item, text)
            rows.append((number, places[image], categories[category], box, entry.get("iscrowd") == 1))
    source.set_boxes(rows)


def _is_number(value: object) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return whole or isinstance(value, float)


def _holds_nan(box: object) -> bool:
    """Whether it is four numbers, of which one is not finite."""
    numbers = isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))
    return numbers and not all(map(math.isfinite, box))
