"""Writes files atomically: a file has its old content or all of the new, also if the process is killed."""

from __future__ import annotations

import os
from pathlib import Path


def save_text(text: str, path: str | Path) -> None:
    """Write a text atomically."""
    save_bytes(text.encode(), path)


def save_bytes(content: bytes, path: str | Path) -> None:
    """Write bytes atomically."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
