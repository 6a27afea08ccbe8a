"""A run's output folder: whose it is, and what the run was made with."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

import sed
from sed.data.files import save_text, try_folder
from sed.data.partition import Data
from sed.data.splits import check_manifest, write_manifest
from sed.runtime.checkpoint_files import checkpoints
from sed.runtime.launch import rank

_PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "opencv-python-headless",
    "pycocotools",
    "faster-coco-eval",
    "fvcore",
    "tensorboard",
    "detectron2",
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


LOCK = "run.lock"
log = logging.getLogger(__name__)


class OutputError(RuntimeError):
    """An output folder that this run must not write to."""


@contextmanager
def only_run(folder: str | Path) -> Iterator[None]:
    """A context in which no other run writes to `folder`, which is made; the first process of a run holds its lock.

    The system releases it when the process ends, in whatever way.

    Raises:
        OutputError: where another run holds it.
    """
    if rank():
        yield
        return
    folder = try_folder(folder, "OUTPUT_DIR")
    with (folder / LOCK).open("a+") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            lock.seek(0)
            holder = lock.read(200).strip() or "another process"
            raise OutputError(
                f"{folder} is in use by a run that has not ended ({holder}): wait for its end, stop it, or choose "
                "another OUTPUT_DIR"
            ) from None
        except OSError as error:  # a file system without locks
            log.warning("%s cannot be locked (%s): start no second run there", folder, error.strerror)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}\n")
        lock.flush()
        yield


def claim_folder(folder: str | Path, resume: bool) -> Path | None:
    """Make `folder` this run's output folder, unless it holds another run.

    Returns:
        The checkpoint to go on from; None where the run starts.

    Raises:
        DataError: where it cannot be written to.
        OutputError: where it holds another run and `resume` is False.
    """
    folder = try_folder(folder, "OUTPUT_DIR")
    saved = checkpoints(folder)
    if not resume and (saved or (folder / "config.yaml").exists()):
        held = f"{saved[-1].name} of {len(saved)} checkpoints" if saved else "config.yaml"
        raise OutputError(
            f"{folder} holds another run ({held}): go on with it by --resume, or choose another OUTPUT_DIR"
        )
    if rank() == 0:
        for left_over in folder.glob(".*.tmp"):  # a writer was killed
            left_over.unlink(missing_ok=True)
    return saved[-1] if saved else None


@contextmanager
def room_needed(folder: str | Path) -> Iterator[None]:
    """A context for the whole of a run that a full disk ends with one line: the file, and the last whole checkpoint.

    Raises:
        OutputError: in the place of the system's errors of disks that are full, over their quota or read-only.
    """
    usual = threading.excepthook

    def quiet(told: threading.ExceptHookArgs) -> None:  # TensorBoard's thread gives its error to the next writer too
        if getattr(told.exc_value, "errno", None) not in _FULL:
            usual(told)

    threading.excepthook = quiet
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        last = next(reversed(checkpoints(folder)), None)
        told = f"{last} is whole: make room, then go on with --resume" if last else "no checkpoint is written yet"
        raise OutputError(
            f"{error.filename or folder}: cannot be written ({os.strerror(error.errno)}); {told}"
        ) from None
    finally:
        threading.excepthook = usual


def end_with_log(*loggers: str) -> None:
    """Let a log file that cannot be written raise its OSError; logging would print a traceback a line and go on."""
    for handler in (each for name in loggers for each in logging.getLogger(name).handlers):
        if getattr(handler, "stream", None) not in (None, sys.stdout, sys.stderr):
            handler.handleError = _raise_again  # type: ignore[method-assign]


def _raise_again(record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    if error is not None:
        raise error


def write_config(folder: Path, text: str) -> list[str]:
    """Write config.yaml; returns "KEY: old -> new" for every key that an earlier one there has otherwise."""
    path = folder / "config.yaml"
    try:
        before = _leaves(yaml.safe_load(path.read_text()) or {}) if path.exists() else {}
    except (ValueError, AttributeError, yaml.YAMLError):
        raise OutputError(f"{path}: expected the config of the run that is here; move it away to go on") from None
    now = _leaves(yaml.safe_load(text))
    save_text(text, path)
    return [f"{key}: {before[key]!r} -> {now[key]!r}" for key in now if key in before and before[key] != now[key]]


def write_versions(folder: Path, device: torch.device) -> dict[str, Any]:
    """Write versions.json: packages, machine, commit and command line."""
    content = {
        "sed": sed.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "command": sys.argv,
    }
    save_text(json.dumps(content, indent=1), folder / "versions.json")
    return content


def record_split(folder: Path, data: Data, config: Mapping[str, Any], resumed: bool) -> None:
    """Write down in split.json which images are labelled; a resumed run must have those of before.

    Every process checks, the first one writes.

    Raises:
        DataError: where a resumed run has other images.
    """
    manifest, s = folder / "split.json", config["SEMI"]
    if resumed and manifest.exists():
        check_manifest(manifest, data.labeled.records, data.unlabeled)
    if rank() == 0:
        write_manifest(
            manifest,
            data.labeled.records,
            data.unlabeled,
            data.labeled.classes,
            source="+".join(config["DATASETS"]["TRAIN"]),
            fold=s["FOLD"],
            percent=s["LABELED_PERCENT"],
            count=s["LABELED_COUNT"],
        )


def _leaves(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for key, value in node.items():
        rows |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return rows


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the working tree that `sed` lies in; None outside of one."""
    root = Path(sed.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
