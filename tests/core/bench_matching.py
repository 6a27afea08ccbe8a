"""What the matching of a step costs on one CPU core: two terms, 8 images.

.venv/bin/python -m tests.core.bench_matching
"""

from __future__ import annotations

import statistics
import time

import torch

from sed.core.matching import match_views
from tests.reference.queries import random_queries

SETTINGS = ((20, 5, False), (100, 20, True), (300, 80, False))  # queries, classes, softmax


def main() -> None:
    """Print the median of three calls of each setting, milliseconds."""
    torch.set_num_threads(1)
    for count, classes, softmax in SETTINGS:
        views = [random_queries(seed, 8, count, classes, softmax, torch.float32) for seed in range(4)]
        pairs = [(views[0], views[1]), (views[2], views[3])]
        times = []
        for _ in range(4):
            start = time.perf_counter()
            match_views(pairs)
            times.append(time.perf_counter() - start)
        head = "softmax" if softmax else "sigmoid"
        print(f"{count} queries, {classes} classes ({head}): {1000 * statistics.median(times[1:]):.1f} ms")


if __name__ == "__main__":
    main()
