"""Files of tensors from anywhere, read without running code, and what a file is that cannot be read."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WRAPPERS = ("model", "state_dict", "teacher", "student")  # keys that other tools put a state_dict under
TEACHER = "teacher.module.model."  # begins the names of the teacher's tensors in a checkpoint of a run
# First bytes -> what such a file is
_KINDS = (
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself with `git lfs pull`"),
    (b"\x89HDF", "a file of Keras or HDF5, not of torch"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"\x93NUMPY", "an array of NumPy"),
    (b"<", "a web page or XML, such as a download that asked for a login"),
    (b"{", "JSON"),
    (b"\x80", "a pickle that would run code, or one cut off"),
    (b"PK", "a zip that torch did not write, or one cut off or changed"),
)


class TorchFileError(RuntimeError):
    """A file of tensors that cannot be used; the message names it and says what it seems to be."""


def read_torch(path: str | Path) -> Any:
    """What a file of torch or of safetensors holds, on the CPU.

    Nothing in the file is run (`weights_only=True`), and what torch wrote as a zip is compared with its checksums:
    torch itself reads a flipped bit as another number.

    Raises:
        TorchFileError: no such file, another kind of file, or one that is not whole.
    """
    path = Path(path)
    if not path.exists():
        raise TorchFileError(f"{path}: no such file")
    if not path.is_file():
        raise TorchFileError(
            f"{path}: {'a folder' if path.is_dir() else 'no regular file'}; expected a file of weights"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as parts:
                if damaged := parts.testzip():
                    raise TorchFileError(f"{path}: damaged: {damaged} in it does not agree with its checksum")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about a file is told in one line
            return torch.load(path, map_location="cpu", weights_only=True)
    except TorchFileError:
        raise
    except Exception as error:  # the readers of torch, zip and pickle raise whatever a strange file leads them to
        code = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code:
            arrays = code[1].startswith("numpy")
            hint = " (arrays of NumPy, as in Detectron2's model zoo: ENGINE detectron2 reads those)" if arrays else ""
            raise TorchFileError(
                f"{path}: refused, it would run {code[1]}{hint}; expected tensors and numbers alone (a state_dict)"
            ) from None
        first = next(iter(str(error).splitlines()), "")
        advice = isinstance(error, pickle.UnpicklingError)  # torch's, to run the code that is in it
        reason = type(error).__name__ if advice else f"{type(error).__name__}: {first}"[:200]
        raise TorchFileError(f"{path}: cannot be read; it seems to be {kind_of(path)} ({reason})") from None


def tensors_by_name(content: Any, path: str | Path) -> dict[str, Tensor]:
    """The tensors of what `read_torch` found, bare or under one of `WRAPPERS`, without the "module." of DataParallel.

    Of a checkpoint of a run of the native engine, those of its teacher, as `model_final.pth` names them.

    Raises:
        TorchFileError: where there are none by name, or one is sparse, quantised, without values or not finite.
    """
    if isinstance(content, dict) and isinstance(content.get("method"), dict):
        content = {n.removeprefix(TEACHER): v for n, v in content["method"].items() if str(n).startswith(TEACHER)}
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    found = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not found:
        raise TorchFileError(f"{path}: holds no tensors by name; expected a state_dict")
    for name, value in found.items():
        if not isinstance(name, str):
            raise TorchFileError(f"{path}: its tensors are numbered ({name!r}, ...), not named; expected a state_dict")
        if not plain_numbers(value):
            raise TorchFileError(f"{path}: {name} is sparse, quantised or without values; expected plain numbers")
        if not finite(value):
            raise TorchFileError(f"{path}: {name} holds NaN or infinite values; such a model finds nothing")
    return {name.removeprefix("module."): value for name, value in found.items()}


def plain_numbers(value: Tensor) -> bool:
    """Whether a tensor is dense, on the CPU and not quantised: its numbers can be copied."""
    return value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"


def other_kinds(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """The first tensor of `found` with another kind of number than its namesake, in words; "": none.

    Half precision and double are the same kind as float; whole numbers, flags and complex numbers are others.
    """
    for name, value in found.items():
        if name in own and own[name].is_floating_point() and not value.is_floating_point():
            return f"{name} is {value.dtype}, here it is {own[name].dtype}"
    return ""


def finite(value: Tensor) -> bool:
    """Whether all numbers of a tensor are finite."""
    if not value.is_floating_point():
        return True
    return bool((value if value.element_size() > 1 else value.float()).isfinite().all())  # torch has none for 8 bits


def kind_of(path: str | Path) -> str:
    """What a file seems to be, by its first bytes."""
    try:
        with Path(path).open("rb") as stream:
            begin = stream.read(64).lstrip()
    except OSError:
        return "unreadable"
    if not begin:
        return "empty"
    if begin.startswith(b"\x80") and Path(path).suffix == ".pkl":
        return "a pickle, as those of Detectron2's model zoo (ENGINE detectron2 reads those), or one cut off"
    if Path(path).suffix == ".onnx":
        return "a model of ONNX; take the file of torch that it was made from"
    return next((kind for magic, kind in _KINDS if begin.startswith(magic)), "no file of torch")
