"""Sets of a few tiny images for tests of whole runs: coloured squares, as masks and as classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dmt.image_sets import ImageArray, Sets

CLASSES = ("ground", "dark", "light")


class Squares:
    """Images [16, 16, 3] with one square each; its brightness tells its class. See `dmt.image_sets.ImageSet`."""

    def __init__(self, name: str, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.name, self.classes = name, CLASSES
        self.keys = tuple(f"{name}_{i:03d}" for i in range(count))
        self.pixels = rng.integers(100, 156, (count, 16, 16, 3)).astype(np.uint8)
        self.masks = np.zeros((count, 16, 16), np.uint8)
        for i in range(count):
            x, y, side, label = *rng.integers(0, 8, 2), rng.integers(4, 9), 1 + i % 2
            self.masks[i, y : y + side, x : x + side] = label
            self.pixels[i, y : y + side, x : x + side] = 20 if label == 1 else 230
        self.masks[:, 0, 0] = 255

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, index: int) -> np.ndarray:
        return self.pixels[index].copy()

    def target(self, index: int) -> np.ndarray:
        return self.masks[index].copy()


def squares(name: str = "", root: str | Path = "") -> Sets:
    """In the place of `load_sets`."""
    parts = Squares("train", 14, 0), Squares("test", 6, 1), Squares("tune", 4, 2)
    return Sets("segmentation", parts[0], parts[1], tune=parts[2])


def classes(name: str = "", root: str | Path = "") -> Sets:
    """The same pictures, classified as dark or light."""
    parts = []
    for part in (Squares("train", 30, 0), Squares("test", 8, 1), Squares("tune", 6, 2)):
        targets = part.masks.max(axis=(1, 2), where=part.masks != 255, initial=0).astype(int) - 1
        parts.append(ImageArray(part.name, CLASSES[1:], part.keys, part.pixels[:, :8, :8], targets))
    return Sets("classification", parts[0], parts[1], tune=parts[2])
