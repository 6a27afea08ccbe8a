"""COCO metrics of many detections: seconds by faster-coco-eval and by pycocotools, and the largest difference.

    python -m tests.evaluation.bench_coco                       # 5,000 images of 100 detections, 80 classes
    python -m tests.evaluation.bench_coco --images 500

Boxes are made: seven objects an image as in COCO, most of them found with a jitter, other detections anywhere.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np

from sed.data.records import Dataset
from sed.evaluation import coco

CLASSES, OBJECTS, DETECTIONS, SIDE = 80, 7, 100, 640


def make(images: int, seed: int = 0) -> tuple[list[dict], Dataset]:
    """Detections and the set they are of."""
    rng = np.random.default_rng(seed)
    records, found = [], []
    for image in range(images):
        corner, size = rng.uniform(0, SIDE - 100, (OBJECTS, 2)), rng.uniform(8, 300, (OBJECTS, 2))
        boxes, classes = np.concatenate([corner, size], 1), rng.integers(0, CLASSES, OBJECTS)
        rows = [
            {"bbox": b.tolist(), "category_id": int(c), "iscrowd": 0, "area": float(b[2] * b[3])}
            for b, c in zip(boxes, classes, strict=True)
        ]
        records.append({"image_id": image, "file_name": "", "height": SIDE, "width": SIDE, "annotations": rows})
        chosen = rng.integers(0, OBJECTS, DETECTIONS)
        near = boxes[chosen] + rng.normal(0, 12, (DETECTIONS, 4))
        near[:, 2:] = np.maximum(near[:, 2:], 2)
        labels = np.where(rng.random(DETECTIONS) < 0.7, classes[chosen], rng.integers(0, CLASSES, DETECTIONS))
        scores = rng.random(DETECTIONS)
        found += [
            {"image_id": image, "category": int(c), "bbox": b.tolist(), "score": float(s)}
            for b, c, s in zip(near, labels, scores, strict=True)
        ]
    return found, Dataset("made", records, tuple(map(str, range(CLASSES))), tuple(range(1, CLASSES + 1)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    found, dataset = make(parser.parse_args().images)
    fastest, seconds, results = coco._fastest, [], []
    for slow in (False, True):
        coco._fastest = (lambda: (coco.COCO, coco.COCOeval)) if slow else fastest
        began = time.perf_counter()
        results.append(coco.score(found, dataset))
        seconds.append(time.perf_counter() - began)
        print(
            f"{'pycocotools' if slow else fastest()[1].__module__.partition('.')[0]}: {seconds[-1]:.1f} s", flush=True
        )
    gaps = [abs(a - b) for a, b in zip(*(row.values() for row in results), strict=True) if not math.isnan(a)]
    print(f"{seconds[1] / seconds[0]:.1f} times as fast; largest difference {max(gaps):.1e} of {len(gaps)} figures")


if __name__ == "__main__":
    main()
