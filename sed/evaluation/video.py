"""The frames of a video as test batches, and a video with boxes drawn on it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from sed.core.structures import Images
from sed.data.errors import DataError
from sed.data.files import try_file
from sed.data.loaders import collate_test
from sed.data.mapper import ImageInfo
from sed.data.records import Record
from sed.data.video import frame_rate, read_frames
from sed.evaluation.files import TestMapper


class VideoFrames:
    """Batches of the frames of a video; to be iterated once.

    Attributes:
        rate: frames a second.
        count: frames in the batches so far.

    Args:
        path: the video.
        mapper: reads and resizes.
        batch_size: frames a batch.

    Raises:
        DataError: where it cannot be opened.
    """

    def __init__(self, path: Path, mapper: TestMapper, batch_size: int) -> None:
        self.path, self.mapper, self.batch_size, self.count = path, mapper, batch_size, 0
        _, _ = next(frames := read_frames(path))  # whether there is one, before a detector is loaded
        frames.close()
        video = cv2.VideoCapture(str(path))
        self.rate = frame_rate(video)
        video.release()

    def __iter__(self) -> Iterator[tuple[tuple[Images, list[ImageInfo]], list[np.ndarray]]]:
        """(batch as of `sed.data.loaders.test_loader`, pictures [H, W, 3] uint8 RGB); image ids are frame numbers."""
        with tempfile.TemporaryDirectory(prefix="ssod_") as folder:
            waiting: list[tuple[int, np.ndarray]] = []
            for frame in read_frames(self.path):
                waiting.append(frame)
                if len(waiting) == self.batch_size:
                    yield self._batch(waiting, Path(folder))
                    waiting = []
            if waiting:
                yield self._batch(waiting, Path(folder))

    def _batch(self, frames: list[tuple[int, np.ndarray]], folder: Path) -> tuple:
        self.count += len(frames)
        samples = []
        for i, (number, picture) in enumerate(frames):  # a mapper reads files: without loss, and quick to write
            path = folder / f"{i}.bmp"
            cv2.imwrite(str(path), picture[:, :, ::-1])
            height, width = picture.shape[:2]
            record: Record = {"file_name": str(path), "image_id": number, "height": height, "width": width}
            samples.append(self.mapper.test(record))
        return collate_test(samples), [picture for _, picture in frames]


class AnnotatedVideo:
    """A video to be written frame by frame, a context.

    Args:
        path: an .mp4 file.
        rate: frames a second.

    Raises:
        DataError: where it cannot be written.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = try_file(path, "--draw"), rate
        self._video: cv2.VideoWriter | None = None

    def add(self, picture: np.ndarray) -> None:
        """Write a picture [H, W, 3] uint8 RGB; all have the size of the first."""
        if self._video is None:
            height, width = picture.shape[:2]
            self._video = cv2.VideoWriter(str(self.path), cv2.VideoWriter_fourcc(*"mp4v"), self.rate, (width, height))
            if not self._video.isOpened():
                raise DataError(f"{self.path}: OpenCV cannot write this video ({width} x {height}); leave out --draw")
        self._video.write(np.ascontiguousarray(picture[:, :, ::-1]))

    def __enter__(self) -> AnnotatedVideo:
        return self

    def __exit__(self, *_: object) -> None:
        if self._video is not None:
            self._video.release()
