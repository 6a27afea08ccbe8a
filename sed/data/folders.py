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

    Raises:
        DataError: for no folder.
    """
    top = Path(folder)
    if not top.is_dir():
        raise DataError(f"{folder}: no such folder")
    left_out: dict[str, list[str]] = {}
    images: dict[str, Path] = {}  # real path -> path
    entered: set[str] = set()  # real paths of folders

    def leave(reason: str, path: str) -> None:
        left_out.setdefault(reason, []).append(os.path.relpath(path, top))

    pending = [str(top)]
    while pending:  # what is reached without a link comes first, then what is behind links
        links: list[str] = []
        files: list[str] = []
        for start in sorted(pending):
            for here, folders, names in os.walk(start, onerror=lambda error: leave(CLOSED, str(error.filename))):
                if (real := os.path.realpath(here)) in entered:
                    leave(TWICE, here)
                    folders[:] = []
                    continue
                entered.add(real)
                hidden = [name for name in folders if name.startswith(".") or name == "__MACOSX"]
                for name in hidden:
                    leave(HIDDEN, os.path.join(here, name))
                linked = [name for name in folders if os.path.islink(os.path.join(here, name)) and name not in hidden]
                links += [os.path.join(here, name) for name in linked]
                folders[:] = sorted(set(folders) - set(hidden) - set(linked))
                files += [os.path.join(here, name) for name in names]
        for path in sorted(files, key=lambda path: (os.path.islink(path), path)):
            name = os.path.basename(path)
            if name.startswith("."):
                leave(HIDDEN, path)
            elif os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
                leave(OTHER, path)
            elif not os.path.isfile(path):
                leave(IRREGULAR, path)
            elif images.setdefault(os.path.realpath(path), Path(path)) != Path(path):
                leave(TWICE, path)
        pending = links
    return Listing(sorted(images.values()), {reason: sorted(names) for reason, names in sorted(left_out.items())})


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
