"""Signals and kills on the Detectron2 engine: what goes on is bit for bit the run that was never stopped."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)")

import torch

from sed.d2.hooks import TeacherUpdate
from sed.d2.run import train
from sed.runtime.checkpoint_files import checkpoints
from sed.runtime.stopping import Stopped, catch_signals
from tests.reference.commands import ended, family, left, start, wait_until
from tests.reference.detectron2_run import tiny_config
from tests.reference.squares import write_set
from tests.reference.training import same

STEPS = 12
KILLS = int(os.environ.get("SED_KILLS", "1"))  # at so many random moments


def load(path):
    return torch.load(path, weights_only=True)


def same_runs(a: Path, b: Path) -> None:
    """Weights, optimizer, random numbers of the last checkpoints, and the evaluations."""
    one, two = (load(checkpoints(folder)[-1]) for folder in (a, b))
    same(one["model"], two["model"])
    same(one["trainer"]["_trainer"]["optimizer"]["state"], two["trainer"]["_trainer"]["optimizer"]["state"])
    same(*(run["trainer"]["hooks"]["Checkpoints"]["processes"] for run in (one, two)))


@pytest.mark.parametrize("step", [1, 3])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, squares, monkeypatch, step):
    more = {"SOLVER__CHECKPOINT_PERIOD": 4}
    train(tiny_config(squares, tmp_path / "a", **more))
    with monkeypatch.context() as patch:
        plain = TeacherUpdate.after_step

        def stop(self):
            plain(self)
            if self.trainer.iter == step:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(TeacherUpdate, "after_step", stop)
        with pytest.raises(Stopped, match=f"SIGTERM: after step {step + 1}; .* is whole"), catch_signals():
            train(tiny_config(squares, tmp_path / "b", **more))
    assert [path.name for path in checkpoints(tmp_path / "b")] == [f"checkpoint_000000{step + 1}.pth"]
    train(tiny_config(squares, tmp_path / "b", **more), resume=True)
    same_runs(tmp_path / "a", tmp_path / "b")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {"train": write_set(folder, "train", 10, 0), "test": write_set(folder, "test", 5, 1)}


@pytest.fixture(scope="module")
def begin(data):
    """Starts training processes; ends what is left of them."""
    started = []

    def run(output, *flags, **more):
        more = {"DATALOADER__NUM_WORKERS": 1, "SOLVER__CHECKPOINT_PERIOD": 1, **more}
        started.append(start(data, output, *flags, engine="detectron2", **more))
        return started[-1]

    yield run
    for process in started:
        for member in family(process.pid):
            os.kill(member, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def straight(begin, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    code, _, told = ended(begin(folder, SOLVER__MAX_ITER=STEPS, SOLVER__STEPS="(8,)"), 200)
    assert code == 0, told
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_a_random_moment_and_resumed_is_bit_for_bit_the_same(begin, straight, tmp_path, number):
    folder, more = tmp_path / "run", {"SOLVER__MAX_ITER": STEPS, "SOLVER__STEPS": "(8,)"}
    process = begin(folder, **more)
    chosen = random.SystemRandom().randrange(1, STEPS - 4)
    wait_until(lambda: any(int(path.stem[-7:]) >= chosen for path in checkpoints(folder)), process)
    time.sleep(random.SystemRandom().uniform(0, 0.2))
    process.kill()
    process.wait()
    assert int(checkpoints(folder)[-1].stem[-7:]) < STEPS, "killed too late"
    assert left(process.pid) == []
    code, _, told = ended(begin(folder, "--resume", **more), 200)
    assert code == 0, told
    same_runs(straight, folder)


@pytest.mark.slow
def test_a_signal_to_all_ends_a_training_with_a_checkpoint(begin, tmp_path):
    process = begin(tmp_path / "run")
    wait_until(lambda: checkpoints(tmp_path / "run"), process)
    refused = begin(tmp_path / "run", "--resume")
    code, _, told = ended(refused, 120)
    assert (code, told.splitlines()[-1][:7]) == (1, "error: ")
    assert f"is in use by a run that has not ended (process {process.pid} on " in told
    os.killpg(process.pid, signal.SIGINT)
    code, _, told = ended(process)
    assert code == 130
    match = re.fullmatch(
        r"stopped by SIGINT: after step \d+; (\S+) is whole; go on with --resume", told.splitlines()[-1]
    )
    assert Path(match[1]) == checkpoints(tmp_path / "run")[-1]
    assert left(process.pid) == []
