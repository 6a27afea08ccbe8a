"""Cost of two views against decode + resize, one core: `python tests/data/bench_views.py` (docs/benchmarks.md)."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from sed.data.augmentation import resize_shortest
from sed.data.images import read_image
from sed.data.loaders import start_worker
from sed.data.mapper import UNLABELED, Mapper


def make_photos(folder: Path, count: int, seed: int = 0) -> list[dict]:
    """640x480 JPEG files with about the bytes of a COCO photo (smooth parts, edges, some grain)."""
    rng = np.random.default_rng(seed)
    records = []
    for index in range(count):
        image = cv2.resize(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
        for _ in range(40):
            x, y, r = (int(v) for v in rng.integers(0, [640, 480, 90]))
            cv2.circle(image, (x, y), r, [int(v) for v in rng.integers(0, 256, 3)], 3)
        image = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
        path = folder / f"{index}.jpg"
        cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        records.append({"file_name": str(path), "image_id": index, "height": 480, "width": 640})
    return records


def benchmark_views(records: list[dict], samples: int = 120, repeats: int = 5) -> dict[str, float]:
    """Mean CPU seconds an image of decode + resize and of the two views in a worker process, and their ratio.

    Both do the same files at the same short sides (640..800). CPU time of this thread is measured; every sample, with
    its own draws, is timed `repeats` times and its best time counts, so that other work on the machine disturbs little.
    """
    start_worker()
    mapper = Mapper(min_size=(640, 800), max_size=1333)
    best = np.full((samples, 2), np.inf)
    for _ in range(repeats + 1):  # the first round warms up the file cache
        for position in range(samples):
            record = records[position % len(records)]
            short = int(np.random.default_rng([0, UNLABELED, position]).integers(640, 801))
            start = time.thread_time()
            resize_shortest(read_image(record), short, 1333)
            middle = time.thread_time()
            mapper.unlabeled(record, position)
            best[position] = np.minimum(best[position], (middle - start, time.thread_time() - middle))
    base, views = best.mean(0)
    return {"decode_resize": float(base), "two_views": float(views), "ratio": float(views / base)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        result = benchmark_views(make_photos(Path(folder), 40))
        print({key: round(value, 5) for key, value in result.items()})
