"""Chooses the labelled images of a COCO json: by this project's rule, by those of others, or by the papers' protocols.

"10 % of COCO" is three different sets in published work, so results can be compared only with the same convention:

    sed               n images in hash order, see `sed.data.splits`: without replacement, nested
    unbiased_teacher  indices into the images that have a box, sorted by id; published as a file of indices
    soft_teacher      `numpy.random.choice` over the json's images, without replacement
    stac              the same with replacement: the set is smaller than asked for (about 9.5 % for 10 %)
    per_class         for every class the first K images in hash order that show it

The functions that take ids use nothing else. Those that take the whole content also read labels of images that end up
unlabelled or left out; their `Choice` and the manifest record that. numpy guarantees the streams of RandomState, so
that a seed gives the same images in every version.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sed.data.errors import DataError
from sed.data.splits import hash_order

Content = dict[str, Any]  # of a COCO json
LIKE = ("unbiased_teacher", "soft_teacher", "stac")
MAX_SEED = 2**32 - 1  # of numpy's RandomState
COCO_TRAIN_WITH_BOXES = 117266  # images of train2017 that the index file of Unbiased Teacher counts
OFFICIAL = {  # number of images of each part of the two protocols without a draw
    "coco_full": {"labeled": 118287, "unlabeled": 123403},
    "coco_35k": {"labeled": 35504, "unlabeled": 82783, "test": 5000},
}


@dataclass(frozen=True)
class Choice:
    """The ids of the images with and without labels, and how they were chosen.

    Attributes:
        labeled: ids, at least one.
        unlabeled: ids, none of them in `labeled`. Images in neither are left out.
        convention: see the module's docstring; or the protocol's name.
        test: ids to evaluate on, where the protocol defines them.
        reads_labels: whether the choice depends on labels of images outside `labeled`.
        notes: what to know when comparing with published results.
    """

    labeled: frozenset
    unlabeled: frozenset
    convention: str
    test: frozenset = frozenset()
    reads_labels: bool = False
    notes: tuple[str, ...] = ()


def choose_sed(ids: Sequence, percent: float = 0.0, count: int = 0, fold: int = 0) -> Choice:
    """The images that `sed.data.splits.split` labels.

    Raises:
        DataError: if none or more than all would be labelled.
    """
    wanted = count or math.floor(len(ids) * percent / 100 + 1e-9)
    _check_size(wanted, len(ids), f"{percent} % / {count} images")
    return _choice(hash_order(ids, fold)[:wanted], ids, "sed")


def choose_soft_teacher(ids: Sequence, percent: float, seed: int, offset: int = 0) -> Choice:
    """As SoftTeacher's tools/dataset/semi_coco.py: legacy numpy, without replacement, in the json's order.

    Args:
        ids: in the json's order.
        percent: rounded down.
        seed: published ones are 1 to 5.
        offset: the script's --seed-offset, which is added to the seed.

    Raises:
        DataError: if no image or more than all would be labelled, or for a seed that numpy does not take.
    """
    wanted = _wanted(percent, len(ids))
    index = _random(seed + offset).choice(len(ids), size=wanted, replace=False)
    note = (
        f"seed offset {offset}; the project's own shell script takes a random one and keeps no record of it, so its "
        "published sets are only in its published files"
    )
    return _choice([ids[i] for i in index], ids, "soft_teacher", notes=(note,))


def choose_stac(ids: Sequence, percent: float, seed: int) -> Choice:
    """As STAC's prepare_coco_data.py: legacy numpy, with replacement, duplicates merged.

    Args:
        ids: in the json's order.
        percent: rounded down; fewer different images come out.
        seed: published ones are 1 to 5.

    Raises:
        DataError: if no image or more than all would be labelled, or for a seed that numpy does not take.
    """
    wanted = _wanted(percent, len(ids))
    chosen = {ids[i] for i in _random(seed).choice(len(ids), size=wanted)}
    share = 100 * len(chosen) / len(ids)
    note = f"drawn with replacement: {wanted} draws are {len(chosen)} different images, {share:.2f} % of all"
    return _choice(chosen, ids, "stac", notes=(note,))


def choose_unbiased_teacher(
    content: Content, percent: float, seed: int, index_file: str | Path | None = None
) -> Choice:
    """As Unbiased Teacher: only images with a box take part, sorted by id, indexed by the published file.

    Images without a box (crowds do not count) are left out first, as in Detectron2's loader (filter_empty). That
    depends on labels, which an unlabelled image would not have.

    Args:
        content: a COCO json.
        percent: rounded down; of the images with a box.
        seed: the run of the index file (0 to 9); without a file the seed of `numpy.random.choice` without
            replacement, with which the authors say the file was made, its seed unknown.
        index_file: dataseed/COCO_supervision.txt of the project, or one like it: {percent: {run: indices}}.

    Raises:
        DataError: if the file is not one, has no such percent or run, or was made for another number of images.
    """
    every = [image["id"] for image in content["images"]]
    with_box = {a["image_id"] for a in content["annotations"] if _counts(a)}
    ids = sorted(image_id for image_id in every if image_id in with_box)
    wanted = _wanted(percent, len(ids))
    notes = [
        f"{len(every) - len(ids)} of {len(every)} images without a box were left out, labelled or not: this "
        "convention reads the labels of unlabelled images (filter_empty)"
    ]
    if index_file:
        index = _read_indices(index_file, percent, seed, wanted, len(ids))
        notes.append(f"indices of {Path(index_file).name}, {float(percent)}, run {seed}")
    else:
        index = _random(seed).choice(len(ids), size=wanted, replace=False).tolist()
        notes.append("no index file: drawn anew with this seed; the project's published sets need its index file")
    return _choice([ids[i] for i in index], ids, "unbiased_teacher", reads_labels=True, notes=tuple(notes))


def choose_per_class(content: Content, count: int, fold: int = 0) -> Choice:
    """For every class the first `count` images in hash order that show it (a box that is no crowd).

    The same as going through the images in hash order and labelling each that shows a class with fewer than `count`
    images. Every class has at least `count` labelled images, frequent ones more, since an image counts for each of its
    classes; the choice for `count` is part of that for `count` + 1. A class that no image shows is named in a note.

    Raises:
        DataError: for a class on fewer images, and where nothing would be left unlabelled.
    """
    ids = [image["id"] for image in content["images"]]
    rank = {image_id: place for place, image_id in enumerate(hash_order(ids, fold))}
    shows: dict[Any, set] = {category["id"]: set() for category in content["categories"]}
    for a in content["annotations"]:
        if not a.get("iscrowd"):
            shows[a["category_id"]].add(a["image_id"])
    names = {category["id"]: category["name"] for category in content["categories"]}
    few = sorted((len(found), names[c]) for c, found in shows.items() if 0 < len(found) < count)
    if few:
        named = ", ".join(f"{name} on {images}" for images, name in few[:5])
        raise DataError(
            f"--per-class {count}: {len(few)} classes are on fewer images ({named}); "
            f"ask for at most {few[0][0]}, or label more"
        )
    chosen = {i for found in shows.values() for i in sorted(found, key=rank.__getitem__)[:count]}
    _check_size(len(chosen), len(ids), f"{count} images per class")
    notes = [
        f"for every class the first {count} images in hash order that show it; images were passed over because of "
        "their labels"
    ]
    unseen = [names[c] for c, found in shows.items() if not found]
    if unseen:
        notes.append(f"{len(unseen)} classes are on no image and stay without labels: {', '.join(unseen[:5])}")
    return _choice(chosen, ids, "per_class", reads_labels=True, notes=tuple(notes))


def choose_full(train: Content, unlabeled: Content) -> Choice:
    """COCO-full: all of one file labelled, all of another unlabelled (train2017 and unlabeled2017)."""
    labeled, other = image_ids(train), image_ids(unlabeled)
    _check_apart({"labelled": labeled, "unlabelled": other})
    return Choice(labeled, other, "coco_full", notes=_official("coco_full", labeled, other))


def choose_35k(val2014: Content, train2014: Content, minival: Content) -> Choice:
    """COCO-35k: val2014 without minival (35k) labelled, train2014 unlabelled, minival for the test.

    Args:
        val2014: instances_val2014.json.
        train2014: instances_train2014.json.
        minival: instances_val2017.json, whose images are those of minival, or instances_minival2014.json.

    Raises:
        DataError: if minival does not lie within val2014, or a part is given twice.
    """
    val, unlabeled, test = image_ids(val2014), image_ids(train2014), image_ids(minival)
    if not test < val:
        raise DataError(
            f"coco_35k: {len(test - val)} of {len(test)} minival images are not in --annotations; "
            "give instances_val2014.json there and instances_val2017.json (or instances_minival2014.json) as --minival"
        )
    _check_apart({"labelled": val, "unlabelled": unlabeled})
    return Choice(val - test, unlabeled, "coco_35k", test, notes=_official("coco_35k", val - test, unlabeled, test))


def image_ids(content: Content) -> frozenset:
    """The image ids of a COCO json."""
    return frozenset(image["id"] for image in content["images"])


def _choice(labeled: Collection, every: Collection, convention: str, **more: Any) -> Choice:
    chosen = frozenset(labeled)
    return Choice(chosen, frozenset(every) - chosen, convention, **more)


def _wanted(percent: float, total: int) -> int:
    """The number of images of a percentage, rounded down in floating point exactly as in the three projects."""
    wanted = int(percent / 100.0 * total)
    _check_size(wanted, total, f"{percent} %")
    return wanted


def _check_size(wanted: int, total: int, asked: str) -> None:
    if not 1 <= wanted < total:
        raise DataError(
            f"split: {asked} of {total} would label {wanted} images; expected 1 to {total - 1}, so that some are "
            "labelled and some are not"
        )


def _random(seed: int) -> np.random.RandomState:
    if not 0 <= seed <= MAX_SEED:
        raise DataError(f"split: the seed {seed} is not one of numpy's, 0 to {MAX_SEED}")
    return np.random.RandomState(seed)  # the generator of these projects


def _counts(annotation: Content) -> bool:
    """Whether Detectron2's loader counts it: it is no crowd, and has no segmentation or a polygon of three points."""
    outline = annotation.get("segmentation")
    polygons = [p for p in outline if isinstance(p, list)] if isinstance(outline, list) else []
    lost = polygons and not any(len(p) % 2 == 0 and len(p) >= 6 for p in polygons)
    return annotation.get("iscrowd", 0) == 0 and not lost


def _read_indices(path: str | Path, percent: float, run: int, wanted: int, total: int) -> list[int]:
    try:
        content = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such index file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not an index file ({error})") from None
    key, percents = str(float(percent)), content if isinstance(content, dict) else {}
    runs = percents[key] if isinstance(percents.get(key), dict) else {}
    index = runs.get(str(run))
    if not isinstance(index, list):
        raise DataError(
            f'{path}: expected indices at ["{key}"]["{run}"]; its percents are {", ".join(percents) or "none"}, '
            f"its runs of {key} {', '.join(runs) or 'none'}"
        )
    valid = [i for i in index if type(i) is int and 0 <= i < total]
    if len(index) != wanted or len(set(valid)) != wanted:
        raise DataError(
            f"{path}: {percent} % of the {total} images with a box are {wanted}; it has {len(index)} indices, "
            f"{len(set(valid))} different ones in 0 to {total - 1}. The published file is for instances_train2017.json "
            f"with {COCO_TRAIN_WITH_BOXES} images that have a box"
        )
    return index


def _check_apart(parts: dict[str, frozenset]) -> None:
    (first, a), (second, b) = parts.items()
    if a & b:
        raise DataError(
            f"{len(a & b)} images are in both the {first} and the {second} file, the first has the id "
            f"{min(a & b, key=str)!r}; give each file once"
        )


def _official(protocol: str, *parts: Collection) -> tuple[str, ...]:
    expected = OFFICIAL[protocol]
    found = {name: len(ids) for name, ids in zip(expected, parts, strict=True)}
    if found == expected:
        return ()
    return (f"not the published numbers of images: {found}, {protocol} has {expected}",)
