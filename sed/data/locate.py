"""Finds the image files of a json where annotation tools put them, under the names that they write.

COCO and CVAT keep jsons in `annotations/` and images beside it; Label Studio writes the paths of its server, others
those of another computer: with backslashes, percent signs, in another case or another Unicode form.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from sed.data.errors import DataError

_PREFIX = re.compile(r"^(instances|image_info|person_keypoints|captions|stuff|panoptic)_")
_UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what Label Studio puts before the name of an uploaded file
Listed = dict[str, dict[str, bool]]  # folder -> name -> whether it is a file
log = logging.getLogger(__name__)


class Located(NamedTuple):
    """Where the images of a json are.

    files: path of each image; "" where it was not found.
    looked: folders that were looked in.
    renamed: (name in the json, path) of images that were found under another name or in another folder.
    """

    files: list[str]
    looked: list[Path]
    renamed: list[tuple[str, str]]


def find_images(path: Path, image_root: str | Path, names: Sequence[str]) -> list[str]:
    """The file of each image of the json at `path`; one line of the log counts those of another name than there.

    Raises:
        DataError: where one is missing; it says where and as what it was looked for.
    """
    files, looked, renamed = locate_images(path, image_root, names)
    missing = [name for name, file in zip(names, files, strict=True) if not file]
    if missing:
        raise DataError(
            f"{path}: image file {missing[0]} is missing ({len(missing)} of {len(names)} are); "
            f"{looked_for(missing[0], looked)}; put the images there, or set DATASETS.IMAGE_ROOT to their folder"
        )
    if renamed:
        log.warning(
            "%s: %d images were found under another name or folder than the json's, such as %s as %s",
            *(path, len(renamed), *renamed[0]),
        )
    return files


def looked_for(name: str, looked: Sequence[Path]) -> str:
    """As what and where the image `name` was looked for, for a message."""
    forms = [form for form in dict.fromkeys(_forms(name)) if form != name][-3:]
    as_what = f" for it and for {', '.join(forms)}, in any case," if forms else ""
    return f"looked{as_what} in {', '.join(map(str, looked))}"


def locate_images(path: Path, image_root: str | Path, names: Sequence[str]) -> Located:
    """Look for the images of the json at `path`: in the first folder that has most of them, else in the others.

    Args:
        path: the json.
        image_root: folder of its images, or one above; "": the json's folder, and where that is called `annotations`,
            the one beside it.
        names: of the images in the json.
    """
    roots = list(_roots(path, image_root))
    listed: Listed = {}
    parts = [os.path.split(name) for name in names]
    parents = {parent for parent, _ in parts}
    absent: dict[Path, list[int]] = {}
    for root in roots:
        there = {parent: _list(os.path.join(root, parent), listed) for parent in parents}
        absent[root] = [index for index, (parent, leaf) in enumerate(parts) if not there[parent].get(leaf)]
        if not absent[root]:
            return Located([str(root / name) for name in names], roots, [])
    best = min(roots, key=lambda root: len(absent[root]))
    files = [str(best / name) for name in names]
    for index in absent[best]:
        files[index] = ""
    others = _elsewhere([best, *roots], [names[index] for index in absent[best]], set(files), listed)
    for index in absent[best]:
        files[index] = others.get(names[index], "")
    return Located(files, roots, list(others.items()))


def _roots(path: Path, image_root: str | Path) -> Iterator[Path]:
    """Folders where the images of a json may be, the likeliest first."""
    folder = path.parent
    stem, subset = path.stem, _PREFIX.sub("", path.stem)
    bases = [Path(image_root)] if str(image_root) else [folder]
    if not str(image_root) and folder.name.lower() in ("annotations", "annotation", "labels"):
        bases.append(folder.parent)
    below = dict.fromkeys(
        ("", "images", "data", stem, subset, f"images/{stem}", f"images/{subset}", f"{subset}/images")
    )
    yield from dict.fromkeys(base / part for base in bases for part in below)


def _list(folder: str, listed: Listed) -> dict[str, bool]:
    """Name -> whether it is a file, of what a folder holds."""
    if folder not in listed:
        try:
            with os.scandir(folder or ".") as entries:
                listed[folder] = {entry.name: entry.is_file() for entry in entries}
        except (OSError, ValueError):  # no folder, a closed one, a name that none can have
            listed[folder] = {}
    return listed[folder]


def _elsewhere(roots: Sequence[Path], names: Sequence[str], taken: set[str], listed: Listed) -> dict[str, str]:
    """Name -> path, of images that are below a root under another name; none where two images would be one file."""
    folded: dict[str, dict[str, str]] = {}  # folder -> folded name -> name; "" where two names are one when folded

    def look(root: Path, form: str) -> str:
        here = str(root)
        for part in form.split("/"):
            names = _list(here, listed)
            if here not in folded:
                folded[here] = {}
                for name in names:
                    folded[here][_fold(name)] = name if _fold(name) not in folded[here] else ""
            match = part if part in names else folded[here].get(_fold(part))
            if not match:
                return ""
            file, here = names[match], os.path.join(here, match)
        return here if file else ""

    found = {}
    for name in dict.fromkeys(names):
        places = (look(root, form) for form in dict.fromkeys(_forms(name)) for root in roots)
        found[name] = next(filter(None, places), "")
    times = Counter(found.values())
    return {name: file for name, file in found.items() if file and times[file] == 1 and file not in taken}


def _forms(name: str) -> Iterator[str]:
    """The names below a folder that a json's name of an image may stand for, the likeliest first."""
    plain = name
    if "?d=" in name:  # Label Studio's /data/local-files/?d=folder/name.jpg
        plain = name.partition("?d=")[2]
    plain = re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://[^/]*/|[A-Za-z]:)", "", plain)
    for text in dict.fromkeys((plain, unquote(plain))):
        parts = [part for part in re.split(r"[/\\]", text) if part not in ("", ".", "..")]
        for start in range(len(parts)):
            yield "/".join(parts[start:])
        if parts and (bare := _UPLOADED.sub("", parts[-1])) != parts[-1]:
            yield bare


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
