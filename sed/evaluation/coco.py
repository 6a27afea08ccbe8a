"""COCO metrics of a detector, by faster-coco-eval where it is installed, else by pycocotools: the same numbers.

Detections and ground truth are compared in pixels of the original image; the ground truth is made in memory from the
records. Pascal VOC sets also get VOC's own metrics (`sed.evaluation.voc`). In the COCO metrics, objects marked
difficult count like all others, as in Detectron2's COCOEvaluator (mmdetection's converter makes them crowds, which COCO
ignores).
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sed.core.structures import Detections, Images
from sed.data.mapper import ImageInfo
from sed.data.records import Dataset, Record
from sed.detectors.base import Detector
from sed.evaluation.voc import VOC07, VOC12, is_voc, voc_ap50

log = logging.getLogger(__name__)
Results = dict[str, float]
_MAX_DETECTIONS = 100  # an image and class that count at least, as in all published COCO figures
_CONFIDENT = 0.5  # score from which a detection is counted in "detections"


def evaluate(
    detector: Detector,
    loader: Iterable[tuple[Images, Sequence[ImageInfo]]],
    dataset: Dataset,
    device: torch.device | str,
) -> Results:
    """The metrics of a detector: it detects on this process's share of the test images; all processes score together.

    Args:
        detector: on `device`; its training flags are restored afterwards.
        loader: test batches, such as `sed.data.loaders.test_loader`; iterated once.
        dataset: its records hold the ground truth of all images.
        device: of the detector.

    Returns:
        AP, AP50, AP75, APs, APm, APl, "AP-<class>" in percent (NaN where there is no ground truth) and
        "detections", the number of detections with a score of at least 0.5. On Pascal VOC also "VOC07-AP50" and
        "VOC12-AP50".
    """
    found = _gather(detect_all(detector, loader, device))
    metrics = [score(found, dataset)] if not dist.is_initialized() or dist.get_rank() == 0 else [None]
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(metrics, src=0)
    result = metrics[0]
    assert result is not None
    return result


@torch.no_grad()
def detect_all(
    detector: Detector, loader: Iterable[tuple[Images, Sequence[ImageInfo]]], device: torch.device | str
) -> list[dict[str, Any]]:
    """Detections in this process's images, in pixels of the original images.

    Returns:
        One dict a detection: image_id, category (contiguous), bbox [x, y, w, h], score.
    """
    modes = {module: module.training for module in detector.modules()}
    detector.eval()
    try:
        rows: list[dict[str, Any]] = []
        for images, infos in loader:
            for detections, info in zip(detector.detect(images.to(device)), infos, strict=True):
                rows += _original(detections, info)
        return rows
    finally:
        for module, mode in modes.items():
            module.training = mode


def _original(detections: Detections, info: ImageInfo) -> list[dict[str, Any]]:
    height, width = info.size
    scale = torch.tensor([*info.scale, *info.scale], dtype=torch.float64)
    limit = torch.tensor([width, height, width, height], dtype=torch.float64)
    boxes = (detections.boxes.double().cpu() / scale).clamp(min=0).minimum(limit)  # [D, 4] xyxy
    boxes[:, 2:] -= boxes[:, :2]
    rows = zip(boxes.tolist(), detections.scores.tolist(), detections.classes.tolist(), strict=True)
    return [{"image_id": info.image_id, "category": c, "bbox": box, "score": s} for box, s, c in rows]


def to_coco_results(found: Sequence[dict[str, Any]], dataset: Dataset) -> list[dict[str, Any]]:
    """Detections of `detect_all` as a COCO results list: original category ids, boxes [x, y, w, h]."""
    return [
        {
            "image_id": row["image_id"],
            "category_id": dataset.category_ids[row["category"]],
            "bbox": [round(v, 3) for v in row["bbox"]],
            "score": round(row["score"], 6),
        }
        for row in found
    ]


def score(found: Sequence[dict[str, Any]], dataset: Dataset) -> Results:
    """Metrics of detections (see `evaluate`) against the records of `dataset`.

    All detections of an image count, also more than COCO's 100: TEST.DETECTIONS_PER_IMAGE is the one limit.

    Image ids may be numbers or texts: they are renumbered in their order, which decides among detections of equal
    score, as pycocotools does with the ids themselves.
    """
    run = _matched(found, dataset, *_fastest())
    with contextlib.redirect_stdout(io.StringIO()):
        run.accumulate()
    results = _summary(run.eval["precision"], run.params.iouThrs, dataset.classes, found)
    return results | (voc_ap50(found, dataset) if is_voc(dataset) else {})


def compared(found: Sequence[dict[str, Any]], dataset: Dataset) -> COCOeval:
    """Pycocotools' COCOeval with detections and ground truth matched (`evalImgs`), image by image, not accumulated.

    Its image ids count from 0 in the order of `sorted_ids`; its category ids are the contiguous classes.
    """
    return _matched(found, dataset, COCO, COCOeval)


def _fastest() -> tuple[Any, Any]:
    """The COCO and the COCOeval to score with."""
    try:
        from faster_coco_eval import COCO as FasterCOCO
        from faster_coco_eval import COCOeval_faster
    except ImportError:
        return COCO, COCOeval
    return FasterCOCO, COCOeval_faster


def _matched(found: Sequence[dict[str, Any]], dataset: Dataset, api: Any, evaluator: Any) -> Any:
    """An `evaluator` of two `api` with detections and ground truth matched."""
    number = _numbers(dataset.records)
    images = [{"id": number[r["image_id"]], "height": r["height"], "width": r["width"]} for r in dataset.records]
    categories = [{"id": index, "name": name} for index, name in enumerate(dataset.classes)]
    truth = [
        {
            "image_id": number[record["image_id"]],
            "category_id": a["category_id"],
            "bbox": a["bbox"],
            "iscrowd": a["iscrowd"],
            "area": a.get("area", a["bbox"][2] * a["bbox"][3]),
        }
        for record in dataset.records
        for a in record["annotations"]
    ]
    predicted = [
        {
            "image_id": number[row["image_id"]],
            "category_id": row["category"],
            "bbox": row["bbox"],
            "iscrowd": 0,
            "area": row["bbox"][2] * row["bbox"][3],
            "score": row["score"],
        }
        for row in found
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for annotations in (truth, predicted):
            coco = api()
            # ids from 1: COCOeval reads id 0 as "no match"
            rows = [{"id": i, **a} for i, a in enumerate(annotations, start=1)]
            coco.dataset = {"images": images, "categories": categories, "annotations": rows}
            coco.createIndex()
            sides.append(coco)
        run = evaluator(*sides, iouType="bbox")
        most = max(Counter(row["image_id"] for row in predicted).values(), default=0)
        run.params.maxDets = [1, 10, max(_MAX_DETECTIONS, most)]
        run.evaluate()
    return run


def tell_crowded(dataset: Dataset, limit: int) -> None:
    """Warn where images have more objects than detections are kept of one, which holds AP down.

    Args:
        dataset: to evaluate on.
        limit: TEST.DETECTIONS_PER_IMAGE.
    """
    counts = [sum(not a["iscrowd"] for a in record["annotations"]) for record in dataset.records]
    if crowded := sum(count > limit for count in counts):
        log.warning(
            "%s: %d images have more than %d objects (up to %d), but no more detections are kept of an image; to count "
            "all of them, set TEST.DETECTIONS_PER_IMAGE to %d",
            *(dataset.name, crowded, limit, max(counts), max(counts)),
        )


def _summary(
    precision: np.ndarray, ious: np.ndarray, classes: Sequence[str], predicted: Sequence[dict[str, Any]]
) -> Results:
    """The metrics of COCOeval's `precision`.

    Args:
        precision: [IoU thresholds, recalls, classes, areas (all, s, m, l), limits]; -1: no ground truth.
        ious: the IoU thresholds.
        classes: K names.
        predicted: all detections.
    """

    def ap(part: np.ndarray) -> float:
        part = part[part > -1]
        return float(part.mean() * 100) if part.size else float("nan")

    p = precision[..., -1]  # [T, recalls, K, areas]
    at = {name: int(np.argmin(np.abs(ious - iou))) for name, iou in (("AP50", 0.5), ("AP75", 0.75))}
    results = {"AP": ap(p[:, :, :, 0])}
    results |= {name: ap(p[index, :, :, 0]) for name, index in at.items()}
    results |= {name: ap(p[:, :, :, area]) for area, name in ((1, "APs"), (2, "APm"), (3, "APl"))}
    results |= {f"AP-{name}": ap(p[:, :, k, 0]) for k, name in enumerate(classes)}
    results["detections"] = float(sum(row["score"] >= _CONFIDENT for row in predicted))
    return results


def _numbers(records: Sequence[Record]) -> dict[int | str, int]:
    """Image id -> its place in `sorted_ids`."""
    return {image_id: index for index, image_id in enumerate(sorted_ids(records))}


def sorted_ids(records: Sequence[Record]) -> list[int | str]:
    """The image ids in the order of evaluation: numbers come before texts."""
    return sorted((record["image_id"] for record in records), key=lambda i: (isinstance(i, str), i))


def _gather(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all processes, in every process."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, rows)
    return [row for part in parts for row in part]


def format_table(results: dict[str, Results]) -> str:
    """A text table, a row for each of `results`; columns AP, AP50, AP75, APs, APm, APl, and VOC's if any.

    If a row has "seconds", the time an image, it is the last column.
    """
    columns = {name: 7 for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
    columns |= {name: 12 for name in (VOC07, VOC12) if any(name in row for row in results.values())}
    timed = any("seconds" in row for row in results.values())
    width = max([len(name) for name in results], default=0)
    lines = [" " * width + "".join(f"{column:>{size}}" for column, size in columns.items())]
    lines[0] += f"{'s/image':>10}" * timed
    for name, row in results.items():
        cells = (f"{row.get(column, float('nan')):{size}.1f}" for column, size in columns.items())
        seconds = f"{row.get('seconds', float('nan')):10.4f}" * timed
        lines.append(f"{name:<{width}}" + "".join(cells) + seconds)
    return "\n".join(lines)
