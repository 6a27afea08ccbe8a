"""Finds out in which format the annotations of a folder are, as the usual tools write them.

    COCO    _annotations.coco.json in train/, valid/, test/ (Roboflow); annotations/*.json (COCO, CVAT); labels.json
            beside data/ (FiftyOne); result.json beside images/ (Label Studio); any json of the folder itself
    YOLO    data.yaml, or images/, labels/ and classes.txt (`sed.data.yolo`)
    VOC     Annotations/*.xml beside JPEGImages/; xml files beside their images, in train/ and so on or the folder

A source of DATASETS.* may end in ":train", ":val" or ":test"; without it a folder's training split is meant.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from sed.data.errors import DataError
from sed.data.yolo import SPLITS, find_yolo

_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_EXPECTED = "a COCO json, YOLO's data.yaml, or Pascal VOC's Annotations/*.xml"


class Layout(NamedTuple):
    """Where annotations are.

    kind: "COCO", "YOLO" or "VOC".
    path: the json; the data.yaml or the folder of a YOLO set; the folder of the VOC set.
    split: for YOLO; "" where the path has one split.
    """

    kind: str
    path: Path
    split: str = ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.path}{self.split and f', {self.split}'})"


def split_of(source: str) -> tuple[str, str]:
    """A source of DATASETS.* without its split, and the split, "" where it names none."""
    path, _, split = source.rpartition(":")
    return (path, split) if path and split in SPLITS and not Path(source).exists() else (source, "")


def is_yolo_file(path: Path) -> bool:
    """Whether a path is that of a YOLO set's data.yaml."""
    return path.suffix in (".yaml", ".yml") and path.is_file()


def find_layout(folder: str | Path, split: str = "") -> Layout:
    """The annotations of a folder's split.

    Args:
        folder: exists.
        split: one of `SPLITS`; "": the training split, or the only one.

    Raises:
        DataError: where nothing, or more than one thing, fits.
    """
    top = Path(folder)
    wanted = split or "train"
    found = [*_yolo(top, wanted), *_coco(top, wanted, bool(split)), *_voc(top, wanted, bool(split))]
    if not found:
        of = f" of the {split} split" if split else ""
        raise DataError(f"{folder}: no annotations{of} in this folder; looked for {_EXPECTED}")
    if len(found) > 1:
        told = " and ".join(map(str, found))
        raise DataError(f"{folder}: it holds {told}; name the file that is meant, or take the other away")
    return found[0]


def _yolo(top: Path, split: str) -> list[Layout]:
    description = find_yolo(top)
    if description is None:
        return []
    if description.suffix in (".yaml", ".yml"):
        return [Layout("YOLO", description, split)]
    inside = split == "train" or (top / "images" / split).is_dir()
    return [Layout("YOLO", top, split)] if inside else []


def _coco(top: Path, split: str, must: bool) -> list[Layout]:
    """Jsons of the split's own folder; else those of the folder or of annotations/ whose names say the split.

    must: whether a json whose name says no split is out.
    """
    for name in _FOLDERS[split]:
        if jsons := _jsons(top / name):
            return [Layout("COCO", path) for path in jsons]
    jsons = [*_jsons(top), *_jsons(top / "annotations")]
    named = [path for path in jsons if split in _splits_named(path)]
    if not named and not must:
        named = [path for path in jsons if not _splits_named(path)]
    return [Layout("COCO", path) for path in named]


def _jsons(folder: Path) -> list[Path]:
    """The jsons of a folder that may hold boxes: COCO ships captions and keypoints of the same images beside them."""
    found = sorted(p for p in folder.glob("*.json") if p.is_file() and not p.name.startswith("."))
    known = [p for p in found if re.match(r"(_annotations\.coco|labels|instances.*|result)$", p.stem)]
    return known or found


def _splits_named(path: Path) -> set[str]:
    words = {re.sub(r"[0-9]+$", "", word) for word in re.split(r"[^a-z0-9]+", path.stem.lower())}
    return {split for split, names in _FOLDERS.items() if words & set(names)}


def _voc(top: Path, split: str, must: bool) -> list[Layout]:
    lists = top / "ImageSets" / "Main"
    if (top / "Annotations").is_dir() and any((top / "Annotations").glob("*.xml")):
        listed = [
            name
            for name in ((split, "trainval") if split == "train" else (split,))
            if (lists / f"{name}.txt").is_file()
        ]
        if listed:
            return [Layout("VOC", top, listed[0])]
        return [] if must else [Layout("VOC", top)]
    for name in _FOLDERS[split]:
        if any((top / name).glob("*.xml")):
            return [Layout("VOC", top / name)]
    return [] if must or not any(top.glob("*.xml")) else [Layout("VOC", top)]
