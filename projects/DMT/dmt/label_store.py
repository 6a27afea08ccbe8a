"""Pseudo-labels on disk: a uint8 label and a uint16 confidence code (`dmt.curriculum`) for each pixel or image.

Segmentation: <key>.png with labels and <key>.conf.png with codes, lossless, beside each other in one folder: three
bytes a pixel before compression (the authors' npy: eight). Classification: one file, labels.npz, of all images. A
file is written whole or not at all, so a pass that was killed goes on with the images that are not there. One folder
holds one pass of one model.

Shape shorthand: N images, H and W of an image.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from sed.data.errors import DataError
from sed.data.files import save_bytes

TABLE = "labels.npz"


class LabelStore:
    """The pseudo-labels of one folder, which is made with the first of them."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def write(self, key: str, labels: np.ndarray, codes: np.ndarray) -> None:
        """Store an image's labels [H, W] uint8 and codes [H, W] uint16.

        Raises:
            DataError: for another shape or type, or a key that is no file name.
        """
        ok = labels.ndim == 2 and labels.shape == codes.shape and labels.size > 0
        if not ok or (labels.dtype, codes.dtype) != (np.uint8, np.uint16):
            raise DataError(
                f"pseudo-labels of {key}: expected labels uint8 and codes uint16 of one shape [H, W], "
                f"got {labels.dtype} {labels.shape} and {codes.dtype} {codes.shape}"
            )
        paths = self._paths(key)
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, pixels in zip(paths, (labels, codes), strict=True):
            save_bytes(cv2.imencode(".png", np.ascontiguousarray(pixels))[1].tobytes(), path)

    def read(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Labels [H, W] uint8 and codes [H, W] uint16 of an image.

        Raises:
            DataError: if one of the files is missing or damaged.
        """
        paths = self._paths(key)
        labels, codes = (_read_png(path, kind) for path, kind in zip(paths, (np.uint8, np.uint16), strict=True))
        if labels.shape != codes.shape:
            raise DataError(f"{paths[0]} and {paths[1].name} differ in size; delete both and label the images again")
        return labels, codes

    def __contains__(self, key: str) -> bool:
        """Whether both files of an image are there."""
        return all(path.exists() for path in self._paths(key))

    def write_table(self, keys: Sequence[str], labels: np.ndarray, codes: np.ndarray) -> None:
        """Store the labels [N] and codes [N] of whole images, in place of any table before.

        Raises:
            DataError: for other shapes, values beyond uint8 and uint16, or a key that is there twice.
        """
        labels, codes = np.asarray(labels), np.asarray(codes)
        if not len(keys) == len(set(keys)) == len(labels) == len(codes) or labels.ndim != 1 or codes.ndim != 1:
            raise DataError(
                f"pseudo-labels of {self.folder}: expected as many labels and codes as different keys; got "
                f"{len(keys)} keys ({len(set(keys))} different), labels {labels.shape} and codes {codes.shape}"
            )
        for name, values, limit in (("labels", labels, 255), ("codes", codes, 65535)):
            if len(values) and not 0 <= values.min() <= values.max() <= limit:
                raise DataError(f"pseudo-labels of {self.folder}: {name} go from {values.min()} to {values.max()}")
        content = io.BytesIO()
        arrays = {"labels": labels.astype(np.uint8), "codes": codes.astype(np.uint16)}
        np.savez_compressed(content, keys=np.array(keys, np.str_), **arrays)
        self.folder.mkdir(parents=True, exist_ok=True)
        save_bytes(content.getvalue(), self.folder / TABLE)

    def read_table(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Keys, labels [N] uint8 and codes [N] uint16, in the order in which they were written.

        Raises:
            DataError: if there is no table or it is damaged.
        """
        path = self.folder / TABLE
        try:
            with np.load(path, allow_pickle=False) as content:
                return content["keys"].tolist(), content["labels"], content["codes"]
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; the images must be labelled first") from None
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError, AttributeError) as error:
            raise DataError(f"{path}: not a table of pseudo-labels ({error}); delete it and label again") from None

    def _paths(self, key: str) -> tuple[Path, Path]:
        """The files of an image's labels and codes."""
        if not key or key.startswith(".") or key.endswith(".conf") or Path(key).name != key:
            raise DataError(
                f'pseudo-labels: {key!r} is no file name (no "/", no "." at the start, no ".conf" at the end)'
            )
        return self.folder / f"{key}.png", self.folder / f"{key}.conf.png"


def _read_png(path: Path, kind: type[np.generic]) -> np.ndarray:
    try:
        content = np.fromfile(path, np.uint8)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; the images must be labelled first") from None
    pixels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if content.size else None
    if pixels is None or pixels.ndim != 2 or pixels.dtype != kind:
        raise DataError(
            f"{path}: not a whole PNG of one {np.dtype(kind).name} channel; delete it and label the images again"
        )
    return pixels
