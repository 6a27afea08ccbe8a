"""Reads whole files, and writes them atomically: a file has its old content or all of the new, also if killed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sed.data.errors import DataError


def read_file(path: str | Path, remedy: str = "") -> bytes:
    """The content of a regular file; a pipe or a device, which may have no end, is not opened.

    Args:
        path: the file.
        remedy: ends the message of an error.

    Raises:
        DataError: for what is no file or cannot be read.
    """
    end = f"; {remedy}" if remedy else ""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            kind = "a folder" if os.path.isdir(path) else "a pipe or a device"
            raise DataError(f"{path}: cannot be read: it is {kind}, no file{end}")
        with open(path, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file{end}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}){end}") from None


def save_text(text: str, path: str | Path) -> None:
    """Write a text atomically."""
    save_bytes(text.encode(), path)


def save_bytes(content: bytes, path: str | Path) -> None:
    """Write bytes atomically."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
