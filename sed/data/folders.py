"""What a folder of images holds: one way of looking for training, prediction and checks."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NamedTuple

from sed.data.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
HIDDEN, OTHER, IRREGULAR, TWICE = "hidden", "of other kinds", "no regular file", "linked twice"
CLOSED = "in a folder that cannot be read"
log = logging.getLogger(__name__)


class Listing(NamedTuple):
    """The files of a folder.

    images: image files, sorted by path.
    left_out: reason -> paths relative to the folder.
    """

    images: list[Path]
    left_out: dict[str, list[str]]


def look_through(folder: str | Path) -> Listing:
    """All image files below a folder; links are followed, and no file or folder is taken twice.

    Left out are files and folders whose names begin with a dot (`._x.jpg`, `.ipynb_checkpoints`) or are `__MACOSX`,
    files of other kinds, what is no regular file (a pipe, a link to nothing), and what cannot be read.
    """
    top = Path(folder)
    left_out: dict[str, list[str]] = {}
    plain: dict[str, Path] = {}  # real path -> path of what is reached without a link
    linked: list[Path] = []

    def leave(reason: str, path: str) -> None:
        left_out.setdefault(reason, []).append(os.path.relpath(path, top))

    def closed(error: OSError) -> None:
        leave(CLOSED, str(error.filename))

    entered = {os.path.realpath(top)}
    real_top = os.path.realpath(top)
    for here, folders, files in os.walk(top, followlinks=True, onerror=closed):
        through_link = os.path.realpath(here) != os.path.normpath(os.path.join(real_top, os.path.relpath(here, top)))
        kept = []
        for name in sorted(folders):
            path = os.path.join(here, name)
            if name.startswith(".") or name == "__MACOSX":
                leave(HIDDEN, path)
            elif (real := os.path.realpath(path)) in entered:
                leave(TWICE, path)
            else:
                entered.add(real)
                kept.append(name)
        folders[:] = kept
        for name in files:
            path = os.path.join(here, name)
            if name.startswith("."):
                leave(HIDDEN, path)
            elif os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
                leave(OTHER, path)
            elif not os.path.isfile(path):
                leave(IRREGULAR, path)
            elif through_link or os.path.islink(path):
                linked.append(Path(path))
            else:
                plain[os.path.join(os.path.realpath(here), name)] = Path(path)
    for path in sorted(linked):
        if (real := os.path.realpath(path)) in plain:
            leave(TWICE, str(path))
        else:
            plain[real] = path
    return Listing(sorted(plain.values()), {reason: sorted(names) for reason, names in sorted(left_out.items())})


def list_images(folder: str | Path) -> list[Path]:
    """The images of `look_through`; one line of the log counts what was left out.

    Raises:
        DataError: where there is none.
    """
    images, left_out = look_through(folder)
    told = "; ".join(f"{len(names)} {reason} (such as {names[0]})" for reason, names in left_out.items())
    if not images:
        kinds = f"looked for {', '.join(IMAGE_SUFFIXES)} at any depth"
        raise DataError(f"{folder}: no image in this folder; {kinds}" + (f"; left out: {told}" if told else ""))
    if told:
        log.warning("%s: %d images; left out: %s", folder, len(images), told)
    return images
