"""A data set that takes no time: coloured squares on grey noise."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

NAMES = ("red", "blue")


def write_set(folder: Path, name: str, count: int, seed: int, classes: tuple[str, ...] = NAMES) -> str:
    """Coloured squares on grey noise, 64 x 64, as PNG and COCO json."""
    draw = np.random.default_rng(seed)
    images, annotations = [], []
    (folder / name).mkdir(parents=True)
    for i in range(count):
        pixels = draw.integers(90, 130, (64, 64, 3), dtype=np.uint8)
        x, y, side, kind = *draw.integers(2, 30, 2).tolist(), int(draw.integers(16, 30)), int(draw.integers(0, 2))
        pixels[y : y + side, x : x + side] = (30, 30, 220) if kind == 0 else (220, 30, 30)  # BGR
        cv2.imwrite(str(folder / name / f"{i}.png"), pixels)
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": 64, "width": 64})
        box = [x, y, side, side]
        annotations.append(
            {"id": i + 1, "image_id": i + 1, "category_id": kind + 1, "bbox": box, "area": side**2, "iscrowd": 0}
        )
    categories = [{"id": k + 1, "name": c} for k, c in enumerate(classes)]
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return str(path)
