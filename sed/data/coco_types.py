"""The types of a COCO json's fields, settled where it is read: what is unambiguous is converted, the rest is an error.

Other tools write numbers as text ("7") or as 7.0, and ids in two ways in one file. One warning counts what was
converted.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAX_SIDE = 100_000  # pixels
_LARGEST = 2**63 - 1
log = logging.getLogger(__name__)


class Unusable(ValueError):
    """A value that its field cannot have; the message says what is expected."""


class Fault(NamedTuple):
    """A value that cannot be what its field is.

    Attributes:
        kind: "images", "categories" or "annotations".
        index: place in that list.
        field: of the item.
        text: what the field is, and what was expected.
        row: the item.
    """

    kind: str
    index: int
    field: str
    text: str
    row: Any

    @property
    def item(self) -> str:
        """The item's name in messages."""
        known = isinstance(self.row, dict) and "id" in self.row and self.field != "id"
        return f"{self.kind}[{self.index}]" + (f" (id {shown(self.row['id'])})" if known else "")


def settle_types(path: Path, content: dict[str, Any], labeled: bool, note: Callable[[Fault], None]) -> None:
    """Convert fields of `images`, `categories` and `annotations` in place; items with a fault are taken out.

    Afterwards ids of images are whole numbers or texts, of one kind in `images` and `annotations`; those of categories
    are whole numbers, names of files and categories are texts, sides are numbers of pixels or None (to be read from
    the file), iscrowd is 0, 1 or absent, and boxes are four numbers wherever they were four numbers written as text.

    Args:
        path: for messages.
        content: has the lists and fields that `sed.data.coco.read_json` asks for.
        labeled: whether there are annotations to read.
        note: called with every fault; it may raise.
    """
    images = content["images"]
    annotations = content["annotations"] if labeled else []
    changed: list[str] = []
    faulty: dict[str, set[int]] = {"images": set(), "categories": set(), "annotations": set()}

    def settle(
        kind: str,
        field: str,
        usual: type,
        convert: Callable[[Any], Any],
        limits: tuple[int, int] = (1 - _LARGEST, _LARGEST - 1),
    ) -> None:
        rows = content[kind] if kind != "annotations" else annotations
        values = [row.get(field) for row in rows]
        if set(map(type, values)) <= {usual} and (_fine_texts(values) if usual is str else _within(values, limits)):
            return
        for index, (row, value) in enumerate(zip(rows, values, strict=True)):
            if index in faulty[kind]:
                continue
            try:
                settled = convert(value)
            except Unusable as error:
                faulty[kind].add(index)
                note(Fault(kind, index, field, f"{field} is {shown(value)}; expected {error}", row))
                continue
            row[field] = settled
            if None not in (value, settled) and (type(settled) is not type(value) or settled != value):
                changed.append(f"{kind}[{index}].{field} {shown(value)}")

    texts = {type(row["id"]) for row in images} | {type(row["image_id"]) for row in annotations} <= {str}
    settle("images", "id", str if texts else int, _text_id if texts else _image_id)
    settle("annotations", "image_id", str if texts else int, _text_id if texts else _image_id)
    settle("images", "file_name", str, _file_name)
    for field in ("height", "width"):
        settle("images", field, int, _side, (1, MAX_SIDE))
    settle("categories", "id", int, _whole)
    settle("categories", "name", str, _name)
    named = {type(row["id"]) for row in annotations} <= {str}
    settle("annotations", "id", str if named else int, _text_id if named else _image_id)
    settle("annotations", "category_id", int, _whole)
    if any("iscrowd" in row for row in annotations):
        settle("annotations", "iscrowd", int, _crowd, (0, 1))
    for index, row in enumerate(annotations):
        box = row["bbox"]
        if type(box) is list and len(box) == 4 and str in map(type, box):
            try:
                row["bbox"] = [float(v) for v in box]
            except (ValueError, TypeError, OverflowError):
                continue  # told where boxes are checked
            changed.append(f"annotations[{index}].bbox {shown(box)}")
    for kind, numbers in faulty.items():
        if numbers:
            content[kind] = [row for index, row in enumerate(content[kind]) if index not in numbers]
    if changed:
        log.warning("%s: %d values of another type were converted, such as %s", path, len(changed), changed[0])


def is_box(box: Any) -> bool:
    """Whether it is [x, y, width, height] in pixels: four finite numbers that an image may have."""
    if not isinstance(box, list) or len(box) != 4:
        return False
    return all(isinstance(v, (int, float)) and -MAX_SIDE <= v <= MAX_SIDE for v in box)


def are_boxes(boxes: list[Any]) -> bool:
    """Whether `is_box` holds for all of them; quick."""
    try:
        table = np.array(boxes)
    except (TypeError, ValueError):  # of different lengths
        return False
    if table.dtype.kind not in "if" or table.shape[1:] != (4,):
        return not boxes
    return bool((np.abs(table) <= MAX_SIDE).all())


def _fine_texts(values: list[str]) -> bool:
    text = "\n".join(values)
    return "" not in values and "\0" not in text and (text.isascii() or _encodable(text))


def _within(numbers: list[int], limits: tuple[int, int]) -> bool:
    return not numbers or (limits[0] <= min(numbers) and max(numbers) <= limits[1])


def _whole(value: Any) -> int:
    """A whole number; of a text or a float what is plainly one."""
    if isinstance(value, str) and (plain := re.fullmatch(r"\s*(-?[0-9]{1,18})(\.0*)?\s*", value)):
        value = int(plain[1])
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST
    if not usable or value != int(value):
        raise Unusable("a whole number")
    return int(value)


def _image_id(value: Any) -> int | str:
    """A whole number, or a text that is none."""
    try:
        return _whole(value)
    except Unusable:
        if isinstance(value, str) and value and _encodable(value):
            return value
        raise Unusable("a whole number or a text") from None


def _text_id(value: Any) -> str:
    """A text: numbers written as text stay what they are where all ids are texts."""
    if not value or not _encodable(value):
        raise Unusable("a whole number or a text")
    return value


def _side(value: Any) -> int | float | None:
    """A number of pixels, whose fractions the reader rounds down; None, to be read from the file, for none and 0."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise Unusable(f"a number of pixels, 1 to {MAX_SIDE}") from None
    if value is None or (value == 0 and not isinstance(value, bool)):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= MAX_SIDE:
        raise Unusable(f"a number of pixels, 1 to {MAX_SIDE}")
    return value


def _file_name(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value or not _encodable(value):
        raise Unusable("the name of a file")
    return value


def _name(value: Any) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST
    if not number and not (isinstance(value, str) and value and _encodable(value)):
        raise Unusable("a name")
    return str(value)


def _crowd(value: Any) -> int:
    if value is None or value is False or value is True:
        return int(value or 0)
    try:
        number = _whole(value)
    except Unusable:
        number = -1
    if number not in (0, 1):
        raise Unusable("0 or 1")
    return number


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def shown(value: Any) -> str:
    """A value for a message, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
