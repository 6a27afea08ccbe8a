"""Videos as unlabelled images: some frames of each second as JPEG files, without near duplicates."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from sed.data.errors import DataError
from sed.data.files import new_folder
from sed.data.hashes import difference_hash

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
PER_SECOND = 2.0  # frames that are looked at
NEAR = 4  # bits of 64 in which two frames' hashes differ at most, so that only the first is kept
QUALITY = 95  # of the JPEG files


def read_frames(path: str | Path, per_second: float = 0.0) -> Iterator[tuple[int, np.ndarray]]:
    """(number, picture [H, W, 3] uint8 RGB) of the frames of a video, as few a second as asked for.

    Args:
        path: a file that OpenCV can open.
        per_second: frames a second; 0, or more than there are: all.

    Raises:
        DataError: for what cannot be opened or has no frame.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; expected a video")
    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            raise DataError(f"{path}: OpenCV cannot open this video; convert it, such as to MP4 with H.264")
        stride = max(1, round(frame_rate(video) / per_second)) if per_second else 1
        number = 0
        while video.grab():
            if number % stride == 0:
                good, picture = video.retrieve()
                if good:
                    yield number, np.ascontiguousarray(picture[:, :, ::-1])
            number += 1
        if not number:
            raise DataError(f"{path}: a video without a frame; it may be cut off, record or convert it again")
    finally:
        video.release()


def frame_rate(video: cv2.VideoCapture) -> float:
    """Frames a second; 25 where the file does not say, or says what cannot be."""
    rate = video.get(cv2.CAP_PROP_FPS)
    return rate if 1 <= rate <= 1000 else 25.0


def keep_frames(path: Path, folder: Path, tell: Callable[[str], None]) -> list[Path]:
    """The frames of a video as JPEG files in a folder of its name below `folder`; a second call finds them there.

    A frame is left out whose `difference_hash` is nearly that of the last one kept.

    Raises:
        DataError: see `read_frames`.
    """
    about = f"{os.path.abspath(path)} {path.stat().st_size} {path.stat().st_mtime_ns}"  # names may be equal
    to = folder / f"{path.stem}_{hashlib.sha1(about.encode(), usedforsecurity=False).hexdigest()[:8]}"
    if not to.exists():
        work = new_folder(to)
        last, seen = None, 0
        for number, picture in read_frames(path, PER_SECOND):
            seen += 1
            own = difference_hash(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
            if last is None or (own ^ last).bit_count() > NEAR:
                last = own
                data = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
                (work / f"{number:06d}.jpg").write_bytes(data.tobytes())
        work.rename(to)
        kept = len(list(to.glob("*.jpg")))
        tell(f"{path}: {kept} frames of {seen}, {PER_SECOND:g} a second; the others are like the one before")
    return sorted(to.glob("*.jpg"))
