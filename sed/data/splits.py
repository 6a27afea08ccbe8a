"""Splits a data set into labelled and unlabelled images, and writes the manifest that records the split.

A split depends only on the image ids and the fold: images are ordered by a hash of (fold, id), and the first ones are
labelled. So it is drawn without replacement, is the same on every machine and with every version of numpy, does not
depend on the order of the json, and the 1 % of a fold is part of its 5 %, which is part of its 10 %.
Splits of other projects and of other protocols are in `sed.data.protocols`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sed import __version__
from sed.data.errors import DataError
from sed.data.files import save_text
from sed.data.records import Record, strip_annotations

VERSION = 1  # of the manifest's format; files of the same version may have further fields


def split(
    records: Sequence[Record], percent: float = 0.0, count: int = 0, fold: int = 0
) -> tuple[list[Record], list[Record]]:
    """Divide records into labelled ones, and unlabelled ones without their annotations.

    Args:
        records: all of them, labelled.
        percent: share of labelled images in (0, 100], rounded down (10 % of 118287 is 11828).
        count: the same as a number of images; exactly one of the two must be given.
        fold: which split.

    Returns:
        (labelled, unlabelled), each in the order of `records`; the second is empty at 100 %.

    Raises:
        DataError: if both or neither of percent and count are given, or no image or more than all would be labelled.
    """
    if (percent > 0) == (count > 0):
        raise DataError(
            "split: give either SEMI.LABELED_PERCENT or SEMI.LABELED_COUNT (or DATASETS.UNLABELED instead); "
            f"got {percent} and {count}"
        )
    wanted = count or math.floor(len(records) * percent / 100 + 1e-9)
    if not 1 <= wanted <= len(records):
        raise DataError(
            f"split: {percent} % / {count} images of {len(records)} would label {wanted} images; "
            f"expected 1 to {len(records)}"
        )
    chosen = set(hash_order((record["image_id"] for record in records), fold)[:wanted])
    if len(chosen) < wanted:
        raise DataError("split: image ids are not unique")
    labeled = [record for record in records if record["image_id"] in chosen]
    return labeled, strip_annotations([record for record in records if record["image_id"] not in chosen])


def hash_order(ids: Iterable[int | str], fold: int) -> list[int | str]:
    """The image ids in the order in which a fold labels them: by the SHA-256 of "fold:id"."""
    return sorted(ids, key=lambda image_id: hashlib.sha256(f"{fold}:{image_id}".encode()).digest())


def id_hash(records: Sequence[Record]) -> str:
    """SHA-256 of the sorted image ids: equal for equal sets of images."""
    return hashlib.sha256("\n".join(sorted(str(r["image_id"]) for r in records)).encode()).hexdigest()


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes; DataError if there is no such file."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    return digest.hexdigest()


def write_manifest(
    path: str | Path,
    labeled: Sequence[Record],
    unlabeled: Sequence[Record],
    classes: Sequence[str],
    *,
    source: str,
    fold: int = 0,
    percent: float = 0.0,
    count: int = 0,
    convention: str = "",
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write a manifest of which images are labelled, so that a run can be repeated and compared (atomic).

    Args:
        path: the file.
        labeled: records with annotations whose category_id is an index into `classes`.
        unlabeled: records; only their ids are used.
        classes: names.
        source: the data set that was divided.
        fold: which split; in other conventions their seed.
        percent: the share that was requested; 0: none was.
        count: the same as a number of images.
        convention: how the images were chosen; "": "sed" for a percent or count, else "given".
        details: further fields, see `sed.data.protocols`.
    """
    boxes: Counter[int] = Counter()
    images: Counter[int] = Counter()
    for record in labeled:
        found = [a["category_id"] for a in record["annotations"] if not a["iscrowd"]]
        boxes.update(found)
        images.update(set(found))
    content = {
        "version": VERSION,
        "tool_version": __version__,
        "convention": convention or ("sed" if percent or count else "given"),
        "source": source,
        "fold": fold,
        "percent": percent,
        "count": count,
        "labeled": len(labeled),
        "unlabeled": len(unlabeled),
        "labeled_sha256": id_hash(labeled),
        "unlabeled_sha256": id_hash(unlabeled),
        **(details or {}),
        "boxes_per_class": {name: boxes[index] for index, name in enumerate(classes)},
        "images_per_class": {name: images[index] for index, name in enumerate(classes)},
        "labeled_ids": [record["image_id"] for record in labeled],
    }
    save_text(json.dumps(content, indent=1), path)


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest's content.

    Raises:
        DataError: if it is missing or not a manifest.
    """
    try:
        content = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: no such split manifest") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not a split manifest ({error})") from None
    if not isinstance(content, dict) or content.get("version") != VERSION or "labeled_sha256" not in content:
        raise DataError(f"{path}: not a split manifest of version {VERSION}")
    return content


def check_manifest(path: str | Path, labeled: Sequence[Record], unlabeled: Sequence[Record] | None = None) -> None:
    """Raise DataError unless the images are those of the manifest."""
    content = read_manifest(path)
    for kind, records in (("labeled", labeled), ("unlabeled", unlabeled)):
        if records is not None and content[f"{kind}_sha256"] != id_hash(records):
            raise DataError(
                f"{path}: the {kind} images differ from those that this folder's run began with "
                f"({len(records)} now, {content[kind]} then); "
                "use the same data, split and fold, or another output folder"
            )
