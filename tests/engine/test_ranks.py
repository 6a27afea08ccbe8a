"""Two gloo processes: what one of them meets ends both, is told once, and none outlives its parent."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sed.engine.checkpoint import read_full
from sed.runtime.checkpoint_files import checkpoints
from sed.runtime.launch import LaunchError, launch
from tests.reference.commands import ROOT, ended, family, left, wait_until

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def begin(tmp_path):
    """Starts two processes of a kind; ends what is left of them."""
    started = []

    def run(kind, *before):
        command = [sys.executable, *before, "-m", "tests.reference.ranks", kind, str(tmp_path)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        pipe = subprocess.PIPE
        options = {"cwd": ROOT, "env": environment, "stdout": pipe, "stderr": pipe, "text": True}
        started.append(subprocess.Popen(command, start_new_session=True, **options))
        return started[-1]

    yield run
    for process in started:
        for member in family(process.pid):
            os.kill(member, signal.SIGKILL)
        process.communicate()


def ranks(process):
    """The pids of the processes that train."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("all fail", "error: the same everywhere"),
        ("first fails", "error: only here"),
        ("bug", r"unexpected: KeyError: 'never seen'; a bug of ours: please report it with (\S+)"),
    ],
)
def test_what_goes_wrong_is_one_line(begin, kind, told):
    process = begin(kind)
    code, out, error = ended(process, 120)
    assert (code, out) == (1, "")
    (line,) = error.splitlines()
    found = re.fullmatch(told, line)
    if kind == "bug":
        assert "in main\n    raise KeyError" in Path(found[1]).read_text()  # of the process that met it
        Path(found[1]).unlink()
    assert left(process.pid) == []


@pytest.mark.slow
def test_a_killed_rank_ends_both_within_half_a_minute(begin, tmp_path):
    process = begin("train")
    wait_until(lambda: checkpoints(tmp_path), process)
    os.kill(ranks(process)[1], signal.SIGKILL)
    code, _, error = ended(process, 30)
    assert code == 1
    (line,) = error.splitlines()
    told = r"error: process 1 of 2 was killed by SIGKILL \(.*\); go on from the last checkpoint with --resume"
    assert re.fullmatch(told, line)
    assert left(process.pid) == []
    assert checkpoints(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_parent_ends_all_at_one_step(begin, tmp_path, number):
    process = begin("train")
    wait_until(lambda: checkpoints(tmp_path), process)
    os.kill(process.pid, number)
    code, _, error = ended(process, 30)
    assert code == 128 + number
    (line,) = error.splitlines()
    match = re.fullmatch(rf"stopped by {number.name}: after step (\d+); (\S+) is whole; go on with --resume", line)
    assert Path(match[2]) == checkpoints(tmp_path)[-1]
    assert left(process.pid) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_evaluation_at_once_and_the_step_before_it_is_saved(begin, tmp_path, number):
    process = begin("evaluate")
    wait_until(lambda: len(list(tmp_path.glob("evaluation_*"))) == 2, process)
    os.kill(process.pid, number)
    code, _, error = ended(process, 30)
    assert code == 128 + number
    first, saved = checkpoints(tmp_path)
    told = f"the evaluation at step 14 did not end; {saved} is whole; go on with --resume"
    assert error.splitlines() == [f"stopped by {number.name}: {told}"]
    assert [read_full(path)["counters"]["owed"] for path in (first, saved)] == [False, True]
    assert left(process.pid) == []


@pytest.mark.slow
def test_no_rank_outlives_its_parent(begin, tmp_path):
    process = begin("train")
    wait_until(lambda: checkpoints(tmp_path), process)
    process.kill()
    assert left(process.pid) == []


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nonsense", "expected auto, or tcp://HOST:PORT"),
        ("tcp://127.0.0.1", "expected auto, or tcp://HOST:PORT"),
        ("tcp://127.0.0.1:0", "the port is 0; expected 1 to 65535"),
        ("tcp://127.0.0.1:70000", "the port is 70000; expected 1 to 65535"),
        ("tcp://no.such.host.invalid:2000", "no machine 'no.such.host.invalid' is known here"),
    ],
)
def test_a_bad_address_is_told_before_a_process_starts(url, told):
    with pytest.raises(LaunchError, match=f"--dist-url {re.escape(url)}: {re.escape(told)}"):
        launch(print, num_gpus=2, dist_url=url)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"RANK": "x"}, "the environment has RANK=x"),
        ({"WORLD_SIZE": "-1"}, "the environment has WORLD_SIZE=-1"),
        ({"RANK": "2"}, "LOCAL_RANK=0, RANK=2, WORLD_SIZE=2; expected LOCAL_RANK <= RANK < WORLD_SIZE"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK=1, RANK=0, WORLD_SIZE=2; expected"),
        ({"LOCAL_RANK": None}, "RANK=0, WORLD_SIZE=2.* but no LOCAL_RANK: start with torchrun"),
        ({"MASTER_PORT": None}, "the environment has no MASTER_PORT"),
        ({"MASTER_PORT": "0"}, "the port is 0; expected 1 to 65535"),
        ({"MASTER_ADDR": "no.such.host.invalid"}, "no machine 'no.such.host.invalid' is known here"),
    ],
)
def test_bad_variables_of_torchrun_are_told(monkeypatch, changed, told):
    for key, value in {**TORCHRUN, **changed}.items():
        monkeypatch.delenv(key, raising=False) if value is None else monkeypatch.setenv(key, value)
    with pytest.raises(LaunchError, match=told):
        launch(print)
