"""A small COCO set on disk, whose faults the tests plant."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest


def write_image(path: Path, height: int, width: int, seed: int = 0) -> Path:
    """A smooth random picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))
    return path


class Coco:
    """A json under construction: change `content`, then `write`."""

    def __init__(self, folder: Path, sizes: list[tuple[int, int]], seed: int = 0) -> None:
        self.folder = folder
        self.content: dict = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        }
        for i, (height, width) in enumerate(sizes):
            write_image(folder / f"{i}.jpg", height, width, seed=1000 * seed + i)
            self.content["images"].append({"id": 10 + i, "file_name": f"{i}.jpg", "height": height, "width": width})
            self.content["annotations"].append(
                {
                    "id": i,
                    "image_id": 10 + i,
                    "category_id": (7, 3)[i % 2],
                    "bbox": [4, 6, 10, 8],
                    "iscrowd": 0,
                }
            )

    def write(self, name: str = "set.json") -> Path:
        path = self.folder / name
        path.write_text(json.dumps(self.content))
        return path


@pytest.fixture
def make_coco(tmp_path: Path) -> Callable[..., Coco]:
    """make_coco(sizes, name=folder, seed=0) -> Coco with one box an image."""

    def make(sizes: list[tuple[int, int]] | None = None, name: str = "set", seed: int = 0) -> Coco:
        return Coco(tmp_path / name, sizes or [(40, 60), (60, 40), (40, 60)], seed)

    return make


@pytest.fixture
def make_image() -> Callable[..., Path]:
    """make_image(path, height, width, seed) -> path."""
    return write_image
