"""What a run leaves for the eye: pseudo-labels and dynamic weights by round (Fig. 6), scores by round (Fig. 9).

Ground truth of unlabelled images is looked at here only, for the error rate of pseudo-labels (Fig. 1) and beside the
pictures; nothing of it reaches a training.

Shape shorthand: H and W of an image's file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from dmt.build import Data
from dmt.curriculum import confidence_of, thresholded
from dmt.label_store import LabelStore
from dmt.loss import IGNORED, dynamic_weight
from dmt.pictures import paint_labels, paint_weights, progress_page, sheet, tiles
from dmt.training import Recipe

MEASURED = 200  # unlabelled images whose truth tells a segmentation round's error rate
PICTURE = "pseudo_labels.png"


def label_error(data: Data, store: LabelStore, thresholds: np.ndarray) -> float:
    """Share of wrong ones among the kept pseudo-labels, in [0, 1]; segmentation: on the first MEASURED images."""
    if data.segmentation:
        own, train = data.unlabeled[:MEASURED], data.train
        found: Iterable[Any] = ((*store.read(train.keys[i]), train.target(i)) for i in own)
    else:
        keys, labels, codes = store.read_table()
        truth = {data.train.keys[i]: data.train.target(i) for i in data.unlabeled}
        found = [(labels, codes, np.array([truth[key] for key in keys]))]
    wrong = total = 0
    for labels, codes, truth in found:
        labels = thresholded(labels, codes, thresholds)
        counted = (labels != IGNORED) & (truth != IGNORED)
        wrong += int((labels != truth)[counted].sum())
        total += int(counted.sum())
    return wrong / max(total, 1)


def save_weights(
    folder: Path,
    data: Data,
    indices: Sequence[int],
    labels: Callable[[int], tuple[Any, Any]],
    recipe: Recipe,
    ask: Callable[[np.ndarray], Tensor],
) -> None:
    """The dynamic weights of a finished training on some of its pseudo-labelled images, as folder/weights/<key>.png.

    Args:
        folder: of the training.
        data: of the run.
        indices: which images; few.
        labels: index -> the labels and codes that it learned from.
        recipe: of the training; its greatest exponents count.
        ask: image -> logits of the trained model.
    """
    (folder / "weights").mkdir(exist_ok=True)
    for index in indices:
        own, codes = (torch.as_tensor(np.asarray(value)).long() for value in labels(index))
        found = dynamic_weight(
            ask(data.train.image(index)).cpu()[None],
            own[None],
            confidence_of(codes)[None],
            torch.ones(1, dtype=torch.bool),
            kind=recipe.kind,
            threshold=recipe.threshold,
            gamma1=recipe.gamma1,
            gamma2=recipe.gamma2,
        )
        pixels = (found.weight[0] * 255).round().byte().numpy()
        cv2.imwrite(str(folder / "weights" / f"{data.train.keys[index]}.png"), np.atleast_2d(pixels))


def save_pictures(folder: Path, results: Sequence[Mapping[str, Any]], data: Data, indices: Sequence[int]) -> None:
    """pseudo_labels.png and progress.html of a finished run.

    Args:
        folder: of the run.
        results: of its stages, in their order.
        data: of the run.
        indices: unlabelled images to show; few. Those whose labels and weights lie there: a resumed run may be asked
            for more than its first rounds kept, and for classification the last round must have learned them.
    """
    progress_page(folder / "progress.html", results)
    rounds = [r for r in results if r["kind"] == "train" and r["model"] == "A" and r["labels"]]
    if not rounds or not indices:
        return
    thresholds = {r["name"]: np.asarray(r["thresholds"]) for r in results if r["kind"] == "label"}
    if not data.segmentation:
        _tiles(folder, rounds[-1], data, indices)
        return
    rows = []
    for index in indices:
        key, image = data.train.keys[index], data.train.image(index)
        stores = [store_of(folder / stage["labels"]) for stage in rounds]
        weights = [folder / stage["name"] / "weights" / f"{key}.png" for stage in rounds]
        if not all(key in store for store in stores) or not all(path.exists() for path in weights):
            continue
        above = [(image, key), (paint_labels(data.train.target(index)), "truth")]
        below = [(np.full_like(image, 255), "")] * 2
        for stage in rounds:
            labels = thresholded(*store_of(folder / stage["labels"]).read(key), thresholds[stage["labels"]])
            above.append((paint_labels(labels), f"labels {stage['round']}"))
            below.append((paint_weights(_weights(folder, stage, key)), f"weights {stage['round']}"))
        rows += [above, below]
    if rows:
        sheet(folder / PICTURE, rows)


def store_of(folder: Path) -> LabelStore:
    """The pseudo-labels of a labelling: the re-normalised ones where there are any."""
    renormalised = folder / "renormalised"
    return LabelStore(renormalised if renormalised.exists() else folder)


def _tiles(folder: Path, stage: Mapping[str, Any], data: Data, indices: Sequence[int]) -> None:
    """Whole images with label, confidence and weight (percent), wrong labels marked."""
    keys, labels, codes = store_of(folder / stage["labels"]).read_table()
    row_of = {key: row for row, key in enumerate(keys)}
    pictures, captions = [], []
    for index in indices:
        key = data.train.keys[index]
        if (folder / stage["name"] / "weights" / f"{key}.png").exists():
            row = row_of[key]
            mark = "" if data.train.target(index) == labels[row] else "!"
            confidence, weight = float(confidence_of(codes[row])), float(_weights(folder, stage, key)[0, 0])
            pictures.append(data.train.image(index))
            captions.append(f"{data.classes[labels[row]]}{mark} {100 * confidence:.0f} {100 * weight:.0f}")
    if pictures:
        tiles(folder / PICTURE, pictures, captions)


def _weights(folder: Path, stage: Mapping[str, Any], key: str) -> np.ndarray:
    return cv2.imread(str(folder / stage["name"] / "weights" / f"{key}.png"), cv2.IMREAD_GRAYSCALE) / 255
