"""Hostile image files: each is read, with the size of its header, or ends in one error that names it.

`SED_FUZZ=all` (`make fuzz`) runs all of them, else a seeded fifth runs.
"""

from __future__ import annotations

import io
import os
import resource
import time
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from sed.checks.images import examine
from sed.data.errors import DataError
from sed.data.images import check_file, image_header, read_pixels
from sed.data.mapper import Mapper

FORMATS = ("JPEG", "JPEG", "PNG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "PPM", "AVIF")
MODES = ("RGB", "RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr", "LAB")
SIZES = ((64, 48), (64, 48), (1, 1), (1, 90), (700, 1), (2, 3), (333, 17))
HARM = ("none", "cut", "closed", "flip", "flip", "zeros", "tail", "size", "header")
NUMBER = 400
CASES = range(NUMBER) if os.environ.get("SED_FUZZ") == "all" else range(0, NUMBER, 5)
CLOSING = {"JPEG": b"\xff\xd9", "PNG": b"\0\0\0\0IEND\xaeB`\x82", "GIF": b";"}


def picture(rng, size, mode):
    pixels = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC))
    if mode in ("I;16", "I", "F"):
        top = float(2 ** rng.integers(0, 17))
        grey = np.asarray(image.convert("L")) / 255 * top
        return Image.fromarray(grey.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    return image.convert(mode)


def made(rng):
    """A whole file of a random kind: (format, content, size it was made with, orientation)."""
    while True:
        kind, mode = str(rng.choice(FORMATS)), str(rng.choice(MODES))
        size, orientation = SIZES[rng.integers(len(SIZES))], int(rng.integers(0, 11))
        tag = Image.Exif()
        tag[0x0112] = orientation = orientation if rng.random() < 0.6 else 1
        options = {"exif": tag}  # saving may change it
        if kind == "JPEG":
            options |= {"progressive": bool(rng.random() < 0.3), "quality": int(rng.integers(5, 100))}
        stream = io.BytesIO()
        try:
            picture(rng, size, mode).save(stream, kind, **options)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # there is no such file
        return kind, stream.getvalue(), size, orientation


def harmed(rng, kind, content, harm):
    place = int(rng.integers(1, max(2, len(content))))
    if harm == "cut":
        return content[:place]
    if harm == "closed":
        return content[:place] + CLOSING.get(kind, b"")
    if harm in ("flip", "header"):
        changed = bytearray(content)
        end = min(len(changed), 80) if harm == "header" else len(changed)
        for _ in range(int(rng.integers(1, 12))):
            changed[rng.integers(0, end)] ^= 1 << int(rng.integers(0, 8))
        return bytes(changed)
    if harm == "zeros":
        return content[:place] + b"\0" * (len(content) - place)
    if harm == "tail":
        return content + rng.integers(0, 256, 4000, dtype=np.uint8).tobytes()
    if harm == "size" and kind == "PNG":  # a header that lies, with a right checksum
        sides = rng.choice([1, 60, 20_000, 70_000, 2**31 - 1], 2)
        head = b"IHDR" + b"".join(int(side).to_bytes(4, "big") for side in sides) + content[24:29]
        return content[:12] + head + zlib.crc32(head).to_bytes(4, "big") + content[33:]
    if harm == "size" and kind == "JPEG":
        mark = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
        return content[: mark + 5] + rng.bytes(4) + content[mark + 9 :]
    return content


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", CASES)
def test_an_image(tmp_path, number):
    rng = np.random.default_rng([20, number])
    kind, content, (width, height), orientation = made(rng)
    harm = HARM[number % len(HARM)]
    path = tmp_path / f"case.{kind.lower()}"
    path.write_bytes(harmed(rng, kind, content, harm))
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = []
    for read in (image_header, check_file, read_pixels):
        try:
            found = read(path)
        except DataError as error:
            told.append(str(error))
            found = None
        if read is image_header:
            header = found
    fact = examine(str(path))
    assert time.monotonic() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2_000_000  # KiB
    assert all("case." in text and "\n" not in text.strip() and len(text) < 700 for text in told), told
    if found is None:
        assert fact.fault
        assert harm not in ("none", "tail"), told
        return
    assert found.dtype == np.uint8
    assert found.shape == (*header.size, 3)
    assert fact.fault in ("", "image-truncated")
    if harm in ("none", "tail"):
        turned = 5 <= orientation <= 8 and header.orientation == orientation
        assert header.size == ((width, height) if turned else (height, width))
        assert not fact.fault
        record = {"file_name": str(path), "image_id": 1, "height": header.size[0], "width": header.size[1]}
        assert Mapper((20, 20), 100).test(record)[0].shape[0] == 3
    if harm == "cut" and kind in ("JPEG", "PNG"):
        pytest.fail("a file without its end was read")
