"""Writes a split as files: labeled.json, unlabeled.json, for some protocols test.json, and their manifest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from sed.data.coco import read_json
from sed.data.errors import DataError
from sed.data.files import save_text
from sed.data.protocols import Choice, Content, image_ids
from sed.data.records import Record
from sed.data.splits import id_hash, read_manifest, write_manifest

FOLDERS = {  # of each part's images, where they differ, below the folder of the data set
    "coco_full": {"labeled": "train2017", "unlabeled": "unlabeled2017"},
    "coco_35k": {"labeled": "val2014", "unlabeled": "train2014", "test": "val2014"},
}


def read_content(path: str | Path, labeled: bool = True) -> Content:
    """A COCO json to divide, as it is; the annotations of an unlabelled one are dropped unread.

    Raises:
        DataError: if it is not COCO, lists no image or an image id twice, or an annotation has no image or category.
    """
    content = read_json(Path(path), labeled)
    if not labeled:
        content.pop("annotations", None)
    if not content["images"]:
        raise DataError(f"{path}: it lists no image")
    ids, categories = image_ids(content), {category["id"] for category in content["categories"]}
    if len(ids) < len(content["images"]):
        twice = Counter(image["id"] for image in content["images"]).most_common(1)[0][0]
        raise DataError(f"{path}: image id {twice!r} occurs twice; it must be unique")
    for a in content.get("annotations", ()):
        for kind, known in (("image", ids), ("category", categories)):
            if a[f"{kind}_id"] not in known:
                raise DataError(f"{path}: annotation {a['id']} has the unknown {kind} id {a[f'{kind}_id']!r}")
    return content


def part(content: Content, ids: Collection, labeled: bool, folder: str = "") -> Content:
    """A COCO json of some images: without an "annotations" key unless labelled; file names begin with `folder`."""
    result = {key: content[key] for key in ("info", "licenses") if key in content}
    images = [image for image in content["images"] if image["id"] in ids]
    if folder:
        images = [{**image, "file_name": f"{folder}/{image['file_name']}"} for image in images]
    result["images"] = images
    if labeled:
        result["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    result["categories"] = content["categories"]
    return result


def write_split(
    folder: str | Path,
    choice: Choice,
    labeled: Content,
    unlabeled: Content,
    sources: Mapping[str, str],
    *,
    fold: int = 0,
    percent: float = 0.0,
    count: int = 0,
) -> Path:
    """Write a choice of images as files (each atomic), the manifest last.

    Args:
        folder: made where it is missing.
        choice: which images.
        labeled: the json of the labelled images and of the test images.
        unlabeled: the json of the unlabelled images; may be the same. Categories are those of `labeled`.
        sources: the files that the split depends on, that of `labeled` first -> their `sed.data.splits.file_hash`.
        fold: which split; for another project's convention its seed.
        percent: the share that was requested.
        count: the number of images, in all or of each class, that was requested.

    Returns:
        The manifest.

    Raises:
        DataError: if the folder holds another split.
    """
    folder, manifest = Path(folder), Path(folder) / "manifest.json"
    places = FOLDERS.get(choice.convention, {})
    parts = {"labeled": part(labeled, choice.labeled, True, places.get("labeled", ""))}
    if choice.test:
        parts["test"] = part(labeled, choice.test, True, places.get("test", ""))
    rest = {**unlabeled, "categories": labeled["categories"]}
    parts["unlabeled"] = part(rest, choice.unlabeled, False, places.get("unlabeled", ""))
    records = {name: _records(content) for name, content in parts.items()}
    if manifest.exists() and read_manifest(manifest)["labeled_sha256"] != id_hash(records["labeled"]):
        raise DataError(f"{folder}: it holds another split; write to another folder, or delete this one")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in parts.items():
        save_text(json.dumps(content), folder / f"{name}.json")
    every = image_ids(labeled) | image_ids(unlabeled)
    details = {
        "left_out": len(every - choice.labeled - choice.unlabeled - choice.test),
        "reads_unlabeled_labels": choice.reads_labels,
        "notes": list(choice.notes),
        "sources_sha256": dict(sources),
        "numpy_version": np.__version__,
    }
    if choice.test:
        details |= {"test": len(choice.test), "test_sha256": id_hash(records["test"])}
    write_manifest(
        manifest,
        records["labeled"],
        records["unlabeled"],
        [c["name"] for c in sorted(labeled["categories"], key=lambda c: c["id"])],
        source=next(iter(sources)),
        fold=fold,
        percent=percent,
        count=count,
        convention=choice.convention,
        details=details,
    )
    return manifest


def _records(content: Content) -> list[Record]:
    """The records for the manifest: image ids, and classes and crowds of annotations."""
    classes = {c: index for index, c in enumerate(sorted(category["id"] for category in content["categories"]))}
    records = {image["id"]: {"image_id": image["id"], "annotations": []} for image in content["images"]}
    for a in content.get("annotations", ()):
        found = {"category_id": classes[a["category_id"]], "iscrowd": int(a.get("iscrowd") or 0)}
        records[a["image_id"]]["annotations"].append(found)
    return list(records.values())
