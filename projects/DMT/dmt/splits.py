"""Who is labelled: the authors' nested splits, held-out images, and two halves as different as can be.

All functions give tuples of indices into one list of training images, and depend on nothing but their arguments:
Python's `random.Random` of a given seed draws the same on every machine. What a split rests on is the order of that
list.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from sed.data.errors import DataError

Indices = tuple[int, ...]
SEED = 7777  # the authors'


def nested_split(count: int, ratio: float, fold: int, seed: int = SEED) -> tuple[Indices, Indices]:
    """Labelled and unlabelled images of a segmentation set, in the authors' manner (their generate_splits.py).

    A generator is seeded once and shuffles one list fold + 1 times; the first floor(count / ratio) are labelled, and
    one more where that leaves 1 of a batch of 8 (batch norm). So within a fold a smaller labelled set lies in every
    greater one. Where the list is sorted by name, as VOC's 10,582 and Cityscapes' 2,975 are, these are the published
    splits, image by image (data_splits/ of their branch dst-cbc; VOC 1/106 is 105.82, Cityscapes 1/30 is 29.75).

    Args:
        count: images.
        ratio: one of so many is labelled, >= 1.
        fold: 0, 1, 2, ...
        seed: of the generator.

    Returns:
        (labelled, unlabelled), in the order in which they were drawn.

    Raises:
        DataError: for a ratio that labels no image or more than all, or a negative fold.
    """
    if ratio < 1 or count < ratio or fold < 0:
        raise DataError(f"split: expected a ratio from 1 to {count} and a fold >= 0, got {ratio} and {fold}")
    order = list(range(count))
    generator = random.Random(seed)
    for _ in range(fold + 1):
        generator.shuffle(order)
    size = int(count / ratio)
    size += size % 8 == 1
    return tuple(order[:size]), tuple(order[size:])


def per_class_split(
    labels: Sequence[int], per_class: int, fold: int, candidates: Sequence[int] | None = None
) -> tuple[Indices, Indices]:
    """So many labelled images of each class, as classification has it; nested over `per_class` within a fold.

    Args:
        labels: class of each image of the list, [N].
        per_class: labelled images of each class, >= 1.
        fold: which draw.
        candidates: indices to draw from; default: all. The others are in neither part.

    Returns:
        (labelled, unlabelled), each ascending.

    Raises:
        DataError: if a class has fewer candidates than that.
    """
    chosen: set[int] = set()
    pool = range(len(labels)) if candidates is None else candidates
    if per_class < 1:
        raise DataError(f"split: expected at least one labelled image of each class, got {per_class}")
    for label, members in _shuffled_by_class(labels, pool, f"labelled, fold {fold}").items():
        if len(members) < per_class:
            raise DataError(
                f"split: class {label} has {len(members)} images, {per_class} of each class are to be labelled"
            )
        chosen.update(members[:per_class])
    return tuple(sorted(chosen)), tuple(index for index in sorted(pool) if index not in chosen)


def hold_out(indices: Sequence[int], count: int, labels: Sequence[int] | None = None) -> tuple[Indices, Indices]:
    """Images for choosing a model ("valtiny"), and the rest.

    Segmentation: `indices` is the unlabelled list of `nested_split` and its last `count` are taken. So no labelled
    image is held out, and those of a fold are the same at every ratio that leaves `count` unlabelled; they differ
    between folds.
    Classification, with `labels`: `indices` is the whole list and `count` of each class are taken, before any are
    labelled: the same for every fold and every number of labels. CIFAR-10: 20 of each class, 49,800 are left.

    Args:
        indices: to take from.
        count: images, or images of each class; >= 1.
        labels: class of each image of the set, [N], which `indices` point into.

    Returns:
        (held out, rest), the rest in its order.

    Raises:
        DataError: if nothing would be left.
    """
    if labels is None:
        parts = [list(indices)]
    else:
        parts = list(_shuffled_by_class(labels, indices, "held out").values())
    if count < 1 or not parts or min(map(len, parts)) <= count:
        smallest = min(map(len, parts), default=0)
        raise DataError(f"held-out images: expected from 1 to {smallest - 1} (of each class), got {count}")
    held = tuple(index for part in parts for index in part[-count:])
    gone = set(held)
    return held, tuple(index for index in indices if index not in gone)


def difference_maximised(indices: Sequence[int], seed: int = SEED, common: float = 0.6) -> tuple[Indices, Indices]:
    """Two overlapping parts, for two models that begin alike (DMT, difference-maximised sampling).

    The list R of L is shuffled and n = ceil((1 - common) / 2 L): A has R[:L - n], B has R[n:]. With `common` = .6 (the
    authors') each has 80 % and they share 60 %; together they are all.

    Args:
        indices: of the labelled images.
        seed: of the shuffle.
        common: share of images in both, in [0, 1].

    Raises:
        DataError: if a part would be empty or `common` is not a share.
    """
    left_out = math.ceil((1 - common) / 2 * len(indices) - 1e-9)
    if not 0 <= common <= 1 or left_out >= len(indices):
        raise DataError(f"two parts of {len(indices)} labelled images with {common} in common: one would be empty")
    order = list(indices)
    random.Random(seed).shuffle(order)
    return tuple(order[: len(order) - left_out]), tuple(order[left_out:])


def _shuffled_by_class(labels: Sequence[int], indices: Sequence[int], seed: str) -> dict[int, list[int]]:
    """The indices of each class, ascending by class, each in an order of its own."""
    members: dict[int, list[int]] = {}
    for index in sorted(indices):
        members.setdefault(int(labels[index]), []).append(index)
    for label, found in members.items():
        random.Random(f"{seed}, class {label}").shuffle(found)
    return dict(sorted(members.items()))
