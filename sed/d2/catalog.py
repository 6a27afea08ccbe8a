"""Data sets of Detectron2's catalog as this package's records, and this package's data sets in that catalog.

A name that Detectron2 knows (its builtin coco_* and voc_* under DETECTRON2_DATASETS, whatever the user registered) is
read from there. Every other source (`sed.data.catalog`: a digits set, a COCO json, a folder of images) is registered
there under the very string that stands in the config, for Detectron2's own test loader, evaluator and Visualizer.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from sed.data.catalog import known_names, load_dataset
from sed.data.coco import MIN_SIDE
from sed.data.errors import DataError
from sed.data.files import read_file
from sed.data.frames import check_frame
from sed.data.layouts import split_of
from sed.data.packing import without_gc
from sed.data.records import XYWH_ABS, Dataset, Record, check_same_classes, image_record, join
from sed.data.voc import load_voc

log = logging.getLogger(__name__)


def datasets_of(sources: Sequence[str], image_root: str = "", labeled: bool = True) -> Dataset:
    """Several data sets as one, see `dataset_of` and `sed.data.records.join`."""
    return join([dataset_of(source, image_root, labeled) for source in sources], labeled)


def dataset_of(source: str, image_root: str = "", labeled: bool = True) -> Dataset:
    """Read one data set; afterwards Detectron2's catalogs know it by the name `source`.

    Args:
        source: a name in Detectron2's DatasetCatalog, else what `sed.data.catalog.load_dataset` takes.
        image_root: folder of the images of a json given by path.
        labeled: False strips all annotations.

    Returns:
        Records as `sed.data.catalog` has them: boxes as [x, y, w, h], nothing but boxes and classes.

    Raises:
        DataError: whatever is wrong with it.
    """
    if source in DatasetCatalog and not isinstance(DatasetCatalog[source], _Source):
        return _registered(source, labeled)
    if source not in known_names() and not os.path.exists(split_of(source)[0]):
        raise DataError(
            f"{source}: neither a file, a folder, registered in Detectron2's DatasetCatalog, nor one of "
            f"{', '.join(known_names())}"
        )
    dataset = load_dataset(source, image_root, labeled)
    _register(dataset, _Source(source, image_root, labeled))
    return dataset


# ---------------------------------------------------------------------------------------------- ours -> Detectron2
@dataclass(frozen=True)
class _Source:
    """What DatasetCatalog calls to get the records of a source of ours."""

    source: str
    image_root: str
    labeled: bool

    def __call__(self) -> list[Record]:
        return load_dataset(self.source, self.image_root, self.labeled).records


def _register(dataset: Dataset, source: _Source) -> None:
    """Enter a set into Detectron2's catalogs, over a former entry of ours: the files of that name may have changed."""
    folders = {os.path.dirname(record["file_name"]) for record in dataset.records}
    values: dict[str, Any] = {"image_root": os.path.commonpath(folders)}
    if dataset.json_file:
        values.update(json_file=dataset.json_file, evaluator_type="coco")
    if dataset.classes:
        ids = {category: index for index, category in enumerate(dataset.category_ids)}
        values.update(thing_classes=list(dataset.classes), thing_dataset_id_to_contiguous_id=ids)
    DatasetCatalog[source.source] = source
    metadata = MetadataCatalog.get(source.source)
    if any(metadata.get(key, value) != value for key, value in values.items()):  # a Metadata refuses to change
        MetadataCatalog.pop(source.source)
    MetadataCatalog.get(source.source).set(**values)


def evaluable(dataset: Dataset) -> Dataset:
    """The same set; where COCOEvaluator could not use its json, the catalog then names a completed copy of that.

    COCOEvaluator reads the json again, and pycocotools wants what `sed.data.coco` does without or sees to: areas,
    crowd flags, no annotation with id 0, no box without size. A set in another format gets a json here. The copy is a
    temporary file of this process.
    """
    if not isinstance(DatasetCatalog[dataset.name], _Source):
        return dataset
    if not dataset.json_file:
        return _copied(dataset)
    content = json.loads(read_file(dataset.json_file))
    found = content["annotations"]
    whole = all(_complete(item) for item in found) and "info" in content
    same = [item["id"] for item in content["images"]] == [record["image_id"] for record in dataset.records]
    same &= {item["id"] for item in content["categories"]} == set(dataset.category_ids)
    if whole and same and len(found) == sum(len(record["annotations"]) for record in dataset.records):
        return dataset
    log.info("%s: Detectron2 evaluates on a copy with complete areas, crowd flags and annotation ids", dataset.name)
    return _copied(dataset)


def align(before: Dataset, after: Dataset) -> None:
    """Let the catalog know a set with its classes in another order; Detectron2's evaluators match them by number.

    Raises:
        DataError: where the order differs and Detectron2 reads the set itself.
    """
    if before.classes == after.classes:
        return
    if not isinstance(DatasetCatalog[before.name], _Source):
        check_same_classes(after, before)
    _copied(after)


def _copied(dataset: Dataset) -> Dataset:
    """A set whose json is a temporary file with just what its records hold; the catalog then names that."""
    annotations = [
        {
            "image_id": record["image_id"],
            "category_id": dataset.category_ids[item["category_id"]],
            **{key: item[key] for key in ("bbox", "area", "iscrowd")},
        }
        for record in dataset.records
        for item in record["annotations"]
    ]
    content = {
        "info": {},
        "images": [
            {"id": r["image_id"], **{key: r[key] for key in ("file_name", "height", "width")}} for r in dataset.records
        ],
        "categories": [{"id": i, "name": n} for i, n in zip(dataset.category_ids, dataset.classes, strict=True)],
        "annotations": [{"id": number, **item} for number, item in enumerate(annotations, 1)],
    }
    folder = Path(tempfile.mkdtemp(prefix="sed-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = folder / (Path(dataset.json_file).name or "annotations.json")
    copy.write_text(json.dumps(content))
    source = DatasetCatalog[dataset.name]
    dataset = replace(dataset, json_file=str(copy))
    _register(dataset, source)
    return dataset


def _complete(item: Mapping[str, Any]) -> bool:
    """Whether pycocotools can use an annotation as it is written."""
    numbers = [item["id"], item["image_id"], item["category_id"], item.get("area"), item.get("iscrowd")]
    plain = all(type(number) in (int, float) for number in numbers[2:]) and type(numbers[0]) is int
    return plain and numbers[0] > 0 and 0 < numbers[3] < math.inf and numbers[4] in (0, 1)


# ---------------------------------------------------------------------------------------------- Detectron2 -> ours
@without_gc()
def _registered(name: str, labeled: bool) -> Dataset:
    try:
        rows = DatasetCatalog.get(name)
    except AssertionError as error:  # its files have other classes than Detectron2 knows of the name
        raise DataError(
            f"{name}: {str(error).splitlines()[0]} Give its json by path, or register it by another name"
        ) from error
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(
            f"{name}: it cannot be read ({error}); put its files there, or set DETECTRON2_DATASETS to the folder that "
            "holds them before Python starts (Detectron2 reads it once)"
        ) from error
    except (SyntaxError, ValueError, LookupError, AttributeError, TypeError) as error:  # its VOC reader, broken files
        metadata = MetadataCatalog.get(name)
        if metadata.get("dirname") and metadata.get("split"):
            load_voc(metadata.dirname, metadata.split, tuple(metadata.thing_classes))  # says which file, and why
            raise DataError(
                f"{name}: Detectron2 cannot read its annotations ({error}); mend those that the log names, or use "
                "ENGINE torchvision, which leaves them out"
            ) from error
        raise
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{name}: Detectron2's catalog gives {_what(rows)}; expected a list of at least one dict")
    metadata = MetadataCatalog.get(name)  # after the records: reading a json fills it
    classes = tuple(metadata.get("thing_classes") or ())
    if labeled and not classes:
        raise DataError(f"{name}: it has no classes; set MetadataCatalog.get({name!r}).thing_classes")
    original = {
        index: category for category, index in (metadata.get("thing_dataset_id_to_contiguous_id") or {}).items()
    }
    records = [_record(name, row) for row in rows]
    _check_files(name, records)
    if labeled:
        _add_annotations(name, records, rows, len(classes))
    categories = tuple(original.get(index, index) for index in range(len(classes)))
    return Dataset(name, records, classes, categories, str(metadata.get("json_file") or ""))


def _what(rows: Any) -> str:
    return "an empty list" if isinstance(rows, list) else f"a {type(rows).__name__}"


def _record(name: str, row: Mapping[str, Any]) -> Record:
    """The unlabelled record of a dataset dict; other fields are left out, they may hold labels."""
    if not isinstance(row, Mapping) or "file_name" not in row:
        raise DataError(f"{name}: expected dataset dicts with file_name, got {row!r:.200}")
    path = str(row["file_name"])
    image_id = row.get("image_id", path)
    if isinstance(image_id, np.generic):
        image_id = image_id.item()
    if "height" not in row or "width" not in row:
        return image_record(path, image_id)
    return {"file_name": path, "image_id": image_id, "height": int(row["height"]), "width": int(row["width"])}


def _check_files(name: str, records: Sequence[Record]) -> None:
    """Raise DataError for missing image files; lists each folder once."""
    listed: dict[str, frozenset[str]] = {}
    missing = []
    for record in records:
        folder, leaf = os.path.split(record["file_name"])
        if folder not in listed:
            listed[folder] = frozenset(os.listdir(folder or ".") if os.path.isdir(folder or ".") else ())
        if leaf not in listed[folder]:
            missing.append(record["file_name"])
    if missing:
        raise DataError(
            f"{name}: image file {missing[0]} is missing ({len(missing)} of {len(records)} are); put the images there, "
            "or correct the set's registration or DETECTRON2_DATASETS"
        )


def _add_annotations(name: str, records: Sequence[Record], rows: Iterable[Mapping[str, Any]], classes: int) -> None:
    """Fill in "annotations": checked boxes, clipped to the image; what is no box or lies outside is dropped."""
    counts = {"segmentation": 0, "keypoints": 0, "no box": 0, "usable": 0}
    for record, row in zip(records, rows, strict=True):
        if "annotations" not in row:
            raise DataError(f"{name}: {record['file_name']} has no annotations; name the set in DATASETS.UNLABELED")
        record["annotations"] = []
        boxes = []
        for item in row["annotations"]:
            counts["segmentation"] += "segmentation" in item
            counts["keypoints"] += "keypoints" in item
            where = f"{name}: an annotation of {record['file_name']} (image id {record['image_id']})"
            category = item.get("category_id")
            if not isinstance(category, (int, np.integer)) or not 0 <= category < classes:
                raise DataError(f"{where} has category_id {category!r}; expected 0 to {classes - 1}")
            boxes.append(_xywh(item, where))
            box = _clipped(boxes[-1], record)
            if box is None:
                counts["no box"] += 1
                continue
            crowd = int(item.get("iscrowd", 0) or 0)
            counts["usable"] += not crowd
            area = float(item.get("area") or box[2] * box[3])
            record["annotations"].append(
                {"bbox": box, "bbox_mode": XYWH_ABS, "category_id": int(category), "iscrowd": crowd, "area": area}
            )
        check_frame(name, record, boxes)
    if counts["segmentation"] or counts["keypoints"]:
        left = "%s: only boxes are used; left out %d segmentations and %d sets of keypoints"
        log.info(left, name, counts["segmentation"], counts["keypoints"])
    if counts["no box"]:
        log.warning("%s: dropped %d boxes of zero size or outside the image", name, counts["no box"])
    if not counts["usable"]:
        raise DataError(f"{name}: no usable box in its {len(records)} images; an empty labelled set trains nothing")


def _xywh(item: Mapping[str, Any], where: str) -> list[float]:
    """The box of an annotation in any of Detectron2's absolute modes as [x, y, w, h]; of a rotated one, its hull."""
    box, mode = item.get("bbox"), item.get("bbox_mode")
    try:
        values = np.asarray(box, np.float64).reshape(1, -1)
        if mode != BoxMode.XYWH_ABS:
            corners = BoxMode.convert(values, BoxMode(mode), BoxMode.XYXY_ABS)
            values = BoxMode.convert(corners, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        x, y, w, h = values[0].tolist()
    except (AssertionError, IndexError, NotImplementedError, TypeError, ValueError) as error:
        raise DataError(f"{where} has bbox {box!r} in mode {mode!r}, which is not a box ({error})") from None
    if not all(map(math.isfinite, (x, y, w, h))):
        raise DataError(f"{where} has bbox {box!r}, which holds NaN or infinity")
    return [x, y, w, h]


def _clipped(box: Sequence[float], record: Record) -> list[float] | None:
    x, y, w, h = box
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + w, record["width"]), min(y + h, record["height"])
    return [x0, y0, x1 - x0, y1 - y0] if min(x1 - x0, y1 - y0) >= MIN_SIDE else None
