"""Reads whole files, and writes them atomically: a file has its old content or all of the new, also if killed.

Before a work of hours begins, `try_folder` and `try_file` prove that its results can be written.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

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
    with replacing(path) as stream:
        stream.write(content)


@contextlib.contextmanager
def replacing(path: str | Path, sync: bool = False) -> Iterator[IO[bytes]]:
    """A stream whose content takes the place of `path` at the end, unless something goes wrong before.

    Args:
        path: of the file.
        sync: wait until the disk has it, so that it also survives a loss of power.

    Raises:
        OSError: with the name of `path`, where it cannot be written, such as on a full disk.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch hides the system's error behind one of its own
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError) or cause.errno is None or cause.filename not in (None, str(temporary)):
            raise
        raise OSError(cause.errno, os.strerror(cause.errno), str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def new_folder(folder: Path) -> Path:
    """A new folder beside `folder`, to be renamed to it when it is whole; those of killed processes are removed."""
    for left_over in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(left_over, ignore_errors=True)
    work = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    work.mkdir(parents=True)
    return work


def try_folder(folder: str | Path, what: str) -> Path:
    """Make a folder for results, and prove that it can be written to.

    Args:
        folder: it is made with the folders above it.
        what: the option that names it, for messages.

    Raises:
        DataError: for no name, one that is no UTF-8, and where no file can be written.
    """
    path = _named(folder, what)
    probe = path / f".{os.getpid()}.tmp"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"0")
        probe.unlink(missing_ok=True)  # another process of the run may tidy up
    except FileExistsError as error:
        raise DataError(f"{what} {folder}: expected a folder to write to, {error.filename} is a file") from None
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink()
        raise DataError(f"{what} {folder}: cannot be written to ({error.strerror}); choose another folder") from None
    return path


def try_file(path: str | Path, what: str) -> Path:
    """Prove that a file can be written where `path` says; the folders above it are made.

    Raises:
        DataError: for no name, one that is no UTF-8, a folder, a device, and where no file can be written.
    """
    path = _named(path, what)
    if path.is_dir():
        raise DataError(f"{what} {path}: expected the path of a file to write, this is a folder")
    if path.exists() and not path.is_file():
        raise DataError(f"{what} {path}: expected the path of a file to write, this is no regular file")
    try_folder(path.parent, what)
    if path.exists() and not os.access(path, os.W_OK):
        raise DataError(f"{what} {path}: this file is not to be written over (Permission denied); choose another name")
    return path


def _named(path: str | Path, what: str) -> Path:
    try:
        text = os.fspath(path)
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{what} {os.fsencode(path)!r}: this name is not in UTF-8; choose another one") from None
    if not text or "\0" in text:
        raise DataError(f"{what} is {text!r}; expected a path")
    return Path(path)
