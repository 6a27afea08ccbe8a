"""Records and data sets: the result of every reader of a format, and operations on them.

A record is Detectron2's dataset dict, image by image:

    {"file_name": path, "image_id": id, "height": H, "width": W,
     "annotations": [{"bbox": [x, y, w, h], "bbox_mode": 1, "category_id": 0..K-1, "iscrowd": 0 | 1,
                      "area": a}]}

in absolute pixels; annotations of Pascal VOC also have "difficult": 0 | 1. Records of unlabelled images have no key
"annotations": it is removed when they are read, so that no other code can use labels.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sed.data.errors import DataError
from sed.data.images import image_header

Record = dict[str, Any]
VALIDATION = "validation"
log = logging.getLogger(__name__)
XYWH_ABS = 1  # detectron2.structures.BoxMode.XYWH_ABS


@dataclass(frozen=True)
class Dataset:
    """Records, and the names of their classes.

    Attributes:
        name: as given in the config.
        records: dataset dicts, see the module's docstring.
        classes: K names; the index is the contiguous class. Empty for a folder of images.
        category_ids: K original category ids, in the same order.
        json_file: the COCO json that it was read from; "" if none.
    """

    name: str
    records: Sequence[Record]
    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    json_file: str = ""

    def __len__(self) -> int:
        return len(self.records)


def join(parts: Sequence[Dataset], labeled: bool = True) -> Dataset:
    """Several data sets as one; labelled ones must have the same classes, whose order is the first's.

    Where image ids of different sets collide, all ids become "<name>:<id>".

    Raises:
        DataError: if there is none, or the classes differ.
    """
    if not parts:
        raise DataError("no data set given: DATASETS.TRAIN, DATASETS.UNLABELED or DATASETS.TEST is empty")
    if len(parts) == 1:
        return parts[0]
    if labeled:
        parts = [reorder(part, parts[0].classes, parts[0].name) for part in parts]
    records = [record for part in parts for record in part.records]
    if len({record["image_id"] for record in records}) < len(records):
        records = [{**r, "image_id": f"{part.name}:{r['image_id']}"} for part in parts for r in part.records]
    return replace(parts[0], name="+".join(part.name for part in parts), records=records, json_file="")


def image_record(path: str | Path, image_id: int | str) -> Record:
    """The unlabelled record of one image file; its size is read from the header.

    Raises:
        DataError: for a file that is no readable image.
    """
    height, width = image_header(path).size
    return {"file_name": str(path), "image_id": image_id, "height": height, "width": width}


def strip_annotations(records: Sequence[Record]) -> list[Record]:
    """The same records without their annotations."""
    return [{key: value for key, value in record.items() if key != "annotations"} for record in records]


def without_empty(records: Sequence[Record], name: str = "labelled set") -> list[Record]:
    """The records that have at least one box that is no crowd.

    Raises:
        DataError: if none is left.
    """
    kept = [r for r in records if any(not a["iscrowd"] for a in r.get("annotations", ()))]
    if not kept:
        raise DataError(f"{name}: none of its {len(records)} images has a box; label some, or label more of them")
    return kept


def check_same_classes(train: Dataset, test: Dataset) -> None:
    """Raise DataError unless both sets have the same class names in the same order."""
    if train.classes == test.classes:
        return
    missing, extra = (
        sorted(set(train.classes) - set(test.classes)),
        sorted(set(test.classes) - set(train.classes)),
    )
    if missing or extra:
        detail = f"only in the first: {missing or 'none'}; only in the second: {extra or 'none'}"
    else:
        detail = f"the order differs: {list(train.classes)} against {list(test.classes)}"
    raise DataError(f"{train.name} and {test.name} must have the same categories ({detail})")


def reorder(dataset: Dataset, classes: Sequence[str], of: str, subset: bool = False) -> Dataset:
    """The same set with its classes in another order: categories are matched by name, never by number.

    Args:
        dataset: with annotations or without.
        classes: the names in the order that is wanted; empty: not known, nothing changes.
        of: whose order that is, for the message.
        subset: whether some of the names may be missing in the set, as in a test json that lists its own classes only;
            they get category ids that are not in use, and one line of the log.

    Raises:
        DataError: unless the set has exactly these names.
    """
    if not classes or tuple(classes) == dataset.classes:
        return dataset
    missing = sorted(set(classes) - set(dataset.classes))
    if set(dataset.classes) - set(classes) or (missing and not subset):
        raise DataError(
            f"{dataset.name} has the categories {list(dataset.classes)}, {of} has {list(classes)}: they are matched by "
            "name; rename, add or leave out those that differ"
        )
    place = {name: index for index, name in enumerate(classes)}
    moved = [place[name] for name in dataset.classes]  # old index -> new index
    records = [
        {**r, "annotations": [{**a, "category_id": moved[a["category_id"]]} for a in r["annotations"]]}
        if "annotations" in r
        else r
        for r in dataset.records
    ]
    numbers = dict(zip(dataset.classes, dataset.category_ids, strict=False))  # there may be none
    if numbers:
        numbers |= {name: max(numbers.values()) + 1 + place for place, name in enumerate(missing)}
    if missing:
        log.warning("%s lacks %d categories of %s (%s): they have no AP", dataset.name, len(missing), of, missing[0])
    ids = tuple(numbers[name] for name in classes if name in numbers)
    return replace(dataset, records=records, classes=tuple(classes), category_ids=ids)


def without_labeled(unlabeled: Sequence[Record], labeled: Sequence[Record], which: str = "labelled") -> list[Record]:
    """The unlabelled images whose file is none of the labelled ones; a line of the log counts the others.

    All photos in one folder, some of them labelled, is how most people keep them.
    """
    folders: dict[str, str] = {}
    taken = {_real_path(record["file_name"], folders) for record in labeled}
    kept = [record for record in unlabeled if _real_path(record["file_name"], folders) not in taken]
    if len(kept) < len(unlabeled):
        log.info("%d images are %s and were left out of the unlabelled ones", len(unlabeled) - len(kept), which)
    return kept


def check_disjoint(labeled: Sequence[Record], unlabeled: Sequence[Record], val: Sequence[Record]) -> None:
    """Raise DataError if an image to evaluate on is in another set, by path or by content.

    A labelled and an unlabelled image of equal content are a matter of a warning: no evaluation is better by it.
    Images are equal if their real path or the SHA-1 of their bytes is. For speed only files of equal length and sides
    are compared, first by 4 KiB from their middle.
    """
    files: dict[str, str] = {}  # real path -> set
    sides: dict[str, tuple[int, ...]] = {}  # in order of length: one of two jsons may go by the EXIF orientation
    folders: dict[str, str] = {}  # path -> real path
    for kind, records in (("labelled", labeled), ("unlabelled", unlabeled), (VALIDATION, val)):
        for record in records:
            path = _real_path(record["file_name"], folders)
            sides[path] = tuple(sorted((record.get("height", 0), record.get("width", 0))))
            if files.setdefault(path, kind) != kind:
                raise DataError(
                    f"{path} is both in the {files[path]} and in the {kind} set; take it out of one of them"
                )
    groups = [list(files)]
    for key in (lambda path: (os.path.getsize(path), sides[path]), _middle, _sha1):
        groups = [part for group in groups for part in _shared(group, key, files)]
    tested = [group for group in groups if any(files[path] == VALIDATION for path in group)]
    if groups:
        found = tested or groups
        first = found[0][0]
        others = [path for path in found[0] if files[path] != files[first]]
        second = max(others, key=lambda path: files[path] == VALIDATION)
        told = f"{first} ({files[first]}) and {second} ({files[second]}) are the same image, byte for byte "
        told += f"({len(found)} such in all)"
        if tested:
            raise DataError(f"{told}; take it out of one of the sets")
        log.warning("%s; the second is trained on without its labels, too", told)


def _real_path(path: str, folders: dict[str, str]) -> str:
    """`os.path.realpath`, faster for many files: the real paths of folders are kept in `folders`."""
    folder, name = os.path.split(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    path = os.path.join(folders[folder], name)
    return os.path.realpath(path) if os.path.islink(path) else path


def _shared(paths: Sequence[str], key: Callable[[str], object], files: dict[str, str]) -> list[list[str]]:
    """Groups of paths with an equal key that come from more than one set."""
    groups: dict[object, list[str]] = {}
    for path in paths:
        groups.setdefault(key(path), []).append(path)
    return [group for group in groups.values() if len({files[path] for path in group}) > 1]


def _middle(path: str) -> bytes:
    with open(path, "rb") as stream:
        stream.seek(os.path.getsize(path) // 2)
        return stream.read(4096)


def _sha1(path: str) -> str:
    return hashlib.sha1(Path(path).read_bytes(), usedforsecurity=False).hexdigest()
