"""A small segmentation set, made on the spot: handwritten digits on textured ground, 11 classes, 64x64 pixels.

The digits are scikit-learn's 1797 bundled 8x8 glyphs, so nothing is downloaded; the manner (a version stamp, glyphs of
their own for each part, the set appears at once) is that of `sed.data.digits`, whose parts draw most of a picture.
Masks are laid out as Pascal VOC's: 0 is background, 1 to 10 are the digits 0 to 9, 255 is a ring of one pixel around
each digit, which is ignored.

Shape shorthand: S = 64, an image's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from dmt.loss import IGNORED
from sed.data.digits import FACE, background, draw_clutter, free_place, ink, ink_colour, load_glyphs, make_set

NAME = "textured_digits"
VERSION = 1  # raise it whenever the images change: older sets on disk are then made again
SIZE = 64
CLASSES = ("background", *map(str, range(10)))
COUNTS = {"train": 600, "tune": 150, "test": 300}
_SHARES = {"train": (0.0, 0.6), "tune": (0.6, 0.75), "test": (0.75, 1.0)}  # ranges of the 1797 glyphs
_HEIGHTS = (20, 44)  # of a digit, pixels
_MAX_DIGITS = 4


def make_textured_digits(root: str | Path, counts: dict[str, int] = COUNTS) -> Path:
    """Write `root`/textured_digits once: <part>/images/*.png (RGB) and <part>/masks/*.png (uint8) for each part.

    A set that is there with the same version and counts is kept. A new one appears in one rename, so that a killed or
    a second process never leaves or sees half of it.

    Args:
        root: folder that holds the data sets.
        counts: images of train, tune and test.

    Returns:
        The folder `root`/textured_digits.

    Raises:
        DataError: where a folder of that name holds something else.
    """
    stamp = {"version": VERSION, "size": SIZE, "counts": dict(counts)}

    def write(work: Path) -> None:
        glyphs, digits = load_glyphs()
        for number, (part, (low, high)) in enumerate(_SHARES.items()):
            own = range(int(low * len(digits)), int(high * len(digits)))
            pool = [[i for i in own if digits[i] == digit] for digit in range(10)]
            for kind in ("images", "masks"):
                (work / part / kind).mkdir(parents=True)
            for index in range(counts[part]):
                picture, mask = _compose(np.random.default_rng([VERSION, number, index]), glyphs, pool)
                name = f"{part}_{index:05d}.png"
                cv2.imwrite(str(work / part / "images" / name), picture[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 3])
                cv2.imwrite(str(work / part / "masks" / name), mask)

    return make_set(Path(root) / NAME, stamp, write)


def _compose(
    rng: np.random.Generator, glyphs: np.ndarray, pool: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """One image [S, S, 3] uint8 RGB and its mask [S, S] uint8; glyphs [N, 8, 8], pool: digit -> their indices."""
    picture, mask = background(rng, SIZE), np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(rng.integers(1, 3)):
        _draw_texture(rng, picture)
    for _ in range(rng.integers(1, 4)):
        draw_clutter(rng, picture)
    taken: list[list[int]] = []
    for _ in range(rng.integers(1, _MAX_DIGITS + 1)):
        digit = int(rng.integers(10))
        glyph = glyphs[rng.choice(pool[digit])]
        alpha = ink(rng, glyph, float(np.exp(rng.uniform(*np.log(_HEIGHTS)))))  # [h, w]
        place = free_place(rng, SIZE, alpha.shape, taken)
        if place is None:
            continue
        (x, y), (h, w) = place, alpha.shape
        taken.append([x, y, w, h])
        patch = picture[y : y + h, x : x + w]
        colour = ink_colour(rng, patch[alpha > FACE].mean(axis=0))
        patch += (alpha * rng.uniform(0.8, 1.0))[:, :, None] * (colour - patch)
        face = np.zeros_like(mask)
        face[y : y + h, x : x + w] = alpha > FACE
        mask[cv2.dilate(face, np.ones((3, 3), np.uint8)) > 0] = IGNORED
        mask[face > 0] = digit + 1
    picture += rng.normal(0.0, rng.uniform(2.0, 8.0), picture.shape).astype(np.float32)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8), mask


def _draw_texture(rng: np.random.Generator, picture: np.ndarray) -> None:
    """Waves of one direction over the whole picture, or on one side of a random line; in place."""
    axis = np.arange(SIZE) - SIZE / 2
    turn, cut = rng.uniform(0, np.pi, 2)
    across = np.cos(turn) * axis[None, :] + np.sin(turn) * axis[:, None]  # [S, S]
    side = np.cos(cut) * axis[None, :] + np.sin(cut) * axis[:, None] > rng.uniform(-SIZE / 2, SIZE / 2)
    waves = np.sin(2 * np.pi * across / rng.uniform(4, 16) + rng.uniform(0, 2 * np.pi))
    tint = rng.uniform(6, 22) * (1 + rng.normal(0, 0.3, 3))
    picture += (waves * (side | (rng.random() < 0.3)))[:, :, None].astype(np.float32) * tint.astype(np.float32)
    np.clip(picture, 0, 255, out=picture)
