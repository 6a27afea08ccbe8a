"""The digits benchmark (docs/method.md 12): real handwritten digits on cluttered backgrounds, generated on first use.

The glyphs are scikit-learn's bundled `load_digits` (1797 real 8 x 8 scans). They are split by index, that is by writer:
the first 70 % are used for the train images, the next 15 % for tune, the last 15 % for test, so that no glyph is
shared. Every image depends only on (variant, split, index): generating the set twice gives the same bytes.

    make_digits("datasets")   # datasets/digits/{train,tune,test}.json, datasets/digits/train/00000.png ...

Shape shorthand: S side of the square image, h and w height and width of one pasted digit.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from sed.data.errors import DataError

VERSION = 3  # of the images; sets of another version on disk are generated again
SPLITS = ("train", "tune", "test")
COUNTS = (1500, 300, 300)
_STAMP = "version.json"
_SHARES = (0.0, 0.70, 0.85, 1.0)  # glyph index ranges of the splits
_GLYPH_SCALE = 16  # an 8x8 glyph is drawn at 128x128 before it is shrunk to its height
_MAX_OVERLAP = 0.10  # intersection over the smaller box
FACE = 0.3  # ink covers a pixel from this alpha on; boxes are tight to it


@dataclass(frozen=True)
class Variant:
    """Parameters of a digits set: box heights and image side in pixels, number of classes."""

    min_height: float
    max_height: float
    size: int = 128
    num_classes: int = 5


VARIANTS = {
    "digits": Variant(26, 100),
    "digits_hard": Variant(14, 84),  # half-size objects leave the range of labelled sizes
    "digits_hard10": Variant(14, 84, size=160, num_classes=10),
}


def ensure_digits(root: str | Path, variant: str = "digits") -> Path:
    """The folder of the digits set under `root`; made first if it is missing or of another version."""
    return make_digits(root, variant)


def make_digits(root: str | Path, variant: str = "digits", counts: Sequence[int] = COUNTS) -> Path:
    """Write `root`/`variant` once: PNG images and a COCO json for each of train, tune and test.

    A set that is there already with the same version, variant and counts is kept. The new set appears in one
    rename, so that a killed or a second process never leaves or sees half of it.

    Args:
        root: folder that holds the data sets.
        variant: a key of `VARIANTS`.
        counts: number of train, tune and test images.

    Returns:
        The folder `root`/`variant`.

    Raises:
        DataError: for an unknown variant.
    """
    if variant not in VARIANTS:
        raise DataError(f"digits: unknown variant {variant!r}; there are {', '.join(VARIANTS)}")
    spec = VARIANTS[variant]
    stamp = {"version": VERSION, "counts": list(counts), **asdict(spec)}

    def write(work: Path) -> None:
        glyphs, labels = load_glyphs()
        for number, (split, count) in enumerate(zip(SPLITS, counts, strict=True)):
            low, high = (int(_SHARES[number + i] * len(labels)) for i in (0, 1))
            pool = [np.flatnonzero(labels[low:high] == c) + low for c in range(spec.num_classes)]
            _write_split(work, split, number, count, spec, glyphs, pool)

    return make_set(Path(root) / variant, stamp, write)


def make_set(folder: Path, stamp: dict, write: Callable[[Path], None]) -> Path:
    """Write a generated data set into `folder`, unless it is there with the same stamp; returns `folder`.

    Args:
        folder: of the set.
        stamp: version and parameters, stored with the set.
        write: fills a new folder, which is then renamed to `folder`.

    Raises:
        DataError: where `folder` exists and is no generated set.
    """
    if not _is_current(folder, stamp):
        target = folder.resolve()  # a link to another disk stays a link
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            write(work)
            (work / _STAMP).write_text(json.dumps(stamp, indent=1))
            _move_into_place(work, target, stamp)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def load_glyphs() -> tuple[np.ndarray, np.ndarray]:
    """1797 glyphs [1797, 8, 8] float32 in [0, 1] and their labels [1797]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images / 16.0).astype(np.float32), data.target


def _is_current(folder: Path, stamp: dict) -> bool:
    try:
        return json.loads((folder / _STAMP).read_text()) == stamp
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False


def _move_into_place(work: Path, folder: Path, stamp: dict) -> None:
    if folder.exists() and not _is_current(folder, stamp):
        if any(folder.iterdir()) and not (folder / _STAMP).exists():
            raise DataError(f"{folder}: exists and is not a digits set; move it away or choose another root")
        shutil.rmtree(folder)
    work.chmod(0o755)
    try:
        os.rename(work, folder)
    except OSError:
        if not _is_current(folder, stamp):  # another process was faster: its set is the same
            raise


def _write_split(
    work: Path, split: str, number: int, count: int, spec: Variant, glyphs: np.ndarray, pool: list[np.ndarray]
) -> None:
    (work / split).mkdir()
    images, annotations = [], []
    for index in range(count):
        rng = np.random.default_rng([VERSION, int(spec.min_height), spec.num_classes, number, index])
        picture, objects = _compose(rng, spec, glyphs, pool)
        name = f"{index:05d}.png"
        cv2.imwrite(str(work / split / name), picture[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 3])
        images.append({"id": index + 1, "file_name": name, "height": spec.size, "width": spec.size})
        for category, box in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": category + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    content = {
        "info": {"description": f"digits {split}, made by sed.data.digits", "version": str(VERSION)},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": c + 1, "name": str(c)} for c in range(spec.num_classes)],
    }
    (work / f"{split}.json").write_text(json.dumps(content))


def _compose(
    rng: np.random.Generator, spec: Variant, glyphs: np.ndarray, pool: list[np.ndarray]
) -> tuple[np.ndarray, list[tuple[int, list[int]]]]:
    """One image [S, S, 3] uint8 RGB and its objects: (class, [x, y, w, h]) each."""
    size = spec.size
    picture = background(rng, size)
    for _ in range(rng.integers(1, 4)):
        draw_clutter(rng, picture)
    objects: list[tuple[int, list[int]]] = []
    for _ in range(rng.integers(1, 6)):
        category = int(rng.integers(len(pool)))
        glyph = glyphs[rng.choice(pool[category])]
        height = float(np.exp(rng.uniform(np.log(spec.min_height), np.log(spec.max_height))))
        alpha = ink(rng, glyph, height)  # [h, w]
        place = free_place(rng, size, alpha.shape, [box for _, box in objects])
        if place is None:
            continue
        x, y = place
        h, w = alpha.shape
        patch = picture[y : y + h, x : x + w]
        colour = ink_colour(rng, patch[alpha > FACE].mean(axis=0))
        patch += (alpha * rng.uniform(0.8, 1.0))[:, :, None] * (colour - patch)
        objects.append((category, [x, y, w, h]))
    picture += rng.normal(0.0, rng.uniform(1.0, 5.0), picture.shape).astype(np.float32)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8), objects


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """[S, S, 3] float32: a dark, tinted grey, a linear gradient and two octaves of smooth noise."""
    base = rng.uniform(40, 130) + rng.normal(0, 10, 3)
    far = rng.uniform(-30, 30) + rng.normal(0, 8, 3)
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-0.5, 0.5, size)
    ramp = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    picture = base + ramp[:, :, None] * far
    for cells, strength in ((5, rng.uniform(3, 10)), (17, rng.uniform(1, 5))):
        noise = rng.normal(0.0, strength, (cells, cells, 1))
        noise = noise + rng.normal(0.0, strength / 3, (cells, cells, 3))  # the tint is weaker than the light
        picture += cv2.resize(noise.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(picture, 0, 255).astype(np.float32)


def draw_clutter(rng: np.random.Generator, picture: np.ndarray) -> None:
    """Draw one object that is no digit, in place: a long thin stroke, a filled ellipse or a rectangle.

    Left out on purpose, because they are digits: an outlined ellipse is a 0, a short thick stroke is a 1.
    """
    size = picture.shape[0]
    layer = picture.copy()
    colour = [float(c) for c in rng.uniform(20, 235) + rng.normal(0, 15, 3)]
    kind = rng.integers(3)
    if kind == 0:
        ends = rng.uniform(-0.2, 1.2, (4, 2)) * size  # control points of a cubic curve across the image
        t = np.linspace(0, 1, 24)[:, None]
        curve = (1 - t) ** 3 * ends[0] + 3 * t * (1 - t) ** 2 * ends[1] + 3 * t**2 * (1 - t) * ends[2] + t**3 * ends[3]
        thickness = int(rng.integers(1, 3))
        cv2.polylines(layer, [np.rint(curve).astype(np.int32)], False, colour, thickness, cv2.LINE_AA)
    elif kind == 1:
        centre = [int(v) for v in rng.uniform(0, size, 2)]
        axes = [int(v) for v in rng.uniform(0.04, 0.22, 2) * size]
        cv2.ellipse(layer, centre, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
    else:
        corner = rng.uniform(-0.1, 0.95, 2) * size
        extent = rng.uniform(0.08, 0.5, 2) * size
        first, last = ([int(v) for v in point] for point in (corner, corner + extent))
        cv2.rectangle(layer, first, last, colour, -1 if rng.random() < 0.5 else int(rng.integers(1, 3)))
    cv2.addWeighted(layer, opacity := float(rng.uniform(0.15, 0.5)), picture, 1 - opacity, 0, dst=picture)


def ink(rng: np.random.Generator, glyph: np.ndarray, height: float) -> np.ndarray:
    """The glyph as coverage [h, w] in [0, 1], turned by up to 10 degrees, cut tight, `height` pixels high."""
    side = (glyph.shape[0] + 4) * _GLYPH_SCALE
    smooth = cv2.resize(np.pad(glyph, 2), (side, side), interpolation=cv2.INTER_CUBIC)
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), float(rng.uniform(-10, 10)), 1.0)
    smooth = cv2.warpAffine(cv2.GaussianBlur(smooth, (0, 0), 0.22 * _GLYPH_SCALE), turn, (side, side))
    soft = 0.12  # an edge of about two source pixels becomes a crisp one
    face = np.clip((smooth - rng.uniform(0.42, 0.50)) / soft + 0.5, 0, 1)
    face = _crop(face)
    target_h = max(4, round(height))
    stretch = float(rng.uniform(0.85, 1.15))
    target_w = max(3, round(face.shape[1] * target_h / face.shape[0] * stretch))
    return _crop(cv2.resize(face, (target_w, target_h), interpolation=cv2.INTER_AREA))


def _crop(alpha: np.ndarray) -> np.ndarray:
    """`alpha` cut to the smallest rectangle that holds its ink."""
    rows, columns = np.flatnonzero((alpha > FACE).any(1)), np.flatnonzero((alpha > FACE).any(0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def free_place(
    rng: np.random.Generator, size: int, shape: tuple[int, ...], taken: list[list[int]]
) -> tuple[int, int] | None:
    """A corner (x, y) where a box of (h, w) = `shape` covers little of the others; None after 30 tries."""
    h, w = shape
    if h > size or w > size:
        return None
    for _ in range(30):
        x, y = int(rng.integers(0, size - w + 1)), int(rng.integers(0, size - h + 1))
        for bx, by, bw, bh in taken:
            cover = max(0, min(x + w, bx + bw) - max(x, bx)) * max(0, min(y + h, by + bh) - max(y, by))
            if cover > _MAX_OVERLAP * min(w * h, bw * bh):
                break
        else:
            return x, y
    return None


def ink_colour(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """A colour [3] whose brightness is that of `ground` plus 60 to 130 grey levels, with some tint."""
    weights = np.array([0.299, 0.587, 0.114])
    contrast = rng.uniform(60, 130)
    brightness = float(ground @ weights)
    wanted = brightness + contrast
    colour = rng.normal(0, 15, 3)
    return np.clip(colour + (wanted - colour @ weights), 0, 255)
