"""Reads image files without annotations as test batches, for `tools/predict.py` and `tools/visualize.py`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from sed.core.structures import Images, Size
from sed.data.coco import load_coco
from sed.data.errors import DataError
from sed.data.folders import list_images
from sed.data.loaders import collate_test
from sed.data.mapper import ImageInfo
from sed.data.records import Record, image_record


class TestMapper(Protocol):
    """Reads and resizes a test image; each engine has one."""

    __test__ = False  # not a pytest class

    def test(self, record: Record) -> tuple[Tensor, ImageInfo]:
        """The image [3, h, w] uint8 RGB of a record, and its `ImageInfo`."""


def find_images(inputs: Sequence[str]) -> tuple[Path, list[Path]]:
    """(common folder, image files) of the given folders, at any depth, and single files; each file once.

    Raises:
        DataError: for a path that does not exist, or a folder without images.
    """
    files: list[Path] = []
    for item in map(Path, inputs):
        if not item.exists():
            raise DataError(f"{item}: no such file or folder; expected images or folders of images")
        files += list_images(item) if item.is_dir() else [item]
    roots = [item if item.is_dir() else item.parent for item in map(Path, inputs)]
    root = roots[0]
    if any(other != root for other in roots):
        resolved = [other.resolve() for other in roots]
        root = next(p for p in (resolved[0], *resolved[0].parents) if all(o.is_relative_to(p) for o in resolved))
        tops = dict(zip(map(Path, inputs), resolved, strict=True))
        files = [_below(file, tops) for file in files]
    return root, list(dict.fromkeys(files))


def _below(file: Path, tops: Mapping[Path, Path]) -> Path:
    """A file found below an input, with that input's folder resolved; the file itself may be a link to elsewhere."""
    top = next(item for item in tops if file == item or file.is_relative_to(item))
    return tops[top] / (file.name if file == top else file.relative_to(top))


def find_numbered(
    inputs: Sequence[str], image_root: str = ""
) -> tuple[Path, list[Path], list[int | str], list[Size | None]]:
    """(common folder, image files, their ids and sizes) of folders and files, see `find_images`, or of one json.

    The size (height, width), which says in which frame an image turned by EXIF is, is the json's; None: the file's.

    Args:
        inputs: folders and image files, or one COCO json, whose annotations are not read.
        image_root: folder of the json's images, see `sed.data.locate`.

    Raises:
        DataError: see `find_images`; also for a json that cannot be used.
    """
    jsons = [item for item in inputs if item.lower().endswith(".json") and not Path(item).is_dir()]
    if not jsons:
        root, files = find_images(inputs)
        return root, files, list(number_images(files)), [None] * len(files)
    if len(inputs) > 1:
        raise DataError(f"{jsons[0]}: a json is given alone: the image ids of several inputs may collide")
    records = load_coco(jsons[0], image_root, labeled=False).records
    files = [Path(record["file_name"]) for record in records]
    root = Path(os.path.commonpath([os.path.abspath(file.parent) for file in files]))
    ids, sizes = zip(*((record["image_id"], (record["height"], record["width"])) for record in records), strict=True)
    return root, [file.absolute() for file in files], list(ids), list(sizes)


def number_images(files: Sequence[Path]) -> list[int]:
    """Image ids: the file names where they are different numbers, as COCO's are; else 1, 2, ..."""
    stems = [file.stem for file in files]
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(1, len(files) + 1))


@dataclass
class ImageFiles:
    """Batches of test images from image files, decoded by threads one batch ahead; to be iterated once.

    Attributes:
        files: image files.
        ids: of the images, one a file.
        mapper: reads and resizes.
        batch_size: images a batch.
        skip_unreadable: whether to leave out unreadable files instead of raising DataError.
        sizes: (height, width) of the images, None: the file's; empty: of all.
        records: of all images in the batches so far.
        skipped: the error of each file that was left out.
    """

    files: Sequence[Path]
    ids: Sequence[int | str]
    mapper: TestMapper
    batch_size: int
    skip_unreadable: bool = False
    sizes: Sequence[Size | None] = ()

    def __post_init__(self) -> None:
        self.records: list[Record] = []
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[tuple[Images, list[ImageInfo]]]:
        """Padded batches; the shape of `sed.data.loaders.test_loader`'s."""
        jobs = list(zip(self.files, self.ids, self.sizes or [None] * len(self.files), strict=True))
        chunks = [jobs[i : i + self.batch_size] for i in range(0, len(jobs), self.batch_size)]
        with ThreadPoolExecutor(self.batch_size) as pool:
            coming = pool.map(self._read, chunks[0]) if chunks else iter(())
            for following in [*chunks[1:], []]:
                now, coming = list(coming), pool.map(self._read, following)
                good = [item for item in now if not isinstance(item, DataError)]
                errors = [item for item in now if isinstance(item, DataError)]
                if errors and not self.skip_unreadable:
                    raise DataError(f"{errors[0]}; or leave such files out by --skip-unreadable")
                self.skipped += [str(error) for error in errors]
                self.records += [record for record, _ in good]
                if good:
                    yield collate_test([sample for _, sample in good])

    def _read(self, job: tuple[Path, int | str, Size | None]) -> tuple[Record, tuple[Tensor, ImageInfo]] | DataError:
        file, number, size = job
        try:
            record = image_record(file, number)
            if size == (record["width"], record["height"]):  # the frame as it is stored
                record.update(height=size[0], width=size[1])
            return record, self.mapper.test(record)
        except DataError as error:
            return error
