"""Texts and bytes written atomically: a file has its old content or all of the new, whenever the process dies."""

from __future__ import annotations

import os
from pathlib import Path


def save_text(text: str, path: str | Path) -> None:
    """Write a text such that `path` has its old content or all of the new."""
    save_bytes(text.encode(), path)


def save_bytes(content: bytes, path: str | Path) -> None:
    """Write bytes such that `path` has its old content or all of the new."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
