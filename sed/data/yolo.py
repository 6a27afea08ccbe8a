"""Reads YOLO data sets: a data.yaml, or folders `images` and `labels` beside a classes.txt.

    data.yaml                 path, train, val, test; names: a list, or number -> name
    images/train/a.jpg        its labels: labels/train/a.txt, the last `images` of the path replaced; or beside it
    labels/train/a.txt        a line an object: class cx cy w h, as shares of the image's sides; or class x1 y1 x2 y2
                              and so on, a polygon, whose box is taken

An image without a label file is background. Image ids are the paths below the set's folder.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from sed.data.coco import add_annotations
from sed.data.coco_types import shown
from sed.data.errors import DataError
from sed.data.files import read_file
from sed.data.folders import IMAGE_SUFFIXES, list_images
from sed.data.records import Dataset, Record, image_record

SPLITS = ("train", "val", "test")
_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_CLASSES = ("classes.txt", "obj.names", "labels/classes.txt")
_OVER = 0.01  # how far a share may be outside [0, 1] by rounding
log = logging.getLogger(__name__)


def find_yolo(folder: Path) -> Path | None:
    """The data.yaml or the classes.txt by which a folder is a YOLO set; None: it is none."""
    for name in (*_NAMES, *_CLASSES):
        if (folder / name).is_file() and (name in _NAMES or (folder / "images").is_dir()):
            return folder / name
    return None


def load_yolo(source: str | Path, split: str = "train", labeled: bool = True) -> Dataset:
    """Read one split.

    Args:
        source: a data.yaml, or a folder with one, or with `images`, `labels` and a classes.txt.
        split: one of `SPLITS`; without a data.yaml it is in `images/<split>`, "train" where there is none also all of
            `images`.
        labeled: False opens no label file.

    Returns:
        Records in the order of their paths; classes in the order of their numbers.

    Raises:
        DataError: for a description that cannot be used, a split that is not there, and a line of a label file that is
            none; it names file and line.
    """
    source = Path(source)
    description = find_yolo(source) if source.is_dir() else source
    if description is None:
        raise DataError(
            f"{source}: no YOLO set; expected {' or '.join(_NAMES[:1])}, or images/, labels/ and classes.txt"
        )
    if description.suffix == ".txt" or description.name == "obj.names":
        classes, top = _class_lines(description), source
        own = top / "images" / split
        paths = list_images(own if own.is_dir() or split != "train" else top / "images")
    else:
        content = _read(description)
        classes = _class_names(description, content.get("names"))
        top, paths = _images_of(description, content, split)
    records: list[Record] = [image_record(path, _id(path, top)) for path in paths]
    name = f"{source}" if split == "train" else f"{source}:{split}"
    if labeled:
        _add_labels(description, records, classes)
    return Dataset(name, records, classes, tuple(range(len(classes))))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_file(path).decode("utf-8-sig"))
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{path}: not a YAML file ({' '.join(str(error).split()) or 'nested too deep'})") from None
    if not isinstance(content, dict) or "names" not in content:
        raise DataError(f"{path}: not the data.yaml of a YOLO set: expected the keys names and train")
    if "kpt_shape" in content:
        raise DataError(f"{path}: it is of keypoints (kpt_shape); export boxes, lines of class cx cy w h")
    return content


def _class_lines(path: Path) -> tuple[str, ...]:
    try:
        names = [line.strip() for line in read_file(path).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    while names and not names[-1]:
        names.pop()
    return _class_names(path, names)


def _class_names(path: Path, names: Any) -> tuple[str, ...]:
    """The names by number, of a list or a mapping."""
    if isinstance(names, dict):
        if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
            raise DataError(
                f"{path}: names has the numbers {list(names)[:20]}; expected 0 to {len(names) - 1}, each once"
            )
        names = [value for _, value in sorted(names.items(), key=lambda item: int(item[0]))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: names is {shown(names)}; expected the classes, a list or number: name")
    for number, name in enumerate(names):
        if isinstance(name, (dict, list, bool, type(None))) or not str(name).strip():
            raise DataError(f"{path}: the name of class {number} is {shown(name)}; expected a text")
    texts = tuple(str(name).strip() for name in names)
    if len(set(texts)) < len(texts):
        twice = next(name for name in texts if texts.count(name) > 1)
        raise DataError(f"{path}: the class {twice!r} occurs twice in names; each needs a name of its own")
    return texts


def _images_of(path: Path, content: dict[str, Any], split: str) -> tuple[Path, list[Path]]:
    """The set's folder and the images of a split."""
    wanted = content.get(split) or (content.get("valid") if split == "val" else None)
    if not wanted:
        there = [name for name in SPLITS if content.get(name)]
        raise DataError(
            f"{path}: it has no {split} images; it names {', '.join(there) or 'none of train, val and test'}"
        )
    places = wanted if isinstance(wanted, list) else [wanted]
    if not all(isinstance(place, str) and place for place in places):
        raise DataError(
            f"{path}: {split} is {shown(wanted)}; expected a folder, a list of images in a .txt, or several"
        )
    root = content.get("path")
    base = path.parent if not isinstance(root, str) else path.parent / os.path.expanduser(root)
    found: list[Path] = []
    for place in places:
        where = _locate(path, base, place, split)
        found += list_images(where) if where.is_dir() else _listed(where)
    if len(set(found)) < len(found):
        found = list(dict.fromkeys(found))
    return path.parent, sorted(found)


def _locate(path: Path, base: Path, place: str, split: str) -> Path:
    """A folder or list of a data.yaml; where it was written on another machine, the longest end of it that is here.

    Roboflow writes `../train/images` and means `train/images`.
    """
    tried = [base / place, path.parent / place]
    parts = [part for part in Path(place.replace("\\", "/")).parts if part not in ("..", ".", "/")]
    ends = [path.parent.joinpath(*parts[n:]) for n in range(len(parts))]
    for where in tried:
        if where.exists():
            return where
    for where in ends:
        if where.exists():
            log.warning("%s: %s is %s, which is not there; took %s", path, split, place, where)
            return where
    looked = ", ".join(dict.fromkeys(map(str, tried + ends)))
    raise DataError(f"{path}: {split} is {place}, which is not there; looked for {looked}: mend path or {split}")


def _listed(path: Path) -> list[Path]:
    """The images that a text file lists, relative to its folder or to where the command runs."""
    try:
        lines = [line.strip() for line in read_file(path).decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no list of images ({error})") from None
    images = [next((p for p in (path.parent / line, Path(line)) if p.is_file()), path.parent / line) for line in lines]
    for number, image in enumerate(images, 1):
        if image.suffix.lower() not in IMAGE_SUFFIXES or not image.is_file():
            raise DataError(
                f"{path}: line {number} is {lines[number - 1]!r}; expected an image file, looked for {image}"
            )
    if not images:
        raise DataError(f"{path}: it lists no image")
    return images


def _id(path: Path, top: Path) -> str:
    return os.path.relpath(path, top).replace(os.sep, "/")


def label_file(image: Path) -> Path:
    """Where the labels of an image are: `labels` for the last `images` of its path, else beside it."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            return Path(*parts).with_suffix(".txt")
    return image.with_suffix(".txt")


def _add_labels(description: Path, records: list[Record], classes: Sequence[str]) -> None:
    objects: dict[Any, list[dict]] = {}
    without, present = 0, set()
    for record in records:
        path = label_file(Path(record["file_name"]))
        present.add(path)
        without += not path.is_file()
        labelled = path.is_file()
        objects[record["image_id"]] = list(_objects(path, record, len(classes), description)) if labelled else []
    if without == len(records):
        example = label_file(Path(records[0]["file_name"]))
        raise DataError(
            f"{description}: none of its {len(records)} images has a label file; looked for {example} and so on"
        )
    alone = sorted({p for folder in {p.parent for p in present} for p in folder.glob("*.txt")} - present)
    pictured = {label_file(Path(r["file_name"])).parent: Path(r["file_name"]).parent for r in records}
    alone = [
        p
        for p in alone
        if p.name != "classes.txt"
        and not any((pictured[p.parent] / p.stem).with_name(p.stem + end).is_file() for end in IMAGE_SUFFIXES)
    ]
    parts = [f"{without} images have no label file and are background"] if without else []
    if alone:
        parts.append(f"{len(alone)} label files have no image and were left out ({alone[0].name})")
    if parts:
        log.warning("%s: %s", description, "; ".join(parts))
    add_annotations(description, records, objects, {n: n for n in range(len(classes))})


def _objects(path: Path, record: Record, classes: int, description: Path) -> Iterator[dict[str, Any]]:
    """The objects of a label file as annotations [x, y, w, h] in pixels."""
    try:
        lines = read_file(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no label file ({error})") from None
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        where = f"{path}: line {number} ({shown(line)})"
        try:
            values = [float(field) for field in fields]
        except ValueError:
            raise DataError(f"{where}: expected numbers: class cx cy w h") from None
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            raise DataError(f"{where}: it has {len(values)} numbers; expected class cx cy w h, or class and a polygon")
        if not (math.isfinite(values[0]) and values[0] == int(values[0]) and 0 <= values[0] < classes):
            raise DataError(f"{where}: the class is {fields[0]}; {description.name} has the numbers 0 to {classes - 1}")
        shares = values[1:]
        if not all(math.isfinite(v) for v in shares):
            raise DataError(f"{where}: expected finite numbers")
        if max(shares) > 1 + _OVER or min(shares) < -_OVER:
            raise DataError(
                f"{where}: expected shares of the image's sides, from 0 to 1; are they pixels? The image is "
                f"{record['width']} x {record['height']}"
            )
        width, height = record["width"], record["height"]
        if len(shares) == 4:
            cx, cy, w, h = shares
            box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
        else:
            xs, ys = shares[::2], shares[1::2]
            box = [min(xs) * width, min(ys) * height, (max(xs) - min(xs)) * width, (max(ys) - min(ys)) * height]
        yield {"id": f"{path.name}, line {number}", "bbox": box, "category_id": int(values[0])}
