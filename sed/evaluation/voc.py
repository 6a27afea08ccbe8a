"""Average precision by Pascal VOC's own rules, in both of its conventions.

Up to 2009 AP is the mean precision at 11 recalls, 0, 0.1, ..., 1 ("VOC07"); since 2010 it is the area under the curve
("VOC12"). Papers report one or the other, so both are computed. Matching follows the devkit and differs from COCO's: a
detection is matched with the box of its class that it overlaps most, also if that is matched already. The second
detection of a box is wrong; one of a difficult object is neither right nor wrong, and difficult objects need not be
found.

The devkit takes boxes as whole pixels, both ends included, and adds 1 to each side. Our records have that 1 subtracted
(`sed.data.voc`), so that the plain IoU is the same number. The result is that of Detectron2's `voc_eval`, except that
detections are not rounded (Detectron2 writes scores with 3 digits, boxes with 1), equal scores are in the order of the
images, and a class without any object to find is left out of the mean, where Detectron2 counts 0 or gives NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sed.data.records import Dataset

VOC07, VOC12 = "VOC07-AP50", "VOC12-AP50"


def is_voc(dataset: Dataset) -> bool:
    """Whether the annotations of a set have "difficult", as those of VOC do."""
    return any("difficult" in a for record in dataset.records for a in record["annotations"])


def voc_ap50(found: Sequence[dict[str, Any]], dataset: Dataset) -> dict[str, float]:
    """AP at IoU 0.5, the mean over the classes, percent: "VOC07-AP50" by 11 points, "VOC12-AP50" by area.

    NaN where no class has an object.

    Args:
        found: detections, see `sed.evaluation.coco.detect_all`.
        dataset: its records hold the ground truth of all images.
    """
    table = 100 * voc_ap(found, dataset)
    table = table[~np.isnan(table).any(1)]
    means = table.mean(0) if len(table) else np.full(2, np.nan)
    return {VOC07: float(means[0]), VOC12: float(means[1])}


def voc_ap(found: Sequence[dict[str, Any]], dataset: Dataset, iou: float = 0.5) -> np.ndarray:
    """AP of each class, [K, 2] in [0, 1]: by 11 points, and as the area; NaN where there is no object to find.

    Args:
        found: as `voc_ap50`.
        dataset: as `voc_ap50`; an annotation without "difficult" is not difficult.
        iou: the IoU of a detection with its object must be larger.
    """
    number = {record["image_id"]: index for index, record in enumerate(dataset.records)}
    truth: list[dict[int, list[dict[str, Any]]]] = [{} for _ in dataset.classes]  # class -> image -> annotations
    for index, record in enumerate(dataset.records):
        for a in record["annotations"]:
            truth[a["category_id"]].setdefault(index, []).append(a)
    predicted: list[list[tuple[float, int, list[float]]]] = [[] for _ in dataset.classes]
    for row in found:
        predicted[row["category"]].append((-row["score"], number[row["image_id"]], row["bbox"]))
    table = np.full((len(dataset.classes), 2), np.nan)
    for k, (objects, rows) in enumerate(zip(truth, predicted, strict=True)):
        wanted = sum(not _is_ignored(a) for group in objects.values() for a in group)
        if wanted:
            right, wrong = _judge(sorted(rows, key=lambda row: row[:2]), objects, iou)
            right, wrong = np.cumsum(right), np.cumsum(wrong)
            table[k] = _average(right / wanted, right / np.maximum(right + wrong, 1))
    return table


def _is_ignored(annotation: dict[str, Any]) -> bool:
    """Whether an object is difficult or a crowd, so that detections of it are neither right nor wrong."""
    return bool(annotation.get("difficult", 0) or annotation.get("iscrowd", 0))


def _judge(
    rows: Sequence[tuple[float, int, list[float]]], objects: dict[int, list[dict[str, Any]]], iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections of a class are right and which are wrong, two bool [D].

    Args:
        rows: (-score, image, [x, y, w, h]), the best first.
        objects: image -> annotations of this class.
        iou: as `voc_ap`.
    """
    from pycocotools.mask import iou as overlaps

    places: dict[int, list[int]] = {}  # image -> rows
    for place, (_, image, _) in enumerate(rows):
        places.setdefault(image, []).append(place)
    right, wrong = np.zeros(len(rows), bool), np.ones(len(rows), bool)
    for image, group in places.items():
        if image not in objects:
            continue
        boxes = np.array([rows[place][2] for place in group], np.float64)
        truth = np.array([a["bbox"] for a in objects[image]], np.float64)
        table = overlaps(boxes, truth, [0] * len(truth))  # [group, objects]
        taken: set[int] = set()
        for place, best, most in zip(group, table.argmax(1), table.max(1), strict=True):
            if most <= iou:
                continue
            if _is_ignored(objects[image][best]):
                wrong[place] = False
            elif best not in taken:
                right[place], wrong[place] = True, False
                taken.add(best)
    return right, wrong


def _average(recall: np.ndarray, precision: np.ndarray) -> tuple[float, float]:
    """AP by 11 points and as the area, with precision replaced by its maximum at this recall or above; both are [D]."""
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # maximum from here on; 0 beyond
    points = np.arange(0.0, 1.1, 0.1)  # as the devkit counts them: its fourth point is 0.30000000000000004
    area = np.sum(np.diff(recall, prepend=0.0) * best[:-1])
    return float(best[np.searchsorted(recall, points)].mean()), float(area)
