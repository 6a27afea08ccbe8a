"""Checks the boxes of a data set, and counts them by class and image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from sed.checks.findings import Findings
from sed.checks.json_files import LABELLED, Source
from sed.data.coco import MIN_SIDE, ROUNDING

HUGE = 0.95  # least share of its image that a box fills to be reported
TINY = 4.0  # pixels of the shorter side, in training
SAME = 0.9  # least IoU of two boxes that are taken for one object
RARE = 5  # labelled boxes that a class should have
UNEQUAL = 100.0  # times as many boxes of the most frequent class as of the rarest
_SUSPICIOUS = 0.2  # share of boxes that stick out as [x, y, w, h] ...
_CONVINCING = 0.95  # ... and of boxes that are valid in another format: all of the set's boxes are in that format
_FEWEST = 3  # least number of boxes to judge the format of a set by


def check_boxes(source: Source, short_side: int, long_side: int, found: Findings) -> np.ndarray:
    """Check each box of a set, and the format of all of them.

    Args:
        source: what was read.
        short_side: INPUT.MIN_SIZE_TRAIN's upper end, pixels.
        long_side: INPUT.MAX_SIZE_TRAIN, pixels.
        found: the findings are added to it.

    Returns:
        [B] bool: the boxes that training can use, crowds included; none where the boxes are in another format.
    """
    boxes, sizes = source.boxes, source.sizes()
    finite = np.isfinite(boxes).all(1)
    _add(source, found, "box-nan", ~finite, lambda box, size: f"bbox is {_numbers(box)}")
    known = finite & (sizes > 0).all(1)
    x, y, w, h = np.where(finite[:, None], boxes, 0).T
    wide, high = sizes.T
    out = np.max([-x, -y, x + w - wide, y + h - high], axis=0)
    if _whole_set(source, known, out, found):
        return np.zeros(len(boxes), bool)
    sized = finite & (np.minimum(w, h) > 0)
    negative = finite & (np.minimum(w, h) < 0)
    _add(source, found, "box-negative", negative, lambda box, size: f"bbox {_numbers(box)}: {_size(box)}")
    _add(source, found, "box-empty", finite & ~negative & ~sized, lambda box, size: f"bbox {_numbers(box)}")
    left = np.minimum(np.minimum(x + w, wide) - np.maximum(x, 0), np.minimum(y + h, high) - np.maximum(y, 0))
    outside = known & sized & (left < MIN_SIDE)
    _add(source, found, "box-outside", outside, _beside)
    usable = known & sized & ~outside
    _add(source, found, "box-sticks-out", usable & (out > ROUNDING), _beside)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = w * h / (wide * high)
        scale = np.minimum(short_side / sizes.min(1), long_side / sizes.max(1))
    _add(source, found, "box-huge", usable & (share >= HUGE), lambda box, size: f"{_size(box)} of {_frame(size)}")
    tiny = usable & (np.minimum(w, h) * scale < TINY)
    _add(source, found, "box-tiny", tiny, lambda box, size: f"{_size(box)} of {_frame(size)}")
    _doubles(source, usable & ~source.crowd, found)
    return usable


def _add(
    source: Source, found: Findings, code: str, which: np.ndarray, text: Callable[[tuple, np.ndarray], str]
) -> None:
    sizes = source.sizes()
    for index in np.flatnonzero(which):
        box = tuple(float(v) for v in source.boxes[index])
        image = source.images[int(source.image[index])]["file_name"]
        found.add(code, source.file, source.item(index), text(box, sizes[index]), image, box)


def _numbers(box: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{v:g}" for v in box) + "]"


def _size(box: tuple[float, ...]) -> str:
    return f"{box[2]:g} x {box[3]:g} pixels"


def _frame(size: np.ndarray) -> str:
    return f"an image of {size[0]:g} x {size[1]:g} (width x height)"


def _beside(box: tuple[float, ...], size: np.ndarray) -> str:
    x, y, w, h = box
    return f"bbox {_numbers(box)} ends at {x + w:g}, {y + h:g}, in {_frame(size)}"


def _whole_set(source: Source, known: np.ndarray, out: np.ndarray, found: Findings) -> bool:
    """Whether the boxes of the set look as if they were in another format."""
    boxes, sizes = source.boxes[known], source.sizes()[known]
    if len(boxes) < _FEWEST:
        return False
    low = (boxes >= 0).all(1) & (boxes <= 1).all(1) & (boxes[:, 2:] > 0).all(1) & (sizes > 2).all(1)
    corners = (boxes[:, 2:] > boxes[:, :2]).all(1) & (boxes >= -ROUNDING).all(1)
    corners &= (boxes[:, 2:] <= sizes + ROUNDING).all(1)
    sticking = out[known] > ROUNDING
    first = int(np.flatnonzero(known)[0])
    if low.mean() >= _CONVINCING:
        code, text = "boxes-normalised", f"{low.sum()} of {len(boxes)} boxes hold only numbers from 0 to 1"
    elif sticking.mean() >= _SUSPICIOUS and corners.mean() >= _CONVINCING:
        code = "boxes-corners"
        text = (
            f"{sticking.sum()} of {len(boxes)} boxes stick out of their image, but {corners.sum()} fit if their last "
            "two numbers are the lower right corner"
        )
        first = int(np.flatnonzero(known)[np.flatnonzero(sticking)[0]])
    else:
        return False
    box = tuple(float(v) for v in source.boxes[first])
    image = source.images[int(source.image[first])]["file_name"]
    found.add(code, source.file, source.item(first), f"{text}; this one is {_numbers(box)}", image, box)
    return True


def _doubles(source: Source, which: np.ndarray, found: Findings) -> None:
    """Note boxes of one image that are nearly equal."""
    indices = np.flatnonzero(which)
    order = indices[np.argsort(source.image[indices], kind="stable")]
    borders = np.flatnonzero(np.diff(source.image[order])) + 1
    for group in np.split(order, borders):
        if len(group) < 2:
            continue
        corners = source.boxes[group].copy()
        corners[:, 2:] += corners[:, :2]
        low = np.maximum(corners[:, None, :2], corners[None, :, :2])
        high = np.minimum(corners[:, None, 2:], corners[None, :, 2:])
        inner = np.clip(high - low, 0, None).prod(2)
        area = source.boxes[group, 2:].prod(1)
        iou = np.triu(inner / (area[:, None] + area[None] - inner), 1)
        for second in np.flatnonzero((iou >= SAME).any(0)):  # each double once, with the first that it lies on
            first = int(np.flatnonzero(iou[:, second] >= SAME)[0])
            a, b = int(group[first]), int(group[second])
            same = source.category[a] == source.category[b]
            other, mine = (source.classes[source.category[i]] for i in (a, b))
            text = f"lies on annotation {source.numbers[a]} with IoU {iou[first, second]:.2f}"
            text += f", both {mine}" if same else f", which is {other}, this one {mine}"
            box = tuple(float(v) for v in source.boxes[b])
            image = source.images[int(source.image[b])]["file_name"]
            found.add("box-twice" if same else "box-two-classes", source.file, source.item(b), text, image, box)


def check_balance(
    sources: Sequence[Source], usable: Sequence[np.ndarray], labelled: Sequence[np.ndarray], found: Findings
) -> dict[str, int]:
    """Count the boxes of each class, and note classes and images with too few.

    Args:
        sources: all labelled sets, or all test sets.
        usable: [B] bool for each set, see `check_boxes`.
        labelled: [number of images] bool for each set: the images whose boxes training uses.
        found: the findings are added to it.

    Returns:
        Class name -> number of usable boxes of those images, crowds left out.
    """
    counts: Counter[str] = Counter()
    everywhere: Counter[str] = Counter()
    for source, good, seen in zip(sources, usable, labelled, strict=True):
        real = good & ~source.crowd
        if not real.any():
            text = f"none of its {len(source.numbers)} boxes can be used, in {len(source.images)} images"
            found.add("no-boxes", source.file, "annotations", text)
        for counter, which in ((everywhere, real), (counts, real & seen[source.image])):
            numbers = np.bincount(source.category[which], minlength=len(source.classes)).tolist()
            for name, number in zip(source.classes, numbers, strict=True):
                counter[name] += number
        _bare(source, real, seen, found)
    if not everywhere.total():
        return dict(counts)
    file, training = sources[0].file, sources[0].role == LABELLED
    for name, number in counts.items():
        if not everywhere[name]:
            found.add("category-unused", file, f"category {name}", "it has no usable box")
        elif number < RARE and training:
            before = f" ({everywhere[name]} before the split)" if everywhere[name] > number else ""
            found.add("class-rare", file, f"category {name}", f"{number} boxes in the labelled images{before}")
    present = {name: number for name, number in counts.items() if number}
    if training and present:
        most, least = max(present, key=present.get), min(present, key=present.get)
        if present[most] >= UNEQUAL * present[least]:
            text = f"{present[least]} boxes, but {present[most]} of {most}"
            found.add("classes-unequal", file, f"category {least}", text)
    return dict(counts)


def _bare(source: Source, real: np.ndarray, seen: np.ndarray, found: Findings) -> None:
    """Note images without a box."""
    with_box = np.zeros(len(source.images), bool)
    with_box[source.image[real]] = True
    bare = np.flatnonzero(~with_box & seen)
    if source.role == LABELLED and len(bare) > 0.5 * seen.sum():
        text = f"{len(bare)} of {int(seen.sum())} images have no box"
        found.add("mostly-empty", source.file, f"image {source.images[bare[0]]['image_id']} and others", text)
    for position in bare:
        record = source.images[position]
        item = f"image {record['image_id']} ({record['name']})"
        found.add("image-no-box", source.file, item, f"no usable box ({source.role} set)", record["file_name"])
