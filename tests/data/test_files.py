"""Files are written whole or not at all, and where they cannot be written this is told first."""

from __future__ import annotations

import errno
import os
import threading

import pytest
import torch

from sed.data import files
from sed.data.errors import DataError
from sed.data.files import replacing, save_text, try_file, try_folder
from sed.runtime.checkpoint_files import checkpoints, save_atomic
from sed.runtime.output import OutputError, claim_folder, room_needed
from tests.reference.training import make_trainer, same


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_folders_for_results_are_tried(tmp_path):
    assert try_folder(tmp_path / "a" / "b", "--output").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    for folder, message in (
        ("", "OUTPUT_DIR is ''; expected a path"),
        ("a\0b", "expected a path"),
        ("caf\udce9", "this name is not in UTF-8"),
        (tmp_path / "file", "expected a folder to write to, .*file is a file"),
        (tmp_path / "file" / "in", "cannot be written to|is a file"),
        ("/dev/null", "expected a folder to write to, /dev/null is a file"),
        ("/proc/out", "cannot be written to"),
        (tmp_path / ("x" * 300), "cannot be written to .File name too long."),
    ):
        with pytest.raises(DataError, match=f"^OUTPUT_DIR .*{message.removeprefix('OUTPUT_DIR ')}"):
            claim_folder(folder, resume=False)


def test_files_for_results_are_tried(tmp_path):
    assert try_file(tmp_path / "new" / "a.json", "--output") == tmp_path / "new" / "a.json"
    os.mkfifo(tmp_path / "pipe")
    for path, message in ((tmp_path, "this is a folder"), (tmp_path / "pipe", "this is no regular file")):
        with pytest.raises(DataError, match=message):
            try_file(path, "--output")


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path):
    save_text("old", tmp_path / "a.json")

    def half():
        with replacing(tmp_path / "a.json") as stream:
            stream.write(b"half")
            full()

    with pytest.raises(OSError, match=r"No space left on device: .*a\.json") as error:
        half()
    assert error.value.errno == errno.ENOSPC
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


def test_the_error_of_torch_is_the_systems(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "open", lambda *_: FullAfter(tmp_path), raising=False)
    with pytest.raises(OSError, match=r"No space left on device: .*a\.pth"):
        save_atomic({"a": torch.ones(1000)}, tmp_path / "a.pth")


class FullAfter:
    """A stream on a disk with room for some bytes."""

    def __init__(self, folder, room=200):
        self.room = room

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def write(self, content):
        self.room -= len(content)
        if self.room < 0:
            full()
        return len(content)

    def flush(self):
        pass


def test_other_files_are_no_checkpoints(tmp_path):
    for name in ("checkpoint_best.pth", "checkpoint_.pth", "checkpoint_3 (1).pth", "checkpoint_0000004.pth"):
        (tmp_path / name).touch()
    (tmp_path / "checkpoint_0000009.pth").mkdir()
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint_0000004.pth"]


@pytest.mark.parametrize("moment", range(5))
def test_a_run_goes_on_after_a_full_disk_bit_for_bit(tmp_path, monkeypatch, moment):
    """At the first and a later checkpoint, within one and at its end, and where a line of metrics is written."""
    (tmp_path / "whole").mkdir()
    whole = make_trainer(tmp_path / "whole", max_iter=8)
    whole.train()
    folder = tmp_path / "run"
    folder.mkdir()
    trainer, calls, save, replace = make_trainer(folder, max_iter=8), [0], torch.save, os.replace

    def after(count, then):
        def call(*args, **more):
            calls[0] += 1
            return full() if calls[0] == count else then(*args, **more)

        return call

    with monkeypatch.context() as patch:
        if moment < 2:
            patch.setattr(torch, "save", after((1, 3)[moment], save))
        elif moment < 4:
            patch.setattr(os, "replace", after((1, 4)[moment - 2], replace))
        else:
            patch.setattr("sed.engine.logging.Reporter.write", full)
        with pytest.raises(
            OutputError, match=r"No space left on device.*(is whole: make room|no checkpoint is written)"
        ):
            with room_needed(folder):
                trainer.train()
    again = make_trainer(folder, max_iter=8)
    if saved := checkpoints(folder):
        again.resume(saved[-1])
        assert again.step > 0
    again.train()
    same(again.state_dict(), whole.state_dict())


def test_what_threads_do_with_their_errors_is_as_before_a_run(tmp_path):
    before = threading.excepthook
    with room_needed(tmp_path):
        assert threading.excepthook is not before
    assert threading.excepthook is before
    with pytest.raises(OutputError), room_needed(tmp_path):
        full()
    assert threading.excepthook is before
