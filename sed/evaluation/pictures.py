"""Draws ground truth or detections on images: of records, in the file's pixels, and of batches.

A `Painter` draws the boxes: `paint_boxes` with OpenCV, or Detectron2's `Visualizer` on its engine.

Shape shorthand: pictures are [H, W, 3] uint8 RGB; D boxes (x0, y0, x1, y1) in pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from sed.core.structures import Images, Size, Targets
from sed.data.images import read_image
from sed.data.records import Record
from sed.evaluation.visualize import PALETTE, draw_boxes

Row = Mapping[str, Any]
# (picture, boxes [D, 4], D contiguous classes, D scores or none, class names) -> a picture with the boxes on it
Painter = Callable[[np.ndarray, np.ndarray, Sequence[int], Sequence[float], Sequence[str]], np.ndarray]
_GREY = 225


def paint_boxes(
    image: np.ndarray,
    corners: np.ndarray,
    categories: Sequence[int],
    scores: Sequence[float],
    classes: Sequence[str],
) -> np.ndarray:
    """The `Painter` with OpenCV; a class has the same colour in every picture."""
    colors = [PALETTE[c % len(PALETTE)] for c in categories]
    return draw_boxes(image, corners, [classes[c] for c in categories], scores, colors)


def draw_truth(record: Record, classes: Sequence[str], min_side: int = 0, paint: Painter = paint_boxes) -> np.ndarray:
    """The image of a record with its ground truth; crowds are left out, as in training. Arguments: see `draw_found`."""
    rows = [a for a in record.get("annotations", ()) if not a["iscrowd"]]
    return _draw(record, [a["bbox"] for a in rows], [a["category_id"] for a in rows], [], classes, min_side, paint)


def draw_found(
    record: Record,
    rows: Iterable[Row],
    classes: Sequence[str],
    threshold: float,
    min_side: int = 0,
    paint: Painter = paint_boxes,
) -> np.ndarray:
    """The image of a record with its detections.

    Args:
        record: the image.
        rows: as `sed.evaluation.coco.detect_all` returns them; those of other images are left out.
        classes: names by contiguous class.
        threshold: detections below this score are left out.
        min_side: a picture whose longer side is shorter is first enlarged by a whole factor, so that lines and labels
            stay fine on small images.
        paint: draws the boxes.
    """
    kept = [r for r in rows if r["image_id"] == record["image_id"] and r["score"] >= threshold]
    scores = [r["score"] for r in kept]
    return _draw(record, [r["bbox"] for r in kept], [r["category"] for r in kept], scores, classes, min_side, paint)


def draw_on(
    picture: np.ndarray, rows: Iterable[Row], image_id: int | str, classes: Sequence[str], threshold: float
) -> np.ndarray:
    """A picture with the detections of one image on it; see `draw_found`."""
    kept = [r for r in rows if r["image_id"] == image_id and r["score"] >= threshold]
    boxes = np.array([r["bbox"] for r in kept], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return paint_boxes(picture, boxes, [r["category"] for r in kept], [r["score"] for r in kept], classes)


def draw_view(
    images: Images,
    i: int,
    targets: Targets,
    classes: Sequence[str],
    min_side: int = 0,
    frame: Size | None = None,
    paint: Painter = paint_boxes,
) -> np.ndarray:
    """Image i of a batch, without its padding, with boxes in pixels of the batch.

    Args:
        images: on the CPU, uint8 or float.
        i: index of the image.
        targets: of this image.
        classes: names by contiguous class.
        min_side: see `draw_found`; the side of `frame` counts where one is given.
        frame: (height, width) of a grey ground with the image at its top left, so that a half-size view is shown at
            its size relative to the full view; None: no ground.
        paint: draws the boxes.
    """
    height, width = images.sizes[i]
    image = images.tensor[i, :, :height, :width].permute(1, 2, 0).round().byte().numpy()  # [h, w, 3]
    ground = np.full((*(frame or (height, width)), 3), _GREY, np.uint8)
    ground[:height, :width] = image
    return _boxes_on(ground, targets.boxes.numpy(), targets.classes.tolist(), [], classes, min_side, paint)


def _draw(
    record: Record,
    boxes: Sequence[Sequence[float]],
    categories: Sequence[int],
    scores: Sequence[float],
    classes: Sequence[str],
    min_side: int,
    paint: Painter,
) -> np.ndarray:
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]  # xywh -> xyxy
    return _boxes_on(read_image(record), corners, categories, scores, classes, min_side, paint)


def _boxes_on(
    image: np.ndarray,
    corners: np.ndarray,
    categories: Sequence[int],
    scores: Sequence[float],
    classes: Sequence[str],
    min_side: int,
    paint: Painter,
) -> np.ndarray:
    zoom = max(1, -(-min_side // max(image.shape[:2])))
    if zoom > 1:
        image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR)
    return paint(image, corners * zoom, categories, scores, classes)
