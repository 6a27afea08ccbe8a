"""Reads image files: the one reader of sizes and of pixels, for training, evaluation, prediction, pictures and checks.

Pillow reads the header, OpenCV the pixels as they are stored; which way up they are is decided here, for both. Only
the EXIF orientation counts (a TIFF's is its tag), as in browsers and so in labelling tools; XMP does not.
"""

from __future__ import annotations

import functools
import os
import stat
import warnings
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from sed.core.structures import Size
from sed.data.errors import DataError

MAX_PIXELS = 2**27  # 134 million: a worker holds 400 MB of them; below the limit at which Pillow refuses
MAX_BYTES = 2**30  # of a file: MAX_PIXELS of four channels of 16 bits
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")
_BY_PILLOW = {("TIFF", "RGBA"), ("TIFF", "LAB")}  # OpenCV darkens by the transparency, and takes Lab for RGB
_ORIENTATION, _WIDTH, _HEIGHT = 0x0112, 256, 257  # tags
_TURNED_BACK = {6: 8, 8: 6}  # the orientation that undoes one; the others undo themselves
_STORED = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
_RGB = getattr(cv2, "IMREAD_COLOR_RGB", 0)  # OpenCV >= 4.11; saves a pass, but mixes up channels of 16-bit TIFF
_ENDINGS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}  # first bytes of JPEG, PNG -> what a whole file ends with
_REPAIR = "repair or remove it"
_GREY = 128  # libjpeg's value of what a file does not hold
_FILLING = b"\x55\xaa\x39\xc6" * 16  # bytes that are coefficients of a picture where one is missing
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the limit is MAX_PIXELS
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # of EXIF data that are no such


class Header(NamedTuple):
    """What an image file says of itself; sizes are (height, width).

    Attributes:
        format: Pillow's name: JPEG, PNG, ...
        mode: Pillow's: L, RGB, RGBA, P, CMYK, I;16, F, ...
        stored: the size of the pixels as they are stored.
        orientation: of EXIF, 1..8; 1: upright, 2 to 4: mirrored or upside down, 5 to 8: on its side.
        progressive: whether it is a JPEG that holds the whole picture several times, in growing detail.
    """

    format: str
    mode: str
    stored: Size
    orientation: int
    progressive: bool

    @property
    def size(self) -> Size:
        """The size of the upright image."""
        return self.stored[::-1] if self.orientation >= 5 else self.stored


def image_header(path: str | os.PathLike[str]) -> Header:
    """The header of an image file; its pixels are not read.

    Raises:
        DataError: for a file that cannot be read, that is no image, or one of more than MAX_PIXELS.
    """
    with _open(path) as stream:
        return _header(path, stream)


def read_pixels(path: str | os.PathLike[str], size: Size | None = None) -> np.ndarray:
    """The pixels of an image file, [H, W, 3] uint8 RGB, upright, whatever its channels and its depth.

    Greys are repeated, transparency is dropped, of several frames the first is taken. More than 8 bits become 8 so
    that the fewest of 8, 10, 12, ... bits that hold the brightest value fill the range: no 12-bit image is black.

    Args:
        path: of the file.
        size: (height, width) by which the image was labelled: where only the pixels as they are stored have it, they
            are not turned upright. None: any.

    Raises:
        DataError: for a file that cannot be read, is cut off, no image, too large, or not of this size.
    """
    with _open(path) as stream:
        data = np.fromfile(stream, np.uint8)
        _check_end(path, data[:2].tobytes(), data[-64:].tobytes(), stream)
        header = _header(path, stream)
        _check_size(path, header, size)
        image = _decode(path, stream, data, header)
    upright = size in (None, header.size)
    if header.format == "TIFF":  # both libraries turn it
        if not upright:
            image = _turn(image, _TURNED_BACK.get(header.orientation, header.orientation))
    elif upright:
        image = _turn(image, header.orientation)
    return image


def read_image(record: Mapping[str, Any]) -> np.ndarray:
    """The pixels of a record, see `read_pixels`: in the frame that has its height and width."""
    return read_pixels(record["file_name"], (record["height"], record["width"]))


def check_file(path: str | os.PathLike[str], size: Size | None = None) -> None:
    """Raise DataError if an image file is missing, no image, too large, a truncated JPEG or PNG, or not of `size`.

    Doubtful files only are decoded.

    Args:
        path: of the file.
        size: as of `read_pixels`.
    """
    with _open(path) as stream:
        head = stream.read(2)
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - 64))
        tail = stream.read()
        _check_end(path, head, tail, stream)
        _check_size(path, _header(path, stream), size)


def lacks_detail(content: bytes) -> bool:
    """Whether a progressive JPEG was cut off before its end mark, so that it is there as a whole, but blurred.

    It costs two decodings. A JPEG that lacks rows is told by `read_pixels`.

    Args:
        content: of the file.
    """
    image = _by_opencv(np.frombuffer(content, np.uint8).copy())
    return image is not None and _closed_early(content, image)


def file_content(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file.

    Raises:
        DataError: for a file that cannot be read, that is none, or of more than MAX_BYTES.
    """
    with _open(path) as stream:
        return stream.read()


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)  # AVIF is new in Pillow


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            if status.st_size > MAX_BYTES:
                raise DataError(f"{path}: {status.st_size} bytes; an image file has at most {MAX_BYTES}")
            return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise DataError(f"{path}: image cannot be read ({getattr(error, 'strerror', '') or error})") from None
    raise DataError(f"{path}: image cannot be read (no regular file)")


def _header(path: str | os.PathLike[str], stream: BinaryIO) -> Header:
    stream.seek(0)
    try:
        with Image.open(stream, formats=_formats()) as image:
            width, height = image.size
            if isinstance(image, TiffImageFile):
                width, height = int(image.tag_v2[_WIDTH]), int(image.tag_v2[_HEIGHT])
            if min(width, height) < 1:
                raise ValueError(f"{width} x {height} pixels")
            progressive = bool(image.info.get("progressive"))
            found = Header(str(image.format), image.mode, (height, width), _orientation(image), progressive)
    except Image.DecompressionBombError:
        found = None
    except Exception as error:  # plugins raise a dozen kinds; each means that these bytes are no image
        unknown = isinstance(error, UnidentifiedImageError)
        empty = not stream.seek(0, os.SEEK_END)
        what = "the file is empty" if empty else f"it is none of {', '.join(_formats())}"
        reason = what if unknown else f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: not a readable image ({reason}); {_REPAIR}") from None
    if found is None or found.stored[0] * found.stored[1] > MAX_PIXELS:
        size = f"{found.stored[1]} x {found.stored[0]} pixels, which is " if found else ""
        raise DataError(
            f"{path}: {size}more than the {MAX_PIXELS // 10**6} million pixels that are read of an image; cut it into "
            "tiles or make it smaller, its boxes with it"
        )
    return found


def _check_size(path: str | os.PathLike[str], header: Header, size: Size | None) -> None:
    if size is not None and size not in (header.size, header.stored):
        raise DataError(
            f"{path}: the image is {header.size[0]} x {header.size[1]} (height x width), its annotation file says "
            f"{size[0]} x {size[1]}; its boxes would be wrong, correct one of them"
        )


def _orientation(image: Image.Image) -> int:
    try:
        if isinstance(image, TiffImageFile):
            value = image.tag_v2.get(_ORIENTATION)
        elif "exif" in image.info:
            exif = Image.Exif()
            exif.load(image.info["exif"])
            value = exif.get(_ORIENTATION)
        else:
            return 1
    except Exception:  # as of a header: EXIF that cannot be read turns nothing
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _decode(path: str | os.PathLike[str], stream: BinaryIO, data: np.ndarray, header: Header) -> np.ndarray:
    """The pixels as stored; of a TIFF, upright."""
    image = None if (header.format, header.mode) in _BY_PILLOW else _by_opencv(data)
    if image is None:
        image = _by_pillow(path, stream)
    if image.dtype != np.uint8:
        image = _eight_bits(image)
    wanted = header.size if header.format == "TIFF" else header.stored
    if image.shape != (*wanted, 3):
        raise DataError(f"{path}: truncated or damaged image (its header says {wanted}, it holds {image.shape})")
    if (image[-1, -1] == _GREY).all() and _closed_early(data.tobytes(), image):
        raise DataError(f"{path}: truncated or damaged image (not all rows are there); {_REPAIR}")
    return image


def _by_opencv(data: np.ndarray) -> np.ndarray | None:
    direct = _RGB if data[:2].tobytes() == b"\xff\xd8" else 0
    try:
        image = cv2.imdecode(data, _STORED | (direct or cv2.IMREAD_COLOR))
    except cv2.error:
        return None
    return image if image is None or direct else cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def _by_pillow(path: str | os.PathLike[str], stream: BinaryIO) -> np.ndarray:
    """The same of what OpenCV cannot read; it tells why, where nothing can."""
    stream.seek(0)
    try:
        with Image.open(stream, formats=_formats()) as image:
            image.load()
            if image.mode[0] in "IF":  # more than 8 bits of grey
                return np.repeat(np.asarray(image)[..., None], 3, axis=2)
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # as of a header
        raise DataError(f"{path}: truncated or damaged image ({error}); {_REPAIR}") from None


def _eight_bits(image: np.ndarray) -> np.ndarray:
    if image.dtype.kind == "f":
        image = np.nan_to_num(image, nan=0, posinf=0, neginf=0)
        if image.max() <= 1:
            return np.asarray(np.rint(np.maximum(image, 0) * 255), np.uint8)
        image = np.clip(image, 0, 2.0**31 - 1).astype(np.int64)
    bits = int(image.max()).bit_length()
    return np.asarray(np.maximum(image, 0) >> max(0, bits + bits % 2 - 8), np.uint8)


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    match orientation:
        case 2:
            return cv2.flip(image, 1)
        case 3:
            return cv2.flip(image, -1)
        case 4:
            return cv2.flip(image, 0)
        case 5:
            return cv2.transpose(image)
        case 6:
            return cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE)
        case 7:
            return cv2.flip(cv2.transpose(image), -1)
        case 8:
            return cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE)
    return image


def _closed_early(content: bytes, image: np.ndarray) -> bool:
    """Whether bytes put before the end mark of a JPEG are decoded: of a whole one they are never looked at."""
    end = content.rfind(_ENDINGS[b"\xff\xd8"])
    if not content.startswith(b"\xff\xd8") or end < 0:
        return False
    again = _by_opencv(np.frombuffer(content[:end] + _FILLING + content[end:], np.uint8).copy())
    return again is None or not np.array_equal(again, image)


def _check_end(path: str | os.PathLike[str], head: bytes, tail: bytes, stream: BinaryIO) -> None:
    if head in _ENDINGS and _ENDINGS[head] not in tail:
        _by_pillow(path, stream)  # OpenCV fills the rest of a truncated file with grey without an error
