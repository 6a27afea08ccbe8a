"""Files of tensors: written atomically, read without running code. Both engines' checkpoints stand on this."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sed.data.files import replacing
from sed.data.torch_files import TorchFileError, read_torch, tensors_by_name

REMEDY = "move it away to go on from the one before, or from the start"  # of a checkpoint that cannot be resumed


class CheckpointError(RuntimeError):
    """A file that cannot be read or does not fit; the message names file, first difference and remedy."""


def names_of_classes(found: Any) -> tuple[str, ...]:
    """The names of the classes as a file has them; empty where it has none, or something else under that key."""
    good = isinstance(found, (list, tuple)) and all(isinstance(name, str) for name in found)
    return tuple(found) if good else ()


def check_classes(theirs: Any, ours: Sequence[str], path: str | Path) -> None:
    """Raise CheckpointError where a run would go on with other classes, or in another order; empty: not known."""
    names = names_of_classes(theirs)
    if names and ours and names != tuple(ours):
        told = f"trained for the classes {list(names)}, in this order; the data here has {list(ours)}"
        raise CheckpointError(f"{path}: {told}")


def save_atomic(content: object, path: str | Path) -> None:
    """`torch.save` such that `path` has its old content or all of the new, whenever the process dies.

    Raises:
        OSError: where it cannot be written, such as on a full disk.
    """
    with replacing(path, sync=True) as stream:
        torch.save(content, stream)


def read(path: str | Path) -> dict[str, Any]:
    """What a file holds, on the CPU. A file from someone else runs no code (`weights_only=True`).

    Raises:
        CheckpointError: no such file, or not a whole file of torch; the message says what it seems to be.
    """
    try:
        content = read_torch(path)
    except TorchFileError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary, found {type(content).__name__}")
    return content


def tensors_of(content: Any, path: str | Path) -> dict[str, Tensor]:
    """`sed.data.torch_files.tensors_by_name` of what `read` found.

    Raises:
        CheckpointError: as there TorchFileError.
    """
    try:
        return tensors_by_name(content, path)
    except TorchFileError as error:
        raise CheckpointError(str(error)) from None


def checkpoint_path(folder: str | Path, step: int) -> Path:
    """The file of the state after `step` steps."""
    return Path(folder) / f"checkpoint_{step:07d}.pth"


def checkpoints(folder: str | Path) -> list[Path]:
    """A run's full checkpoints, oldest first; other files of a like name, such as checkpoint_best.pth, are not."""
    numbered = {path: re.fullmatch(r"checkpoint_([0-9]{1,18})\.pth", path.name) for path in Path(folder).glob("*.pth")}
    return sorted((p for p, named in numbered.items() if named and p.is_file()), key=lambda p: int(numbered[p][1]))


def prune(newest: Path, kept: int) -> None:
    """Delete all full checkpoints beside `newest` but the `kept` newest ones (at least `newest` stays)."""
    older = [other for other in checkpoints(newest.parent) if other != newest]
    for old in older[: max(0, len(older) - max(kept, 1) + 1)]:
        old.unlink()
