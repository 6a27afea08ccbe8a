"""Checkpoints: written atomically, read without running code, refused with a reason when they do not fit.

Two kinds of file:

    checkpoint_0001000.pth   everything a run needs to go on, after 1000 steps; the last few are kept
    model_best.pth, model_final.pth   the teacher alone, a plain state_dict under the stock framework's names
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sed.data.torch_files import other_kinds
from sed.detectors.base import Detector
from sed.methods.base import Method
from sed.runtime.checkpoint_files import (
    REMEDY,
    CheckpointError,
    check_classes,
    checkpoint_path,
    names_of_classes,
    prune,
    read,
    save_atomic,
    tensors_of,
)
from sed.runtime.guards import Counters
from sed.runtime.resume import (
    Field,
    check_optimizer,
    check_rng,
    check_scaler,
    check_scores,
    check_step,
    check_tensors,
    check_window,
)

FORMAT = 1
STREAMS = ("labeled", "unlabeled")
BATCHES_A_STEP = 1000  # SOLVER.ACCUMULATE of the run before is not known
COUNTED = {row.name for row in fields(Counters)}
_PREFIXES = {"student": "student.", "teacher": "teacher.module."}  # names within Method.state_dict()


# ---------------------------------------------------------------------------------------------- files
def save(state: dict[str, Any], folder: str | Path, step: int, kept: int) -> Path:
    """Write a full checkpoint and delete all but the `kept` newest ones (at least this one stays)."""
    path = checkpoint_path(folder, step)
    save_atomic({"format": FORMAT, "step": step, **state}, path)
    prune(path, kept)
    return path


def read_full(path: str | Path) -> dict[str, Any]:
    """The content of a full checkpoint file.

    Raises:
        CheckpointError: as `read`; also for another kind of file.
    """
    try:
        content = read(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {REMEDY}") from None
    if (
        type(content.get("format")) is not int
        or content["format"] != FORMAT
        or not isinstance(content.get("method"), dict)
    ):
        raise CheckpointError(f"{path}: not a checkpoint of this trainer (format {FORMAT}); it cannot be resumed")
    return content


# ---------------------------------------------------------------------------------------------- fitting
def fingerprint(detector: Detector) -> dict[str, Any]:
    """A short description of an architecture for error messages; tensors are compared by `check_same_tensors`."""
    return {
        "class": type(detector).__name__,
        "heads": sorted(detector.heads),
        "num_classes": detector.num_classes,
        "classes": list(detector.class_names),
        "tensors": len(detector.state_dict()),
    }


def check_same_tensors(
    own: Mapping[str, Tensor], found: Mapping[str, Tensor], path: str | Path, what: str = "model"
) -> None:
    """Raise one CheckpointError naming the first differing names and shapes, unless all agree.

    Batch norm's `num_batches_tracked` may be missing: old files have none.
    """
    missing = [n for n in own if n not in found and not n.endswith("num_batches_tracked")]
    unknown = [n for n in found if n not in own]
    wrong = [
        f"{n} is {tuple(found[n].shape)} there and {tuple(own[n].shape)} here"
        for n in own
        if n in found and own[n].shape != found[n].shape
    ]
    parts = []
    if odd := other_kinds(own, found):
        parts.append(f"another kind of number: {odd}")
    if wrong:
        parts.append(f"{len(wrong)} shapes differ: {'; '.join(wrong[:3])}")
    if missing:
        parts.append(f"{len(missing)} tensors are missing there: {', '.join(missing[:3])}")
    if unknown:
        parts.append(f"{len(unknown)} are unknown here: {', '.join(unknown[:3])}")
    if parts:
        raise CheckpointError(
            f"{path}: of another architecture than this {what}: {'. '.join(parts)}. Use the config "
            "it was made with (MODEL.*, number of classes)"
        )


def load_method(method: Method, full: Mapping[str, Any], path: str | Path) -> None:
    """Load student and teacher from a full checkpoint.

    Raises:
        CheckpointError: for another architecture, other classes, or tensors that are not finite.
    """
    described = Field(full.get("fingerprint", {}), path, "fingerprint").table()
    for row in described.values():
        if isinstance(row.value, Tensor):  # which cannot be compared
            raise row.wrong("a word, a number or a list of words")
    then, now = {key: row.value for key, row in described.items()}, fingerprint(method.student)
    what = f"{type(method.student).__name__} (made with {then}, here {now})" if then != now else "model"
    check_classes(then.get("classes"), now["classes"], path)
    own, field = method.state_dict(), Field(full["method"], path, "method")
    tensors = {name: row.value for name, row in field.table().items() if isinstance(row.value, Tensor)}
    check_same_tensors(own, tensors, path, what)
    check_tensors(field, own)
    method.load_state_dict({**own, **full["method"]})  # an old file has no counters of batch norm


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state_dict and the name of its class, for a checkpoint."""
    return {"kind": type(optimizer).__name__, "state": optimizer.state_dict()}


def load_optimizer(optimizer: torch.optim.Optimizer, found: Mapping[str, Any], path: str | Path) -> None:
    """Load what `optimizer_state` returned into `optimizer`.

    Raises:
        CheckpointError: for another optimizer, other parameter groups, or a state of another shape.
    """
    kind, field = type(optimizer).__name__, Field(found, path, "optimizer")
    if field["kind"].text() != kind:
        raise CheckpointError(f"{path}: its optimizer is {found['kind']}, here it is {kind}; see SOLVER.OPTIMIZER")
    check_optimizer(field["state"], optimizer)
    optimizer.load_state_dict(found["state"])


def check_progress(state: Mapping[str, Any], path: str | Path, scaler: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a field of the run's progress that cannot be: all but weights and optimizer.

    Args:
        state: as `read_full` returned it.
        path: of the file.
        scaler: the state of the run's own loss scaler.
    """
    root = Field(state, path)
    step = check_step(root["step"], path)
    check_scaler(root["scaler"], scaler)
    for name, row in root["streams"].table().items():
        if name not in STREAMS:
            raise row.wrong("none of this name")
        row.whole(0, step * BATCHES_A_STEP)
    for name, row in root["counters"].table().items():
        if name in ("warned", "owed"):
            row.flag()
        elif name == "best":
            check_scores(row)
        elif name == "last":
            for each in row.table().values():
                check_scores(each)
        elif name in COUNTED:
            row.whole(-1 if name == "best_step" else 0)
        else:
            raise row.wrong("none of this name")
    check_window(root["window"])
    for row in root["rng"].processes():
        check_rng(row)


def load_weights(detector: Detector, path: str | Path, which: str = "teacher") -> None:
    """Load one detector from a plain file ({"model": ...} or a bare state_dict) or a full checkpoint.

    Args:
        detector: filled in place.
        path: the file; names are the stock framework's or the adapter's own.
        which: "teacher" or "student": which one of a full checkpoint.

    Raises:
        CheckpointError: no such file, no tensors in it, or another architecture.
    """
    content = read(path)
    names = classes_of(content)
    if is_full(content):
        prefix = _PREFIXES[which]
        content = {n.removeprefix(prefix): v for n, v in content["method"].items() if str(n).startswith(prefix)}
    state = tensors_of(content, path)
    own, plain = detector.state_dict(), detector.plain_state_dict()
    target = own if sum(n in own for n in state) > sum(n in plain for n in state) else plain
    check_same_tensors(target, state, path)
    live = {tensor.data_ptr() for tensor in own.values()}
    with torch.no_grad():
        for name, value in state.items():
            if value.numel() and target[name].data_ptr() not in live:
                raise TypeError(
                    f"{type(detector).__name__}.plain_state_dict() must share memory with the model: {name}"
                )
            target[name].copy_(value)  # the dictionary's tensors are the model's own
    detector.class_names = names if len(names) == detector.num_classes else ()


def is_full(content: Mapping[str, Any]) -> bool:
    """Whether a file's content is a full checkpoint of this trainer."""
    return "format" in content and isinstance(content.get("method"), dict)


def plain_weights(detector: Detector) -> OrderedDict[str, Tensor]:
    """`detector.plain_state_dict()` on the CPU: what the stock framework loads without this project.

    The names of the classes are an attribute of it, `classes`, which torch saves and stock frameworks do not see.
    """
    rows = detector.plain_state_dict().items()
    state = OrderedDict((name, tensor.detach().cpu().clone()) for name, tensor in rows)
    state.classes = list(detector.class_names)  # type: ignore[attr-defined]
    return state


def classes_of(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes that a file's content was trained for; empty: it does not say."""
    made, names = content.get("fingerprint"), getattr(content, "classes", None)
    if is_full(content):
        names = made.get("classes") if isinstance(made, dict) else None
    return names_of_classes(names or content.get("classes"))
