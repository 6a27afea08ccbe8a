"""Files: atomic, kept, refused with a reason; weights in every form that is promised."""

import os
import pickle
import random

import numpy as np
import pytest
import torch

from sed.engine import checkpoint
from sed.runtime.checkpoint_files import CheckpointError, checkpoints
from sed.runtime.rng import rng_state, set_rng_state
from tests.reference.training import TinyDetector, make_trainer, same


def test_a_write_that_dies_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    checkpoint.save_atomic({"x": torch.ones(3)}, path)

    def half(content, stream):
        stream.write(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save_atomic({"x": torch.zeros(3)}, path)
    assert checkpoint.read(path)["x"].tolist() == [1, 1, 1]
    assert os.listdir(tmp_path) == ["a.pth"]


def test_the_file_appears_only_when_whole(tmp_path, monkeypatch):
    path, seen = tmp_path / "a.pth", []
    replace = os.replace

    def look(source, target):
        seen.append((path.exists(), torch.load(source, weights_only=True)["x"].tolist()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    checkpoint.save_atomic({"x": torch.ones(1)}, path)
    assert seen == [(False, [1.0])]
    assert path.exists()


def test_keep_last_k_never_deletes_the_new_one(tmp_path):
    for step in (1, 2, 30, 10_000_000):
        checkpoint.save({"method": {}}, tmp_path, step, kept=2)
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint_0000030.pth", "checkpoint_10000000.pth"]
    checkpoint.save({"method": {}}, tmp_path, 5, kept=0)
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint_0000005.pth"]


def test_unreadable_files_are_named(tmp_path):
    path = tmp_path / "checkpoint_0000001.pth"
    with pytest.raises(CheckpointError, match=r"checkpoint_0000001.pth: no such file"):
        checkpoint.read(path)
    checkpoint.save_atomic({"x": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(
        CheckpointError,
        match=r"checkpoint_0000001.pth: cannot be read; it seems to be a zip",
    ):
        checkpoint.read(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="expected a dictionary, found list"):
        checkpoint.read(path)
    torch.save({"x": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of this trainer"):
        checkpoint.read_full(path)


def test_a_strangers_file_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "broken_in"),))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Evil()}, protocol=2))
    with pytest.raises(CheckpointError, match="refused, it would run"):
        checkpoint.read(tmp_path / "evil.pth")
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="refused, it would run"):
        checkpoint.load_weights(TinyDetector(), tmp_path / "evil.pth")
    assert not (tmp_path / "broken_in").exists()


@pytest.mark.parametrize("form", ["bare", "model", "own names"])
def test_plain_weights_load(tmp_path, form):
    source, target = TinyDetector(norm="BN"), TinyDetector(norm="BN")
    source.model["backbone"][1].running_mean.fill_(3.0)
    plain = checkpoint.plain_weights(source)
    content = {"bare": plain, "model": {"model": plain, "epoch": 3}, "own names": source.state_dict()}[form]
    torch.save(content, tmp_path / "w.pth")
    checkpoint.load_weights(target, tmp_path / "w.pth")
    same(dict(target.state_dict()), dict(source.state_dict()))


def test_plain_weights_are_copies():
    source = TinyDetector()
    plain = checkpoint.plain_weights(source)
    with torch.no_grad():
        source.model["head"].bias.add_(1)
    assert not torch.equal(plain["head.bias"], source.model["head"].bias)


def test_teacher_or_student_of_a_full_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path, max_iter=6)
    trainer.train()
    path = checkpoints(tmp_path)[-1]
    student, teacher = TinyDetector(), TinyDetector()
    checkpoint.load_weights(student, path, "student")
    checkpoint.load_weights(teacher, path)
    same(dict(student.state_dict()), dict(trainer.method.student.state_dict()))
    same(dict(teacher.state_dict()), dict(trainer.method.teacher.module.state_dict()))
    assert not torch.equal(student.model["head"].weight, teacher.model["head"].weight)


def test_weights_that_do_not_fit_change_nothing_and_are_told(tmp_path):
    torch.save(checkpoint.plain_weights(TinyDetector(channels=6)), tmp_path / "w.pth")
    target = TinyDetector()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"w.pth: of another architecture.*\(6, 3, 3, 3\) there and \(4, 3, 3, 3\)"
    ):
        checkpoint.load_weights(target, tmp_path / "w.pth")
    same(dict(target.state_dict()), before)
    torch.save({"strange": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"missing there: backbone.0.weight.*unknown here: strange"):
        checkpoint.load_weights(target, tmp_path / "w.pth")
    torch.save({"lr": 0.1}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        checkpoint.load_weights(target, tmp_path / "w.pth")


def test_random_numbers_go_on_where_they_stopped(tmp_path):
    def draw():
        return (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1))  # noqa: NPY002

    random.gauss(0, 1)  # leaves a half-used pair behind
    torch.save(rng_state(), tmp_path / "rng.pth")
    expected = draw()
    draw()
    set_rng_state(checkpoint.read(tmp_path / "rng.pth"))
    assert draw() == expected


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("scaler", torch.tensor([]), "scaler is .*; expected a dictionary"),
        ("rng", [], r"rng is \[\]; expected a list of one for each process"),
        ("streams", {"other": 1}, "streams.other is 1; expected none of this name"),
        ("fingerprint", {"tensors": torch.tensor([])}, "fingerprint.tensors is .*; expected a word, a number"),
    ],
)
def test_a_field_that_cannot_be_is_told(tmp_path, field, value, told):
    make_trainer(tmp_path, max_iter=2).train()
    path = checkpoints(tmp_path)[-1]
    torch.save({**checkpoint.read_full(path), field: value}, path)
    with pytest.raises(CheckpointError, match=rf"^{path}: {told}"):
        make_trainer(tmp_path, max_iter=4).resume(path)


def test_a_step_of_the_optimizer_is_whole(tmp_path):
    make_trainer(tmp_path, max_iter=2).train()
    path = checkpoints(tmp_path)[-1]
    state = checkpoint.read_full(path)
    number, row = next(iter(state["optimizer"]["state"]["state"].items()))
    row["step"] = 1.5
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=rf"state.{number}.step is 1.5; expected a number of steps"):
        make_trainer(tmp_path, max_iter=4).resume(path)
