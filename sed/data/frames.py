"""Notices boxes that were drawn in the other frame of an image that EXIF turns: upright, or as it is stored.

Both occur: tools that show images in a browser draw on the upright one, and some of them write the size of the stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sed.core.structures import Size
from sed.data.errors import DataError
from sed.data.images import Header, image_header
from sed.data.records import Record

_FAR = 0.05  # share of its side by which a box must stick out: less is careless drawing


def fits_turned(size: Size, boxes: Sequence[Sequence[float]] | np.ndarray) -> bool:
    """Whether boxes [x, y, w, h] stick far out of an image of (height, width), but all fit one of (width, height)."""
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    if not len(corners) or not np.isfinite(corners).all() or size[0] == size[1]:
        return False
    most = (corners[:, :2] + corners[:, 2:]).max(0)  # x, y
    height, width = size
    out = max(most[0] / width, most[1] / height)
    return bool(out > 1 + _FAR and most[0] <= height + 1 and most[1] <= width + 1 and (corners >= -1).all())


def wrong_frame(size: Size, header: Header) -> str:
    """What to do where the boxes of an image turned by EXIF fit only the frame that is not of (height, width)."""
    which = "as it is stored" if size == header.size else "upright"
    return (
        f"turned by EXIF (orientation {header.orientation}): its boxes do not fit {size[1]} x {size[0]} (width x "
        f"height), the size given, but they fit the image {which}, {size[0]} x {size[1]}; swap its width and height "
        "in the annotation file, and it is read so"
    )


def check_frame(path: str | Path, record: Record, boxes: Sequence[Sequence[float]]) -> None:
    """Raise DataError where the boxes of a record fit only the other frame of its image.

    Args:
        path: of the annotation file, for the message.
        record: with file_name, image_id, height and width.
        boxes: [x, y, w, h] as they are written.
    """
    size = (record["height"], record["width"])
    if not fits_turned(size, boxes):
        return
    try:
        header = image_header(record["file_name"])
    except DataError:
        return  # it is told where the image is read
    if header.size != header.stored and size in (header.size, header.stored):
        told = wrong_frame(size, header)
        raise DataError(f"{path}: image {record['file_name']} (id {record['image_id']}) is {told}")
