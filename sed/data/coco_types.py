"""The types of a COCO json's fields, settled where it is read: what is unambiguous is converted, the rest is an error.

Other tools write numbers as text ("7") or as 7.0, and ids in two ways in one file. One warning counts what was
converted.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sed.data.errors import DataError

MAX_SIDE = 100_000  # pixels
_LARGEST = 2**63 - 1
log = logging.getLogger(__name__)


class Unusable(ValueError):
    """A value that its field cannot have; the message says what is expected."""


def settle_types(path: Path, content: dict[str, Any], labeled: bool) -> None:
    """Convert fields of `images`, `categories` and `annotations` in place.

    Afterwards ids of images are whole numbers or texts, of one kind in `images` and `annotations`; those of categories
    and sides are whole numbers, names of files and categories are texts, and boxes are four numbers wherever they were
    four numbers written as text.

    Args:
        path: for messages.
        content: has the lists and fields that `sed.data.coco.read_json` asks for.
        labeled: whether there are annotations to read.

    Raises:
        DataError: for a value that cannot be what its field is; it names file, item, field and what is expected.
    """
    images, categories = content["images"], content["categories"]
    annotations = content["annotations"] if labeled else []
    changed: list[str] = []

    def settle(rows: list[dict], kind: str, field: str, usual: type, convert: Callable[[Any], Any]) -> None:
        values = [row[field] for row in rows]
        if set(map(type, values)) <= {usual} and (usual is str or not values or _small(values)):
            return
        for index, row in enumerate(rows):
            if type(row[field]) is usual and (usual is str or abs(row[field]) <= _LARGEST):
                continue
            try:
                value = convert(row[field])
            except Unusable as error:
                item = f"{kind}[{index}] (id {row.get('id')!r})" if field != "id" else f"{kind}[{index}]"
                raise DataError(f"{path}: {item}: {field} is {_shown(row[field])}; expected {error}") from None
            if type(value) is not type(row[field]) or value != row[field]:
                changed.append(f"{kind}[{index}].{field} {_shown(row[field])}")
                row[field] = value

    texts = {type(row["id"]) for row in images} | {type(row["image_id"]) for row in annotations} <= {str}
    settle(images, "images", "id", str if texts else int, _image_id)
    settle(annotations, "annotations", "image_id", str if texts else int, _image_id)
    settle(images, "images", "file_name", str, _text)
    for field in ("height", "width"):
        settle(images, "images", field, int, _side)
    settle(categories, "categories", "id", int, _whole)
    settle(categories, "categories", "name", str, _name)
    named = {type(row["id"]) for row in annotations} <= {str}
    settle(annotations, "annotations", "id", str if named else int, _image_id)
    settle(annotations, "annotations", "category_id", int, _whole)
    if nameless := [index for index, row in enumerate(categories) if not row["name"]]:
        raise DataError(f"{path}: categories[{nameless[0]}]: name is ''; expected a name")
    for index, row in enumerate(annotations):
        box = row["bbox"]
        if type(box) is list and len(box) == 4 and str in map(type, box):
            try:
                row["bbox"] = [float(v) for v in box]
            except (ValueError, TypeError):
                continue  # told where boxes are checked
            changed.append(f"annotations[{index}].bbox {box}")
    for index, image in enumerate(images):
        name = image["file_name"]
        if not name or "\0" in name or not _encodable(name):
            raise DataError(f"{path}: images[{index}]: file_name is {_shown(name)}; expected the name of a file")
        for field in ("height", "width"):
            if image[field] > MAX_SIDE:
                raise DataError(
                    f"{path}: images[{index}] ({name}): {field} is {image[field]}; expected at most {MAX_SIDE} pixels"
                )
    if changed:
        log.warning("%s: %d values of another type were converted, such as %s", path, len(changed), changed[0])


def _small(numbers: list[int]) -> bool:
    return -_LARGEST <= min(numbers) and max(numbers) <= _LARGEST


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
        if isinstance(value, str) and value:
            return value
        raise Unusable("a whole number or a text") from None


def _side(value: Any) -> int | float:
    """A number of pixels; fractions are left to the reader, which rounds down."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise Unusable("a number of pixels") from None
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST
    if not usable:
        raise Unusable("a number of pixels")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Unusable("the name of a file")
    return value


def _name(value: Any) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST
    if not number and not (isinstance(value, str) and value):
        raise Unusable("a name")
    return str(value)


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
