"""Decodes all images of all sets in parallel, and checks the files."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import cv2
import numpy as np

from sed.checks.findings import Findings
from sed.checks.json_files import UNLABELLED, Source, image_item
from sed.data.errors import DataError
from sed.data.frames import fits_turned, wrong_frame
from sed.data.hashes import difference_hash
from sed.data.images import Header, file_content, image_header, lacks_detail, read_pixels

SMALL = 32  # pixels of the shorter side under which an image is "very small"
NARROW = 5.0  # longer by shorter side
_BLANK = 1.0  # standard deviation of grey values below which an image is blank
THUMB = 16  # side of the thumbnail that near duplicates are compared by
_AHEAD = 8  # files that wait for each thread


@dataclass(frozen=True)
class Facts:
    """The properties of one image file.

    Attributes:
        path: the file.
        fault: code of the finding why it cannot be read; "": it can be.
        reason: the same in words.
        size: (width, height) as stored; (0, 0) if unknown.
        orientation: of EXIF, 1..8; 1: upright.
        mode: Pillow's: L, RGB, RGBA, P, CMYK, ...
        deep: whether it has 16 bits a channel.
        digest: SHA-1 of the file's bytes.
        dhash: 64-bit difference hash of the upright image.
        thumb: [THUMB * THUMB] bytes, grey values of the upright image made small.
        spread: standard deviation of its grey values.
    """

    path: str
    fault: str = ""
    reason: str = ""
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    mode: str = "RGB"
    deep: bool = False
    digest: bytes = b""
    dhash: int = 0
    thumb: bytes = b""
    spread: float = 0.0

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) after EXIF."""
        return self.size[::-1] if self.orientation >= 5 else self.size


def examine(path: str) -> Facts:
    """The properties of one file, read and decoded; it raises nothing, see `Facts.fault`."""
    try:
        data = file_content(path)
    except DataError as error:
        return Facts(path, "image-missing", _reason(path, error))
    digest = hashlib.sha1(data, usedforsecurity=False).digest()
    try:
        header = image_header(path)
    except DataError as error:
        return Facts(path, "image-unreadable", _reason(path, error), digest=digest)
    deep = header.mode[0] in "IF" or (data[:4] == b"\x89PNG" and data[24] == 16)
    size, orientation, mode = header.stored[::-1], header.orientation, header.mode
    try:
        pixels = read_pixels(path)
        if header.progressive and lacks_detail(data):
            raise DataError(f"{path}: truncated image (its detail is missing)")
    except DataError as error:
        reason = _reason(path, error)
        code = "image-truncated" if reason.startswith("truncated") else "image-unreadable"
        return Facts(path, code, reason, size=size, orientation=orientation, digest=digest)
    height, width = header.size
    small = cv2.resize(pixels, (9 * 8, 8 * 8), interpolation=cv2.INTER_AREA)  # both grids below are made from this
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    dhash = difference_hash(grey)
    thumb = cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA).tobytes()
    spread = float(np.std(pixels[:: max(1, height // 256), :: max(1, width // 256)].mean(2)))
    return Facts(path, "", "", size, orientation, mode, deep, digest, dhash, thumb, spread)


def _reason(path: str, error: DataError) -> str:
    return str(error).removeprefix(f"{path}: ").removesuffix("; repair or remove it")


def examine_files(
    paths: Sequence[str], workers: int, progress: Callable[[Iterable[Facts], int], Iterable[Facts]]
) -> dict[str, Facts]:
    """Path -> properties of image files, examined by `workers` threads.

    Threads are enough: reading, hashing and decoding release the GIL.

    Args:
        paths: each file once.
        workers: number of threads; 1 or less: only this one.
        progress: wraps the iterator over results, given the number of files; shows a bar.
    """
    facts = progress(_results(paths, workers), len(paths))
    return {item.path: item for item in facts}


def _results(paths: Sequence[str], workers: int) -> Iterator[Facts]:
    if workers <= 1:
        yield from map(examine, paths)
        return
    rest = iter(paths)
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque(pool.submit(examine, path) for path in islice(rest, _AHEAD * workers))
        try:
            while waiting:  # a bounded queue, in order
                yield waiting.popleft().result()
                waiting.extend(pool.submit(examine, path) for path in islice(rest, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def default_workers(wanted: int) -> int:
    """The number of threads: `wanted`, but at least one and at most the cores of this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(wanted, cores))


def check_images(source: Source, facts: dict[str, Facts], found: Findings) -> None:
    """Check the image files of a set; where its records have no size, that of the file is filled in."""
    for record in source.images:
        path = record["file_name"]
        if not path:
            continue
        fact = facts[path]
        item = image_item(record)
        if fact.fault:
            found.add(fact.fault, path, item, f"{fact.reason} ({source.role}, {source.file})")
            continue
        stored, upright = fact.size, fact.upright
        said = (record["width"], record["height"])
        if said == (0, 0):
            record["width"], record["height"] = said = upright
        if said not in (stored, upright):
            turned = said == upright[::-1]
            text = f"the file is {_size(upright)}, {source.file} says {_size(said)}"
            text += "; width and height are swapped, or the image was turned" if turned else ""
            found.add("image-size", path, item, text, path)
        _check_form(source, record, fact, item, found)
    _check_frames(source, facts, found)


def _check_form(source: Source, record: dict, fact: Facts, item: str, found: Findings) -> None:
    path, said = fact.path, (record["width"], record["height"])
    text = f"{_size(fact.upright)} ({source.role}, {source.file})"
    if fact.orientation > 1:
        turn = f"EXIF orientation {fact.orientation}; stored as {_size(fact.size)}; {source.file} says {_size(said)}"
        clear = source.role == UNLABELLED or fact.size != fact.upright
        found.add("image-exif" if clear else "image-exif-unclear", path, item, turn, path)
    if fact.spread < _BLANK:
        found.add("image-blank", path, item, text, path)
    if min(fact.size) < SMALL:
        found.add("image-small", path, item, text, path)
    if max(fact.size) >= NARROW * min(fact.size):
        found.add("image-narrow", path, item, text, path)
    if fact.deep:
        found.add("image-16bit", path, item, text)
    if fact.mode in ("L", "LA", "1", "La") or fact.mode.startswith("I"):
        found.add("image-grey", path, item, text)
    if fact.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        found.add("image-alpha", path, item, text)


def _check_frames(source: Source, facts: dict[str, Facts], found: Findings) -> None:
    turned = [i for i, r in enumerate(source.images) if r["file_name"] and facts[r["file_name"]].orientation >= 5]
    for position in turned:
        record = source.images[position]
        fact, size = facts[record["file_name"]], (record["height"], record["width"])
        if size[::-1] in (fact.size, fact.upright) and fits_turned(size, source.boxes[source.image == position]):
            header = Header("", fact.mode, fact.size[::-1], fact.orientation, False)
            told = f"{wrong_frame(size, header)} ({source.role}, {source.file})"
            found.add("image-exif-boxes", record["file_name"], image_item(record), told, record["file_name"])


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} (width x height)"
