"""One's own images as three data sets: labelled, to evaluate on, unlabelled. Each is a COCO json with absolute paths.

    <folder>/train.json    labelled images
    <folder>/val.json      labelled images to evaluate on: those that are named, else a seeded fifth
    <folder>/unlabeled.json    images without annotations, none of which is in the other two

What formats are read: `sed.data.layouts` and `sed.data.coco`; frames of videos: `sed.data.video`.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sed.data.catalog import load_dataset
from sed.data.coco import load_coco
from sed.data.errors import DataError
from sed.data.files import new_folder, save_text
from sed.data.folders import IMAGE_SUFFIXES, list_images
from sed.data.images import check_file
from sed.data.layouts import is_yolo_file, split_of
from sed.data.records import Dataset, Record, image_record, reorder, without_labeled
from sed.data.splits import file_hash
from sed.data.video import SUFFIXES as VIDEO_SUFFIXES
from sed.data.video import keep_frames

TRAIN, VAL, UNLABELED, FRAMES = "train.json", "val.json", "unlabeled.json", "frames"
CLASSES = "classes.json"  # [{"id", "name"}], COCO's categories: what predictions are called
HELD_OUT = 0.2  # share of the labelled images that is evaluated on where nothing else is
LEAST = 5  # labelled images: fewer cannot be divided
SEED = 0
# A split that is not there, in the words of `sed.data.layouts` and `sed.data.yolo`
NO_SPLIT = ("no annotations of the val split", "it has no val images", "which is not there")
Tell = Callable[[str], None]


def make_sets(data: str, val: str, unlabeled: Sequence[str], folder: Path, tell: Tell, image_root: str = "") -> None:
    """Write the jsons into `folder`, which appears whole; frames of videos lie beside it, in `frames`.

    Args:
        data: labelled images: a json, or a folder or data.yaml in a format of `sed.data.layouts`.
        val: the same for those to evaluate on; "": the validation split of `data`, else a fifth of its images.
        unlabeled: folders, videos, jsons, lists of paths (.txt) and single images; may be empty.
        folder: must not exist.
        tell: is given a line for the user.
        image_root: of the jsons' images, see `sed.data.locate`.

    Raises:
        DataError: for what cannot be read or used.
    """
    train = load_dataset(data, image_root)
    tell(f"labelled: {data}, {_counts(train)}; classes: {', '.join(train.classes)}")
    val = val or _own_val(data, train, tell)
    if val:
        tested = reorder(load_dataset(val, image_root), train.classes, train.name, subset=True)
        tested = replace(tested, category_ids=train.category_ids)
        tell(f"to evaluate on: {val}, {_counts(tested)}")
        train = _without_tested(train, tested, tell)
    else:
        train, tested = hold_out(train)
        tell(f"to evaluate on: a fifth of the labelled images, {_counts(tested)}; --val names other ones")
    _tell_unseen(train, tested, tell)
    extra = list(_unlabeled(unlabeled, folder.parent / FRAMES, tell))
    if unlabeled:
        shown = [r for r in train.records if any(not a["iscrowd"] for a in r["annotations"])]
        if len(shown) < len(train):
            tell(f"{len(train) - len(shown)} labelled images have no box: they are not learned from as labelled ones")
        labeled = [*shown, *tested.records]
        extra, found = without_copies(without_labeled(extra, labeled), labeled, tell), len(extra)
        if not extra:
            why = f"each of its {found} images is a labelled one" if found else "none of its images can be read"
            raise DataError(f"--unlabeled {' '.join(unlabeled)}: {why}; name others")
        tell(f"unlabelled: {len(extra)} images")
    work = new_folder(folder)
    for name, part in ((TRAIN, train), (VAL, tested), (UNLABELED, Dataset("", extra))):
        if part.records:
            save_text(json.dumps(as_coco(part)), work / name)
    save_text(json.dumps(as_coco(replace(train, records=[]))["categories"]), work / CLASSES)
    work.rename(folder)


def hold_out(dataset: Dataset, same: Callable[[str], str] = file_hash) -> tuple[Dataset, Dataset]:
    """A seeded fifth of the images with boxes is taken out, but no class loses its last image but one.

    Args:
        dataset: labelled images.
        same: file -> what is equal of equal images, which stay together.

    Raises:
        DataError: where there are too few.
    """
    records = [r for r in dataset.records if r["annotations"]]
    if len(records) < LEAST:
        raise DataError(
            f"{dataset.name}: {len(records)} images with boxes; expected {LEAST} or more, as a fifth is evaluated on; "
            "label some more, or name images to evaluate on by --val"
        )
    left = Counter(c for record in records for c in _classes_of(record))
    alike: dict[str, list[int]] = {}
    for i in sorted(range(len(records)), key=lambda i: str(records[i]["file_name"])):
        alike.setdefault(same(records[i]["file_name"]), []).append(i)
    groups = list(alike.values())
    random.Random(SEED).shuffle(groups)
    wanted, chosen = max(1, round(HELD_OUT * len(records))), set()
    for least in (2, 1):  # images of each class that stay
        for group in groups:
            here = Counter(c for i in group for c in _classes_of(records[i]))
            fits = len(chosen) + len(group) <= wanted and chosen.isdisjoint(group)
            if fits and all(left[c] - count >= least for c, count in here.items()):
                chosen.update(group)
                left.subtract(here)
    if not chosen:
        raise DataError(f"{dataset.name}: each image has the only object of a class; label more of them")
    tested = {id(records[i]) for i in chosen}
    rest = [r for r in dataset.records if id(r) not in tested]
    return replace(dataset, records=rest), replace(dataset, records=[records[i] for i in sorted(chosen)])


def as_coco(dataset: Dataset) -> dict[str, Any]:
    """The content of a COCO json with absolute paths; images are numbered from 1."""
    images, annotations = [], []
    ids = dataset.category_ids or tuple(range(1, len(dataset.classes) + 1))
    for number, record in enumerate(dataset.records, 1):
        path = os.path.abspath(record["file_name"])
        images.append({"id": number, "file_name": path, "height": record["height"], "width": record["width"]})
        for a in record.get("annotations", ()):
            row = {"id": len(annotations) + 1, "image_id": number, "category_id": ids[a["category_id"]]}
            annotations.append({**row, "bbox": a["bbox"], "area": a["area"], "iscrowd": a["iscrowd"]})
    categories = [{"id": number, "name": name} for number, name in zip(ids, dataset.classes, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def without_copies(records: Sequence[Record], labeled: Sequence[Record], tell: Tell) -> list[Record]:
    """The records whose file is no copy, byte for byte, of a labelled one."""
    files = [record["file_name"] for record in labeled]
    sizes = {os.path.getsize(path) for path in files}
    same = [r for r in records if os.path.getsize(r["file_name"]) in sizes]
    if not same:
        return list(records)
    hashes = {file_hash(path) for path in files}
    copies = {id(r) for r in same if file_hash(r["file_name"]) in hashes}
    if copies:
        tell(f"{len(copies)} unlabelled images are copies of labelled ones and were left out")
    return [r for r in records if id(r) not in copies]


def _own_val(data: str, train: Dataset, tell: Tell) -> str:
    """The validation split that the labelled images' own folder or data.yaml has; "" for none."""
    place, split = split_of(data)
    if split not in ("", "train") or not (Path(place).is_dir() or is_yolo_file(Path(place))):
        return ""
    try:
        found = load_dataset(f"{place}:val", labeled=False)
    except DataError as error:
        if not any(words in str(error) for words in NO_SPLIT):
            raise DataError(f"the validation split: {error}; or name images to evaluate on by --val") from None
        tell("no validation split in it")
        return ""
    if not without_labeled(train.records, found.records, "to evaluate on"):
        tell("its validation split holds the same images: it is none")
        return ""
    return f"{place}:val"


def _without_tested(train: Dataset, tested: Dataset, tell: Tell) -> Dataset:
    """The labelled images that are not evaluated on."""
    kept = without_labeled(train.records, tested.records, "to evaluate on")
    if not kept:
        raise DataError(f"{train.name}: each labelled image is one to evaluate on; name other ones by --val")
    if len(kept) < len(train.records):
        tell(f"{len(train.records) - len(kept)} of the labelled images are evaluated on and not trained on")
    return replace(train, records=kept)


def _tell_unseen(train: Dataset, tested: Dataset, tell: Tell) -> None:
    there = [{c for r in part.records for c in _classes_of(r)} for part in (train, tested)]
    if only := sorted(there[1] - there[0]):
        names = ", ".join(train.classes[c] for c in only)
        tell(f"warning: {names}: only in images to evaluate on, none to learn from")
    if only := sorted(there[0] - there[1]):
        names = ", ".join(train.classes[c] for c in only)
        tell(f"warning: {names}: no object among the images to evaluate on, so the report says nothing of it")


def _classes_of(record: Record) -> set[int]:
    return {a["category_id"] for a in record["annotations"]}


def _counts(dataset: Dataset) -> str:
    return f"{len(dataset)} images, {sum(len(r['annotations']) for r in dataset.records)} boxes"


def _unlabeled(sources: Sequence[str], frames: Path, tell: Tell) -> Iterator[Record]:
    """The records of unlabelled images, each file once."""
    seen: set[str] = set()
    bad: list[str] = []
    for source in sources:
        path = Path(source)
        if not path.exists() and not split_of(source)[1]:
            raise DataError(f"--unlabeled {source}: no such file or folder; name photos, a video or a json")
        suffix = path.suffix.lower()
        if path.is_dir():
            found = list(_readable(list_images(path), bad))
        elif split_of(source)[1] or is_yolo_file(path):
            found = list(load_dataset(source, labeled=False).records)
        elif suffix == ".json":
            found = list(load_coco(path, labeled=False).records)
        elif suffix == ".txt":
            found = list(_readable(_listed(path), bad))
        elif suffix in VIDEO_SUFFIXES:
            found = list(_readable(keep_frames(path, frames, tell), bad))
        elif suffix in IMAGE_SUFFIXES:
            found = list(_readable([path], bad))
        else:
            raise DataError(
                f"--unlabeled {source}: expected a folder, a COCO json, a list of paths (.txt), an image or a video "
                f"({', '.join(VIDEO_SUFFIXES)})"
            )
        for record in found:
            if (real := os.path.realpath(record["file_name"])) not in seen:
                seen.add(real)
                yield record
    if bad:
        tell(f"warning: {len(bad)} unlabelled images cannot be read and were left out, such as {bad[0]}")


def _readable(paths: Iterable[Path], bad: list[str]) -> Iterator[Record]:
    """The records of images whose header and end are whole; the errors of the others go to `bad`."""
    for path in paths:
        try:
            check_file(path)
            yield image_record(path, str(path))
        except DataError as error:
            bad.append(str(error))


def _listed(path: Path) -> list[Path]:
    """The paths in a list, one a line, relative to the list's folder or to the current one."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    found = []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        beside = path.parent / line
        if not beside.is_file() and not Path(line).is_file():
            raise DataError(f"{path}: line {number}: no such file: {line}; paths are relative to the list's folder")
        found.append(beside if beside.is_file() else Path(line))
    if not found:
        raise DataError(f"{path}: an empty list; expected the path of an image on each line")
    return found
