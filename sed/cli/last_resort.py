"""The last line of defence of every command: what nobody foresaw ends in one line, with its traceback in a file."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

DEBUG = "--debug"


@contextmanager
def last_resort() -> Iterator[None]:
    """A context for the whole of a command.

    Ctrl-C ends with "stopped" and exit code 130, a file that cannot be read or written with its name, and any other
    exception with one line that names the file of its traceback. `--debug` anywhere on the command line shows it.
    """
    debug = DEBUG in sys.argv
    if debug:
        sys.argv.remove(DEBUG)
    try:
        yield
    except KeyboardInterrupt as stop:
        print("stopped", file=sys.stderr)
        sys.exit(getattr(stop, "code", 130))
    except Exception as error:
        if debug:
            raise
        told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        path = _written(f"{' '.join(sys.argv)}\n\n{traceback.format_exc()}")
        if isinstance(error, OSError):
            sys.exit(f"error: {told} (traceback: {path})")
        sys.exit(f"unexpected: {told}; a bug of ours: please report it with {path}")


def _written(text: str) -> str:
    """The path of a new file with a text; where the disk is full, that there is none."""
    try:
        number, path = tempfile.mkstemp(prefix="sed_", suffix="_traceback.txt")
        with os.fdopen(number, "w") as stream:
            stream.write(text)
    except OSError as error:
        return f"none, {error.strerror}; --debug shows it"
    return path
