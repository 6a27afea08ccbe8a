"""Signals, killed workers and killed ranks: a checkpoint, one line, an exit code, and no process left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sed.data.errors import DataError
from sed.runtime.checkpoint_files import checkpoints
from sed.runtime.output import LOCK, OutputError, only_run
from sed.runtime.stopping import Stopped, asked, at_step_end, catch_signals
from tests.reference.commands import ROOT, ended, family, left, start, wait_until
from tests.reference.squares import write_set
from tests.reference.training import TinyMethod, make_trainer, same

OPTIONS = {"max_iter": 6, "eval_period": 3, "checkpoint_period": 100}


# ---------------------------------------------------------------------------------------------- within a process
def test_a_signal_waits_for_the_end_of_a_step_and_a_second_one_does_not():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped, match="stopped by SIGTERM") as stop, catch_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.value.code == 143
    with catch_signals():
        with at_step_end():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # one Ctrl-C may come twice
            assert asked() == signal.SIGINT
            time.sleep(1.1)
            with pytest.raises(Stopped) as stop:
                os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(Stopped), at_step_end(False):
                pytest.fail("a part that ends at once is not begun")
            with pytest.raises(Stopped), catch_signals(), at_step_end(False):
                os.kill(os.getpid(), signal.SIGTERM)
    assert stop.value.code == 130
    assert asked() == 0
    assert signal.getsignal(signal.SIGINT) is before


def evaluate(detector):
    return {"AP": float(torch.rand(()) + next(detector.parameters()).detach().sum())}


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, monkeypatch, step):
    """After step 3 an evaluation is due, which the resumed run makes."""
    for name in ("straight", "stopped"):
        (tmp_path / name).mkdir()
    straight = make_trainer(tmp_path / "straight", evaluate=evaluate, **OPTIONS)
    straight.train()
    with monkeypatch.context() as patch:
        plain = TinyMethod.forward

        def forward(self, labeled, unlabeled, number):
            if number == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return plain(self, labeled, unlabeled, number)

        patch.setattr(TinyMethod, "forward", forward)
        with pytest.raises(Stopped, match=rf"after step {step + 1}; \S+checkpoint_000000{step + 1}.pth is whole"):
            with catch_signals():
                make_trainer(tmp_path / "stopped", evaluate=evaluate, **OPTIONS).train()
    (saved,) = checkpoints(tmp_path / "stopped")
    again = make_trainer(tmp_path / "stopped", evaluate=evaluate, **OPTIONS)
    again.resume(saved)
    again.train()
    same(straight.state_dict(), again.state_dict())


def test_a_signal_ends_an_evaluation_at_once_and_the_resumed_run_makes_it(tmp_path):
    def stop(detector):
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("goes on")

    with pytest.raises(Stopped, match=r"at step 3 did not end; \S+0003.pth is whole; go on"), catch_signals():
        make_trainer(tmp_path, evaluate=stop, **OPTIONS).train()
    again = make_trainer(tmp_path, evaluate=evaluate, **OPTIONS)
    again.resume(checkpoints(tmp_path)[-1])
    assert again.step == 3
    assert again.counters.owed
    again.train()
    assert not again.counters.owed


@pytest.mark.parametrize("stream", ["labeled", "unlabeled"])
def test_an_image_that_cannot_be_read_costs_no_step(tmp_path, monkeypatch, stream):
    for name in ("straight", "failed"):
        (tmp_path / name).mkdir()
    straight = make_trainer(tmp_path / "straight", **OPTIONS)
    straight.train()
    trainer = make_trainer(tmp_path / "failed", **OPTIONS)
    source = trainer.streams[stream]
    plain = type(source).__next__

    def broken(self):
        if self is source and self.position == 3:
            raise DataError("x.jpg: cut off")
        return plain(self)

    with monkeypatch.context() as patch:
        patch.setattr(type(source), "__next__", broken)
        with pytest.raises(DataError, match="cut off"):
            trainer.train()
    again = make_trainer(tmp_path / "failed", **OPTIONS)
    again.resume(checkpoints(tmp_path / "failed")[-1])
    assert again.step == {"labeled": 3, "unlabeled": 5}[stream]  # burn-in is 2 steps
    again.train()
    same(straight.state_dict(), again.state_dict())


def test_a_folder_has_one_run_at_a_time(tmp_path):
    code = "import sys, time\nfrom sed.runtime.output import only_run\n"
    code += f"with only_run({str(tmp_path / 'run')!r}):\n    print('in', flush=True)\n    time.sleep(60)\n"
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "in\n"
        told = (
            rf"run is in use by a run that has not ended \(process {other.pid} on .*\): wait for its end, stop it, or"
        )
        with pytest.raises(OutputError, match=told), only_run(tmp_path / "run"):
            pytest.fail("two at once")
    finally:
        other.kill()
        other.wait()
    for _ in range(2):  # free after a kill, and after an end
        with only_run(tmp_path / "run"):
            assert str(os.getpid()) in (tmp_path / "run" / LOCK).read_text()


# ---------------------------------------------------------------------------------------------- whole processes
@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {"train": write_set(folder, "train", 10, 0), "test": write_set(folder, "test", 5, 1)}


@pytest.fixture
def begin(data, tmp_path):
    """Starts training processes; ends what is left of them."""
    started = []

    def run(*flags, **more):
        started.append(start(data, tmp_path / "run", *flags, **{"DATALOADER__NUM_WORKERS": 1, **more}))
        return started[-1]

    yield run
    for process in started:
        for member in family(process.pid):
            os.kill(member, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "number", "code"),
    [(os.kill, signal.SIGTERM, 143), (os.killpg, signal.SIGTERM, 143), (os.killpg, signal.SIGINT, 130)],
)
def test_a_signal_ends_a_training_with_a_checkpoint_and_one_line(begin, tmp_path, send, number, code):
    """To the process alone, and as a scheduler and a terminal send it: to its workers too."""
    process = begin()
    wait_until(lambda: checkpoints(tmp_path / "run"), process)
    assert len(family(process.pid)) > 1
    send(process.pid, number)
    found, _, told = ended(process)
    assert found == code
    (line,) = told.splitlines()
    match = re.fullmatch(rf"stopped by {number.name}: after step (\d+); (\S+) is whole; go on with --resume", line)
    assert Path(match[2]) == checkpoints(tmp_path / "run")[-1]
    assert int(match[1]) == int(checkpoints(tmp_path / "run")[-1].stem[-7:])
    assert left(process.pid) == []


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_with_one_line_and_all_steps_so_far(begin, tmp_path):
    process = begin(SOLVER__CHECKPOINT_PERIOD=1)
    wait_until(lambda: len(checkpoints(tmp_path / "run")) > 2, process)
    os.kill(next(member for member in family(process.pid) if member != process.pid), signal.SIGKILL)
    code, out, told = ended(process)
    assert code == 1
    (line,) = told.splitlines()
    assert line.startswith("error: a process that reads images died (DataLoader worker")
    assert "Traceback" not in out
    assert left(process.pid) == []


@pytest.mark.slow
def test_of_two_runs_started_at_once_one_is_refused(begin, tmp_path):
    pair = [begin(), begin()]
    while all(process.poll() is None for process in pair):
        time.sleep(0.05)
    (lost,) = (process for process in pair if process.poll() is not None)
    (kept,) = (process for process in pair if process is not lost)
    wait_until(lambda: checkpoints(tmp_path / "run"), kept)
    for refused in (lost, begin("--resume")):
        code, _, told = ended(refused, 120)
        assert code == 1
        (line,) = told.splitlines()
        assert re.search(rf"is in use by a run that has not ended \(process {kept.pid} on ", line)
    os.kill(kept.pid, signal.SIGINT)
    assert ended(kept)[0] == 130
