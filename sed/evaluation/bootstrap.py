"""Is one detector better than another on the same images, or is it luck? A paired bootstrap over the images.

Images are drawn with replacement, as many as there are, and both detectors are scored on the same draw; the spread of
the difference over the draws is its uncertainty by the choice of test images (Efron and Tibshirani, An Introduction to
the Bootstrap, 1993, ch. 13, percentile interval). It says nothing of other seeds or other labelled images.

Shape shorthand: N images, D detections, T IoU thresholds, K classes, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sed.data.records import Dataset
from sed.evaluation.coco import compared

DRAWS, LEVEL = 1000, 0.95
LEAST_IMAGES = 5  # with objects: fewer draws of them say nothing, the interval is NaN
RECALLS = np.linspace(0.0, 1.0, 101)
_ALL_SIZES = "all"


@dataclass(frozen=True)
class ClassMatches:
    """What became of the detections of one class.

    Attributes:
        image: [D] the detections' images, 0..N-1, by falling score.
        right: [T, D] whether a detection has an object to itself.
        ignored: [T, D] whether it counts neither as right nor as wrong (it is on a crowd).
        objects: [N] objects to be found in each image, without crowds.
    """

    image: NDArray[np.int64]
    right: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    objects: NDArray[np.int64]


class Difference(NamedTuple):
    """A difference in AP, percent, with its interval over draws of images."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def matches(found: Sequence[dict[str, Any]], dataset: Dataset) -> list[ClassMatches]:
    """What became of detections (of `sed.evaluation.coco.detect_all`) by COCO's rules, class by class."""
    run = compared(found, dataset)
    images, limit, thresholds = len(dataset.records), run.params.maxDets[-1], len(run.params.iouThrs)
    size = run.params.areaRngLbl.index(_ALL_SIZES)
    rows = [run.evalImgs[(k * len(run.params.areaRng) + size) * images :][:images] for k in range(len(dataset.classes))]
    result = []
    for row in rows:  # of one class, image by image; None: neither objects nor detections
        there = [(image, entry) for image, entry in enumerate(row) if entry is not None]
        scores = np.concatenate([np.zeros(0), *(entry["dtScores"][:limit] for _, entry in there)])
        order = np.argsort(-scores, kind="mergesort")
        image = np.concatenate([np.full(len(e["dtScores"][:limit]), i) for i, e in there] or [np.zeros(0)])
        empty = np.zeros((thresholds, 0))
        matched = np.concatenate([empty, *(e["dtMatches"][:, :limit] for _, e in there)], axis=1) > 0
        ignored = np.concatenate([empty, *(e["dtIgnore"][:, :limit] for _, e in there)], axis=1) > 0
        objects = np.zeros(images, dtype=np.int64)
        for i, entry in there:
            objects[i] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
        result.append(
            ClassMatches(image[order].astype(int), (matched & ~ignored)[:, order], ignored[:, order], objects)
        )
    return result


def average_precision(of: Sequence[ClassMatches], draws: NDArray[np.int64]) -> NDArray[np.float64]:
    """COCO's AP (mean over T thresholds, 101 recalls) in percent, on draws of the images.

    Args:
        of: K classes.
        draws: [B, N], how often each image is in each draw; all 1: the set itself.

    Returns:
        [B, K]; NaN where a draw has no object of a class.
    """
    result = np.full((len(draws), len(of)), np.nan)
    for k, one in enumerate(of):
        at = [np.flatnonzero(row) for row in one.right]  # precision is highest at right detections
        for b in np.flatnonzero(draws @ one.objects):
            weights = draws[b, one.image]  # [D]
            objects = draws[b] @ one.objects
            counted = np.cumsum(weights)
            precisions = [
                _mean_precision(
                    weights[here], (np.cumsum(weights * ~ignored) if ignored.any() else counted)[here], objects
                )
                for here, ignored in zip(at, one.ignored, strict=True)
            ]
            result[b, k] = 100 * np.mean(precisions)
    return result


def _mean_precision(right: NDArray[np.int64], counted: NDArray[np.int64], objects: int) -> float:
    """The mean over 101 recalls of the precision.

    Args:
        right: [R] how often each right detection is there, by falling score.
        counted: [R] how many detections there are up to each.
        objects: to be found, > 0.
    """
    reached = np.cumsum(right)
    precision = reached / np.maximum(counted, 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # 0: recalls never reached
    return float(envelope[np.searchsorted(reached / objects, RECALLS, side="left")].mean())


def compare(
    first: Sequence[dict[str, Any]],
    second: Sequence[dict[str, Any]],
    dataset: Dataset,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Difference]:
    """The AP of `second` minus that of `first`, with percentile intervals over draws of the images.

    Args:
        first: detections of one detector on the images of `dataset`, see `sed.evaluation.coco.detect_all`.
        second: of the other.
        dataset: at least one image.
        draws: B.
        level: share of the draws inside the interval, in (0, 1).
        seed: of the draws.

    Returns:
        "AP", and each class of which there is an object, by its name.
    """
    sides = [matches(found, dataset) for found in (first, second)]
    images = len(dataset.records)
    generator = np.random.default_rng(seed)
    drawn = np.concatenate([np.ones((1, images), int), generator.multinomial(images, [1 / images] * images, draws)])
    few = [np.count_nonzero(one.objects) < LEAST_IMAGES for one in sides[0]]
    both = [average_precision(side, drawn) for side in sides]  # [1 + B, K]
    by_class = both[1] - both[0]
    there = np.flatnonzero(~np.isnan(by_class[0]))
    rows = {"AP": _mean(both[1][:, there]) - _mean(both[0][:, there])}
    found = {name: _interval(values, level) for name, values in rows.items()}
    if np.count_nonzero(sum(one.objects for one in sides[0])) < LEAST_IMAGES:
        found["AP"] = found["AP"]._replace(low=np.nan, high=np.nan)
    for k in there:
        row = _interval(by_class[:, k], level)
        found[dataset.classes[k]] = row._replace(low=np.nan, high=np.nan) if few[k] else row
    return found


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[B, K] -> [B]: the mean over the classes that a draw has; NaN where it has none."""
    there = ~np.isnan(values)
    counts = there.sum(1)
    return np.where(counts, np.where(there, values, 0).sum(1) / np.maximum(counts, 1), np.nan)


def _interval(values: NDArray[np.float64], level: float) -> Difference:
    rest = values[1:][~np.isnan(values[1:])]
    tail = 50 * (1 - level)
    low, high = np.percentile(rest, [tail, 100 - tail]) if rest.size else (np.nan, np.nan)
    return Difference(float(values[0]), float(low), float(high))
