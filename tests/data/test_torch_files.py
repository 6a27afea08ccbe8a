"""Files of weights from anywhere: what is read, and what is said of the others."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch

from sed.data.torch_files import TorchFileError, read_torch, tensors_by_name

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2), "count": torch.tensor(3)}


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"model": w}, lambda w: {"state_dict": w, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_usual_form_is_read(tmp_path, wrap, prefix, zipped):
    path = tmp_path / "w.pth"
    named = {prefix + name: value for name, value in WEIGHTS.items()}
    torch.save(wrap(named), path, _use_new_zipfile_serialization=zipped)
    found = tensors_by_name(read_torch(path), path)
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], value) for name, value in WEIGHTS.items())


def test_safetensors_are_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors, which comes with transformers")
    safetensors.save_file(WEIGHTS, tmp_path / "w.safetensors")
    assert tensors_by_name(read_torch(tmp_path / "w.safetensors"), "w").keys() == WEIGHTS.keys()


def test_a_flipped_bit_is_found(tmp_path):
    """torch itself reads it as another number."""
    path = tmp_path / "w.pth"
    torch.save(WEIGHTS, path)
    with zipfile.ZipFile(path) as parts:
        info = next(row for row in parts.infolist() if row.filename.endswith("data/0"))
    content = bytearray(path.read_bytes())
    where = content.find(WEIGHTS["a.weight"].numpy().tobytes())
    assert info.header_offset < where
    content[where + 5] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["a.weight"], WEIGHTS["a.weight"])
    with pytest.raises(TorchFileError, match=r"w.pth: damaged: .*data/0 in it does not agree with its checksum"):
        read_torch(path)


class Evil:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return (os.mkdir, (self.folder,))


def test_strange_files_are_named_and_run_nothing(tmp_path):
    def refused(content, message, name="w.pth"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TorchFileError, match=message) as error:
            read_torch(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: cannot be read; it seems to be ")
        assert len(str(error.value).splitlines()) == 1

    torch.save(WEIGHTS, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for cut in (10, 100, len(whole) // 2, len(whole) - 1):
        refused(whole[:cut], "a zip that torch did not write, or one cut off")
    refused(b"", "empty")
    refused(b"hello", "no file of torch")
    refused(b"  <!DOCTYPE html><html>", "a web page")
    refused(b'{"a": 1}', "JSON")
    refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:4", "a pointer of Git LFS")
    refused(b"\x89HDF\r\n\x1a\n" + bytes(50), "a file of Keras or HDF5")
    refused(b"\x1f\x8b\x08" + bytes(50), "a gzip archive")
    refused(pickle.dumps(np.ones(3), protocol=4), "a pickle that would run code")
    refused(pickle.dumps({"a": 1})[:5], "a pickle that would run code, or one cut off")
    refused(bytes(64), "no file of torch", "w.safetensors")
    refused(b"\x08\x07\x12\x07pytorch", "a model of ONNX; take the file of torch", "w.onnx")
    with zipfile.ZipFile(tmp_path / "z.pth", "w") as parts:
        parts.writestr("a.txt", "a")
    refused((tmp_path / "z.pth").read_bytes(), "a zip that torch did not write")
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"a": np.ones(3)}, protocol=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TorchFileError, match=r"zoo\.pkl: cannot be read; it seems to be a pickle, as those of"):
            read_torch(tmp_path / "zoo.pkl")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"a": Evil(tmp_path / "in")}, protocol=2))
    with pytest.raises(TorchFileError, match=r"evil.pth: refused, it would run posix.mkdir"):
        read_torch(tmp_path / "evil.pth")
    torch.save({"a": Evil(tmp_path / "in")}, tmp_path / "evil.pth")
    with pytest.raises(TorchFileError, match=r"evil.pth: refused, it would run posix.mkdir"):
        read_torch(tmp_path / "evil.pth")
    assert not (tmp_path / "in").exists()


def test_what_is_no_file_is_told(tmp_path):
    with pytest.raises(TorchFileError, match=r"absent\.pth: no such file"):
        read_torch(tmp_path / "absent.pth")
    with pytest.raises(TorchFileError, match="a folder; expected a file of weights"):
        read_torch(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TorchFileError, match="no regular file; expected a file of weights"):
        read_torch(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no tensors by name"),
        ({"epoch": 3}, "holds no tensors by name"),
        ({"model": {"epoch": 3}}, "holds no tensors by name"),
        ({0: torch.ones(1)}, r"its tensors are numbered \(0, ...\)"),
        ({"a": torch.ones(2, 2).to_sparse()}, "a is sparse, quantised or without values"),
        ({"a": torch.ones(2, device="meta")}, "a is sparse, quantised or without values"),
        ({"a": torch.tensor([1.0, float("nan")])}, "a holds NaN or infinite values"),
        ({"a": torch.tensor([1.0, float("inf")]).half()}, "a holds NaN or infinite values"),
    ],
)
def test_what_is_no_state_dict_is_told(content, message):
    with pytest.raises(TorchFileError, match=f"^w.pth: {message}"):
        tensors_by_name(content, "w.pth")
