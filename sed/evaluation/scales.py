"""A detector over input scales: the ensemble of several test sizes, and how far scores move when an image is halved.

The ensemble (docs/method.md 9; Tab. 7 of the paper): "an ensemble with NMS (Threshold=0.5)" [P]. [O] NMS
is per class, as every detector here has it, and the best `limit` detections of an image are kept.

The score distance (Fig. 2b): "the absolute difference between the predictions of the image in different sizes", here of
X and of X^, its half-size copy, with the pairs of Eq. 2 (docs/method.md 2, 4, 5). The paper leaves open [O]:
    distance     Bernoulli scores: |p - p^|, of K classes the largest; softmax: total variation, sum |p - p^| / 2
    foreground   by ground truth and not by score, so that it is the same for all models and does not follow from the
                 distance: the anchors of the cell that holds an object's centre, in each level; a query whose
                 box on X has an IoU of at least 0.5 with an object
    background   anchors of cells whose own centre lies in no object (and no crowd); all other queries
What lies between, anchors beside an object's centre, counts for neither.

The number to compare models by, "GT", is about objects and has the same meaning for every model of a kind:
    region head  the mean distance of the regions at the ground-truth boxes, on X and halved on X^
    query head   the mean distance of foreground queries to their partners (Alg. 1)
    dense head   the mean over objects of |max p - max p^|, p the scores of the object's class by its foreground
                 anchors, of all levels of either view (an object may change levels and may leave the pyramid)

Shape shorthand: see `sed.core.structures`; G objects of an image, B anchors a cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms

from sed.core.boxes import clip_boxes, corners, iou_matrix
from sed.core.divergence import bernoulli_disagreement, categorical_disagreement
from sed.core.matching import match_views
from sed.core.structures import DenseLevel, DensePrediction, Images, QueryPrediction
from sed.core.views import downscale, pair_levels
from sed.data.mapper import ImageInfo
from sed.data.records import Dataset, Record
from sed.detectors.base import Detector

ENSEMBLE_IOU = 0.5  # of the ensemble's NMS [P]
FOREGROUND_IOU = 0.5  # from which a query's box is an object's
Sample = tuple[str, Tensor]  # name of what is counted, distances


def scaled_size(short: int, test_size: tuple[int, int]) -> tuple[int, int]:
    """(short side, limit of the long side) of test images whose short side shall be `short` instead of `test_size`'s.

    The limit, INPUT.MAX_SIZE_TEST, changes in proportion, so that an image keeps its form and none is smaller.
    """
    usual, longest = test_size
    return short, max(round(longest * short / usual), short)


def read_size(text: str, test_size: tuple[int, int]) -> tuple[int, int]:
    """(short side, limit of the long side) of a test size as it is typed.

    "480x1333" says both, as SIT prints them; "480" the short side alone, and the limit follows `scaled_size`.

    Raises:
        ValueError: for another form, a side below 1, or a limit below the short side.
    """
    numbers = text.lower().split("x")
    if len(numbers) > 2 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"{text}: expected a short side, as 480, or short side and long limit, as 480x1333")
    short, *longest = map(int, numbers)
    if min(short, *longest, short) < 1:
        raise ValueError(f"{text}: expected lengths in pixels, at least 1")
    if longest and longest[0] < short:
        raise ValueError(f"{text}: the long limit is below the short side")
    return (short, longest[0]) if longest else scaled_size(short, test_size)


def ensemble(runs: Iterable[Sequence[dict[str, Any]]], limit: int, iou: float = ENSEMBLE_IOU) -> list[dict[str, Any]]:
    """Detections of the same images in several sizes as one set.

    Args:
        runs: of each size, what `sed.evaluation.coco.detect_all` returns (boxes are in the files' own pixels).
        limit: detections kept an image, TEST.DETECTIONS_PER_IMAGE.
        iou: above which the lower scored of two boxes of a class is dropped.

    Returns:
        Rows of `runs`, image after image, best first.
    """
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for row in chain.from_iterable(runs):
        by_image.setdefault(row["image_id"], []).append(row)
    merged = []
    for rows in by_image.values():
        boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float64)  # [D, 4] xywh
        boxes[:, 2:] += boxes[:, :2]
        scores = torch.tensor([row["score"] for row in rows], dtype=torch.float64)
        classes = torch.tensor([row["category"] for row in rows])
        keep = batched_nms(boxes, scores, classes, iou)[:limit]
        merged += [rows[i] for i in keep.tolist()]
    return merged


# ------------------------------------------------------------------------------------------ score distance
@dataclass(frozen=True)
class Objects:
    """Ground truth of one image in the frame of X: boxes [G, 4], classes [G], and crowds [B, 4] that are no objects."""

    boxes: Tensor
    classes: Tensor
    crowds: Tensor

    @property
    def centres(self) -> Tensor:
        """[G, 2], (x, y)."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2


class Tally:
    """A histogram of distances over equal bins on [0, 1], and their sum."""

    def __init__(self, bins: int) -> None:
        self.counts, self.total = torch.zeros(bins, dtype=torch.int64), 0.0

    def add(self, distances: Tensor) -> None:
        """Count distances of any shape; the last bin holds 1."""
        distances = distances.flatten().double().cpu()
        bins = len(self.counts)
        self.counts += torch.bincount((distances * bins).long().clamp(max=bins - 1), minlength=bins)
        self.total += float(distances.sum())

    @property
    def mean(self) -> float:
        """NaN of nothing."""
        count = int(self.counts.sum())
        return self.total / count if count else float("nan")

    def summary(self, images: int) -> dict[str, Any]:
        """The mean distance, and the number of samples an image, whole and by bin."""
        per_image = (self.counts / max(images, 1)).tolist()
        return {"mean": self.mean, "per_image": sum(per_image), "histogram": per_image}


@torch.no_grad()
def score_distance(
    detector: Detector,
    loader: Iterable[tuple[Images, Sequence[ImageInfo]]],
    dataset: Dataset,
    device: torch.device | str,
    bins: int = 10,
) -> dict[str, Any]:
    """How far the scores of X and of X^ are apart.

    Args:
        detector: in eval mode, on `device`.
        loader: batches of X, such as `sed.data.loaders.test_loader`; one pass.
        dataset: whose records hold the ground truth of all images.
        device: where to.
        bins: M of the histograms.

    Returns:
        "GT", the number of the module's docstring in [0, 1] (NaN without an object), "images", and of each kind of
        sample {"mean", "per_image", "histogram"}, samples an image: with a dense head "foreground" and "background"
        anchors; with a region head "regions" at the ground-truth boxes, without one "objects"; with a query head
        "foreground" and "background" queries.
    """
    if "query" in detector.heads:
        names, headline, compare = ("foreground", "background"), "foreground", _compare_queries
    elif "region" in detector.heads:
        names, headline, compare = ("foreground", "background", "regions"), "regions", _compare_anchors
    else:
        names, headline, compare = ("foreground", "background", "objects"), "objects", _compare_anchors
    records = {record["image_id"]: record for record in dataset.records}
    tallies, count = {name: Tally(bins) for name in names}, 0
    for images, infos in loader:
        images = images.to(device)
        rows = zip(infos, images.sizes, strict=True)
        objects = [_objects(records[info.image_id], info, size, device) for info, size in rows]
        for name, distances in compare(detector, images, objects):
            tallies[name].add(distances)
        count += len(images)
    found = {name: tally.summary(count) for name, tally in tallies.items()}
    return {"GT": tallies[headline].mean, "images": count, **found}


def _objects(record: Record, info: ImageInfo, size: tuple[int, int], device: torch.device | str) -> Objects:
    """The record's annotations on the resized image of `size` (height, width); boxes of no area are left out."""
    rows = record["annotations"]
    boxes = torch.tensor([a["bbox"] for a in rows], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes = clip_boxes(boxes * boxes.new_tensor([*info.scale, *info.scale]), size).float()
    classes = torch.tensor([a["category_id"] for a in rows], dtype=torch.int64)
    crowd = torch.tensor([bool(a["iscrowd"]) for a in rows], dtype=torch.bool)
    real = ~crowd & (boxes[:, 2:] > boxes[:, :2]).all(1)
    return Objects(boxes[real].to(device), classes[real].to(device), boxes[crowd].to(device))


# --- anchors and regions
def _compare_anchors(detector: Detector, images: Images, objects: Sequence[Objects]) -> Iterator[Sample]:
    images = images.pad_to_multiple(detector.size_divisibility * 2)
    views = [detector.encode(view) for view in (images, downscale(images, 1))]
    full, small = (detector.dense(view) for view in views)
    for one, other in pair_levels(full, small, 1):
        distance = bernoulli_disagreement(one.logits, other.logits).amax(-1)  # [N, A]
        valid = one.valid & other.valid
        for n, image in enumerate(objects):
            inside, held = _places(one, image)
            yield "foreground", distance[n, held & valid[n]]
            yield "background", distance[n, ~held & ~inside & valid[n]]
    if "region" in detector.heads:
        if any(len(image.boxes) for image in objects):
            boxes = [image.boxes for image in objects]
            here = detector.regions(views[0], boxes)
            there = detector.regions(views[1], [b / 2 for b in boxes])
            yield "regions", categorical_disagreement(here.logits, there.logits)  # [R]
    else:
        for n, image in enumerate(objects):
            here = _seen(full, n, image.centres, image.classes)
            there = _seen(small, n, image.centres / 2, image.classes)
            yield "objects", (here - there).abs()  # [G]


def _places(level: DenseLevel, image: Objects) -> tuple[Tensor, Tensor]:
    """Which anchors' cells have their centre in an object or crowd, and which cells hold an object's centre: [A]."""
    (rows, columns), stride = level.grid, 2**level.level
    per_cell = level.logits.shape[1] // (rows * columns)
    device = level.logits.device
    y, x = ((torch.arange(count, device=device) + 0.5) * stride for count in level.grid)
    around = torch.cat([image.boxes, image.crowds])[:, None]  # [.., 1, 4]
    high = (y >= around[..., 1]) & (y < around[..., 3])  # [.., rows]
    wide = (x >= around[..., 0]) & (x < around[..., 2])  # [.., columns]
    inside = (high[:, :, None] & wide[:, None, :]).any(0).flatten().repeat_interleave(per_cell)
    held = torch.zeros_like(inside)
    held[_centre_anchors(level, image.centres).flatten()] = True
    return inside, held


def _centre_anchors(level: DenseLevel, centres: Tensor) -> Tensor:
    """The anchors [G, B] of the cells that hold `centres` [G, 2]."""
    rows, columns = level.grid
    per_cell = level.logits.shape[1] // (rows * columns)
    column, row = (centres / 2**level.level).long().unbind(-1)  # [G]; a centre lies within its image
    return (row * columns + column)[:, None] * per_cell + torch.arange(per_cell, device=centres.device)


def _seen(prediction: DensePrediction, n: int, centres: Tensor, classes: Tensor) -> Tensor:
    """The best score [G] of each object's class by its foreground anchors of all levels, in image `n`."""
    best = centres.new_zeros(len(centres))
    for level in prediction.levels:
        index = _centre_anchors(level, centres)  # [G, B]
        best = torch.maximum(best, level.logits[n].float().sigmoid()[index, classes[:, None]].amax(1))
    return best


# --- queries
def _compare_queries(detector: Detector, images: Images, objects: Sequence[Objects]) -> Iterator[Sample]:
    for n, image in enumerate(objects):
        whole, size = _without_padding(images, n, detector.size_divisibility * 2), images.sizes[n]
        full, small = (detector.queries(detector.encode(view)) for view in (whole, downscale(whole, 1)))
        partners = match_views([(full, small)])[0][0]  # [Q]
        distance = _query_distance(full, small.logits[0, partners])  # [Q]
        fractions = image.boxes / image.boxes.new_tensor([size[1], size[0], size[1], size[0]])
        iou = iou_matrix(corners(full.boxes[0].float()), fractions)  # [Q, G]
        foreground = (iou >= FOREGROUND_IOU).any(1)
        yield "foreground", distance[foreground]
        yield "background", distance[~foreground]


def _query_distance(full: QueryPrediction, logits: Tensor) -> Tensor:
    if full.softmax:
        return categorical_disagreement(full.logits[0], logits)
    return bernoulli_disagreement(full.logits[0], logits).amax(-1)


def _without_padding(images: Images, n: int, size_divisibility: int) -> Images:
    """Image `n` alone, stretched to the nearest sides that `size_divisibility` divides.

    Some of the family measure boxes in the image and some in the padded frame; without padding both are one.
    """
    height, width = images.sizes[n]
    pixels = images.tensor[n : n + 1, :, :height, :width].float()
    size = tuple(max(round(side / size_divisibility), 1) * size_divisibility for side in (height, width))
    if size != (height, width):
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    return Images(pixels, (size,))


def format_distances(found: Mapping[str, Any]) -> str:
    """What `score_distance` returns as a few lines of text."""
    lines = [f"score distance between full and half size: {found['GT']:.3f} (GT)"]
    rows = {name: row for name, row in found.items() if isinstance(row, Mapping)}
    width = max(map(len, rows))
    for name, row in rows.items():
        bins = " ".join(f"{count:.4g}" for count in row["histogram"])
        lines.append(f"  {name:<{width}}  mean {row['mean']:.3f}, {row['per_image']:.1f} an image, by distance: {bins}")
    return "\n".join(lines)
