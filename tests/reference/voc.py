"""Pascal VOC folders of a few files, and random truth and detections on which the metrics differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from sed.data.voc import CLASSES

ANNOTATION = """<annotation><size><width>{width}</width><height>{height}</height><depth>3</depth></size>{objects}
</annotation>"""
OBJECT = """<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated>
<difficult>{difficult}</difficult>
<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


class Object(NamedTuple):
    """An object of an annotation file; the box is VOC's: pixels from 1, both ends included."""

    name: str
    box: tuple[float, float, float, float]  # xmin, ymin, xmax, ymax
    difficult: int = 0


def make_folder(root: Path, year: int) -> Path:
    """An empty VOC<year>."""
    folder = root / f"VOC{year}"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return folder


def write_split(
    folder: Path, split: str, images: dict[str, Sequence[Object]], size: tuple[int, int] = (64, 64)
) -> None:
    """Write images (height, width) of noise with one filled box for each object, their annotations, and the list."""
    for number, (image_id, objects) in enumerate(images.items()):
        pixels = np.random.default_rng(number + len(split)).integers(90, 130, (*size, 3), dtype=np.uint8)
        for item in objects:
            x0, y0, x1, y1 = map(int, item.box)
            pixels[y0 - 1 : y1, x0 - 1 : x1] = np.random.default_rng(CLASSES.index(item.name)).integers(0, 256, 3)
        assert cv2.imwrite(str(folder / "JPEGImages" / f"{image_id}.jpg"), pixels)
        write_annotation(folder, image_id, objects, size)
    (folder / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{image_id}\n" for image_id in images))


def write_annotation(folder: Path, image_id: str, objects: Sequence[Object], size: tuple[int, int] = (64, 64)) -> None:
    """Write one XML file."""
    text = ANNOTATION.format(
        width=size[1], height=size[0], objects="".join(OBJECT.format(**item._asdict()) for item in objects)
    )
    (folder / "Annotations" / f"{image_id}.xml").write_text(text)


def random_objects(rng: np.random.Generator, size: tuple[int, int], names: Sequence[str]) -> list[Object]:
    """None to five objects, a quarter of them difficult."""
    found = []
    for _ in range(rng.integers(0, 6)):
        x0, y0 = (int(rng.integers(1, side - 20)) for side in size[::-1])
        x1, y1 = (int(rng.integers(low + 8, side + 1)) for low, side in zip((x0, y0), size[::-1], strict=True))
        found.append(Object(str(rng.choice(names)), (x0, y0, x1, y1), int(rng.random() < 0.25)))
    return found


def random_detections(
    rng: np.random.Generator, records: Sequence[dict], classes: int, ties: bool = False
) -> list[dict[str, Any]]:
    """Rows as `detect_all` gives them: near misses, duplicates, wrong classes, boxes of nothing; some images have none.

    Coordinates are eighths of a pixel, exact in float32. With `ties` there are only five different scores.
    """
    rows = []
    for record in records:
        if rng.random() < 0.1:
            continue
        width, height = record["width"], record["height"]
        boxes = [(a["bbox"], a["category_id"]) for a in record["annotations"] for _ in range(rng.integers(0, 4))]
        boxes += [([*rng.uniform(0, 30, 2), *rng.uniform(8, 60, 2)], int(rng.integers(classes))) for _ in range(3)]
        for (x, y, w, h), category in boxes:
            x0, y0, x1, y1 = np.array([x, y, x + w, y + h]) + rng.normal(0, 3, 4)
            corners = np.clip([x0, y0, max(x1, x0 + 4), max(y1, y0 + 4)], 0, [width, height] * 2)
            x0, y0, x1, y1 = (np.round(corners * 8) / 8).tolist()
            wrong = rng.random() < 0.1
            score = float(np.float32(rng.integers(1, 6) / 8 if ties else rng.random()))
            rows.append(
                {
                    "image_id": record["image_id"],
                    "category": int(rng.integers(classes)) if wrong else category,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": score,
                }
            )
    return rows
