"""Draws boxes on images and images on contact sheets: arrays in, arrays out, with OpenCV.

Shape shorthand: images are [H, W, 3] uint8 RGB; D boxes (x0, y0, x1, y1) in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

Color = tuple[int, int, int]
PALETTE: tuple[Color, ...] = (
    (230, 57, 70), (29, 120, 200), (42, 157, 100), (244, 162, 30), (141, 82, 196),
    (0, 170, 180), (214, 80, 160), (120, 120, 30), (90, 90, 220), (200, 110, 60),
)  # fmt: skip
GREEN: Color = (40, 200, 80)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_CAPTION, _GAP, _WHITE, _INK = 18, 4, 255, (30, 30, 30)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray | Sequence[Sequence[float]],
    labels: Sequence[str] = (),
    scores: Sequence[float] = (),
    color: Color | Sequence[Color] = GREEN,
) -> np.ndarray:
    """A copy of `image` with boxes, each with its label and score above it (inside, at the upper border).

    Args:
        image: [H, W, 3] uint8 RGB.
        boxes: [D, 4].
        labels: D texts, or none.
        scores: D numbers in [0, 1], or none.
        color: one for all boxes, or D of them.

    Raises:
        ValueError: where the numbers of boxes, labels, scores and colours do not agree.
    """
    canvas = np.ascontiguousarray(image).copy()
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    colors = [color] * len(corners) if color and isinstance(color[0], int) else list(color)
    for what, items in (("labels", labels), ("scores", scores), ("colours", colors)):
        if len(items) not in ((len(corners),) if what == "colours" else (0, len(corners))):
            raise ValueError(f"draw_boxes: {len(corners)} boxes but {len(items)} {what}")
    thickness = max(1, round(min(canvas.shape[:2]) / 300))
    for index, (box, tint) in enumerate(zip(corners, colors, strict=True)):
        if not np.isfinite(box).all():
            continue
        x0, y0, x1, y1 = (round(v) for v in box.tolist())
        cv2.rectangle(canvas, (x0, y0), (x1, y1), tint, thickness)
        words = [str(labels[index])] if len(labels) else []
        words += [f"{float(scores[index]):.2f}"] if len(scores) else []
        if words:
            _tag(canvas, " ".join(words), x0, y0, tint)
    return canvas


def _tag(canvas: np.ndarray, text: str, x: int, y: int, tint: Color) -> None:
    size = max(0.3, min(canvas.shape[:2]) / 1200)
    (width, height), base = cv2.getTextSize(text, _FONT, size, 1)
    top = y - height - base if y - height - base >= 0 else y
    x = max(0, min(x, canvas.shape[1] - width))
    cv2.rectangle(canvas, (x, top), (x + width, top + height + base), tint, cv2.FILLED)
    ink = (0, 0, 0) if sum(tint) > 380 else (255, 255, 255)
    cv2.putText(canvas, text, (x, top + height), _FONT, size, ink, 1, cv2.LINE_AA)


def contact_sheet(rows: Sequence[Sequence[tuple[np.ndarray, str]]], cell: int = 240) -> np.ndarray:
    """Images in a grid, each in a square cell, scaled to fit, its caption above it.

    Args:
        rows: rows of (image [H, W, 3] uint8 RGB, caption); rows may differ in length.
        cell: side of a cell in pixels.

    Returns:
        [H, W, 3] uint8 RGB, white where there is nothing.

    Raises:
        ValueError: without any image.
    """
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise ValueError("contact_sheet: no image given")
    tall, wide = cell + _CAPTION + _GAP, cell + _GAP
    sheet = np.full((len(rows) * tall + _GAP, columns * wide + _GAP, 3), _WHITE, np.uint8)
    for r, row in enumerate(rows):
        for c, (image, caption) in enumerate(row):
            y, x = r * tall + _GAP, c * wide + _GAP
            cv2.putText(sheet, caption[: cell // 6], (x, y + _CAPTION - 6), _FONT, 0.38, _INK, 1, cv2.LINE_AA)
            small = fit(image, cell)
            y += _CAPTION
            sheet[y : y + small.shape[0], x : x + small.shape[1]] = small
    return sheet


def fit(image: np.ndarray, side: int) -> np.ndarray:
    """`image` scaled so that its longer side is `side` pixels."""
    factor = side / max(image.shape[:2])
    width, height = (max(1, min(side, math.floor(v * factor + 0.5))) for v in (image.shape[1], image.shape[0]))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=how)


def write_png(path: str, image: np.ndarray) -> None:
    """Write [H, W, 3] uint8 RGB as a file.

    Raises:
        OSError: where it cannot be written.
    """
    if not cv2.imwrite(path, cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
        raise OSError(f"{path}: the image could not be written")
