"""Hostile files of weights: cut, changed, planted, of other tools. One line that names the file, or they load rightly.

`SED_FUZZ=all` (`make fuzz`) runs all of them, else a seeded fifth runs.
"""

from __future__ import annotations

import os
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch

from sed.detectors.weights import WeightsError, read_state_dict
from sed.engine import checkpoint
from sed.runtime.checkpoint_files import CheckpointError
from tests.reference.training import TinyDetector, same

ALL = os.environ.get("SED_FUZZ") == "all"
FIRST = "backbone.0.weight"


class Evil:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return (os.mkdir, (self.folder,))


def planted(folder):
    """What a pickle may hide: name -> content."""
    evil = Evil(folder)
    return {
        "bare": evil,
        "value": {FIRST: evil},
        "under model": {"model": {FIRST: evil}},
        "key": {(evil,): 1},
        "in a list": {"state_dict": [1, evil]},
        "metadata": {"model": state(), "args": evil},
    }


def state():
    torch.manual_seed(1)
    return {name: value.clone() for name, value in TinyDetector().plain_state_dict().items()}


def with_first(value):
    return {**state(), FIRST: value}


def contents():
    """Name -> (content, whether it loads)."""
    good, first = state(), state()[FIRST]
    forms = {
        "bare": good,
        "module.": {f"module.{k}": v for k, v in good.items()},
        "half": {k: v.half() for k, v in good.items()},
        "double": {k: v.double() for k, v in good.items()},
    }
    cases = {}
    for form, tensors in forms.items():
        for key in ("", "model", "state_dict", "teacher", "student"):
            cases[f"{form} under {key!r}"] = ({key: tensors, "epoch": 3} if key else tensors, True)
    strange = {
        "other shape": first[:2],
        "transposed": first.transpose(0, 1),
        "scalar": torch.tensor(1.0),
        "empty": torch.empty(0),
        "nan": torch.full_like(first, float("nan")),
        "one infinite": first.clone().index_fill(0, torch.tensor([0]), float("inf")),
        "half infinite": torch.full_like(first, float("inf")).half(),
        "sparse": first.to_sparse(),
        "csr": first.flatten(1).to_sparse_csr(),
        "meta": first.to("meta"),
        "quantised": torch.quantize_per_tensor(first, 0.1, 0, torch.qint8),
        "int": first.to(torch.int64),
        "bool": first > 0,
        "complex": first.to(torch.complex64),
        "text": "weights",
        "none": None,
        "list": first.tolist(),
        "dict": {"data": first},
    }
    for name, value in strange.items():
        cases[name] = (with_first(value), False)
        cases[f"{name} under model"] = ({"model": with_first(value)}, False)
        cases[f"{name}, module."] = ({f"module.{k}": v for k, v in with_first(value).items()}, False)
    cases |= {
        "numbers": ({0: first, 1: first}, False),
        "number among names": ({**good, 3: first}, False),
        "list of tensors": ([first], False),
        "a tensor": (first, False),
        "a number": (7, False),
        "a text": ("weights", False),
        "nothing": (None, False),
        "empty dict": ({}, False),
        "empty model": ({"model": {}}, False),
        "nested model": ({"model": {"model": {"model": 1}}}, False),
        "missing": ({k: v for k, v in good.items() if k != FIRST}, False),
        "unknown": ({**good, "more": first}, False),
        "another prefix": ({f"net.{k}": v for k, v in good.items()}, False),
        "full without state": ({"format": 1, "method": {}}, False),
        "full of numbers": ({"format": 1, "method": {0: first}, "fingerprint": [1]}, False),
        "full, odd fingerprint": ({"format": 1, "method": full(good), "fingerprint": 3}, True),
        "full, odd classes": ({"format": 1, "method": full(good), "fingerprint": {"classes": {"a": 1}}}, True),
        "odd classes": ({"model": good, "classes": [1, None]}, True),
    }
    return cases


def full(tensors):
    return {f"teacher.module.{name}": value for name, value in TinyDetector().state_dict().items()} | {
        f"teacher.module.model.{name}": value for name, value in tensors.items()
    }


CASES = contents()


def some(cases, seed=0):
    cases = list(cases)
    return cases if ALL else random.Random(seed).sample(cases, max(1, len(cases) // 5))


def told(path):
    """The error of each way in, the messages checked; None where it loaded."""
    errors = []
    for load in (lambda: checkpoint.load_weights(TinyDetector(), path), lambda: read_state_dict(path)):
        try:
            load()
            errors.append(None)
        except (CheckpointError, WeightsError) as error:
            errors.append(str(error))
    for text in filter(None, errors):
        assert text.startswith(str(path))
        assert "\n" not in text
        assert len(text) < 700
        assert "delete" not in text
    return errors


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", some(CASES))
def test_contents(tmp_path, name, zipped):
    path = tmp_path / "w.pth"
    content, loads = CASES[name]
    try:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    except (RuntimeError, NotImplementedError):
        pytest.skip("torch cannot write this one so")
    whole, _ = told(path)
    if loads:
        assert whole is None
        detector = TinyDetector()
        checkpoint.load_weights(detector, path)
        expected = state()
        if name.startswith("half"):
            expected = {k: v.half().float() for k, v in expected.items()}
        same(dict(detector.plain_state_dict()), expected)
    else:
        assert whole, "it was loaded"


@pytest.mark.parametrize("name", planted(""))
@pytest.mark.parametrize("way", ["torch", "legacy", *range(pickle.HIGHEST_PROTOCOL + 1)])
def test_planted_code_does_not_run(tmp_path, name, way):
    path, content = tmp_path / "evil.pth", planted(tmp_path / "broken_in")[name]
    if isinstance(way, int):
        path.write_bytes(pickle.dumps(content, protocol=way))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=way == "torch")
    assert all(told(path))
    assert not (tmp_path / "broken_in").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_cut_and_changed_files(tmp_path, zipped):
    """Any cut is told; of a zip any changed byte is told or was none of the content."""
    path, generator = tmp_path / "w.pth", random.Random(3)
    torch.save(state(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for cut in [0, 1, 2, 4, 30, len(whole) - 1, *(generator.randrange(len(whole)) for _ in range(50 if ALL else 10))]:
        path.write_bytes(whole[:cut])
        assert all(told(path)), cut
    for _ in range(100 if ALL else 20):
        where, size = generator.randrange(len(whole)), generator.randrange(1, 20)
        path.write_bytes(whole[:where] + generator.randbytes(size) + whole[where + size :])
        if not told(path)[0] and zipped:
            detector = TinyDetector()
            checkpoint.load_weights(detector, path)
            same(dict(detector.plain_state_dict()), state())


def test_files_of_other_tools(tmp_path):
    def refused(name, content, message):
        (tmp_path / name).write_bytes(content)
        for text in told(tmp_path / name):
            assert text
            assert message in text

    arrays = {name: value.numpy() for name, value in state().items()}
    refused("zoo.pkl", pickle.dumps({"model": arrays, "__author__": "x"}), "ENGINE detectron2 reads those")
    np.savez(tmp_path / "a.npz", **arrays)
    refused("b.pth", (tmp_path / "a.npz").read_bytes(), "a zip that torch did not write")
    refused("x.onnx", b"\x08\x07\x12\x07pytorch", "a model of ONNX")
    refused("page.pth", b"<!DOCTYPE html>", "a web page")
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("archive/data.pkl", bytes(10**7))
    refused("bomb.pth", (tmp_path / "bomb.pth").read_bytes(), "a zip that torch did not write")
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "dead.pth").symlink_to("nowhere")
    for name in ("pipe.pth", "folder.pth", "dead.pth"):
        assert all(told(tmp_path / name))
