"""A study that is stopped starts nothing new, and one whose sets cannot be found trains nothing."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from sed.studies.processes import call, stop_all
from tests.tools.study_desk import TRAIN

FEW = {"seeds": [0], "equal_seconds": [], "methods": {"control": "SEMI.METHOD supervised", "plus": ""}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"test": "digits_tset"}, "test of case 30 labels: digits_tset: neither a file"),
        ({"tune": "tune.json, first half"}, "tune of case 30 labels: tune.json: neither a file"),
        (
            {"options": "ENGINE torchvision DATASETS.TRAIN digits_trian"},
            "TRAIN of 30 labels, control: digits_t",
        ),
        (
            {"options": "ENGINE torchvision SEMI.LABELED_COUNT 0 DATASETS.UNLABELED photos_of_nobody"},
            "DATASETS.UNLABELED of 30 labels, control: photos_of_nobody: neither a file",
        ),
        ({"config": "no_such.yaml"}, "no_such.yaml"),
    ],
)
def test_a_misspelt_set_or_config_is_told_before_anything_is_trained(desk, changes, told) -> None:
    with pytest.raises(SystemExit, match=f"^error: .*{told}"):
        desk.run(**{**FEW, **changes})
    assert desk.calls == []


def test_a_test_set_that_cannot_be_read_is_told_before_anything_is_trained(desk) -> None:
    (desk.folder / "val.json").write_text('{"images": 1}')
    with pytest.raises(SystemExit, match=r"^error: test of case 30 labels: .*val\.json"):
        desk.run(**FEW, test=str(desk.folder / "val.json"))
    assert desk.calls == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_study_starts_nothing_new(desk, capsys, number, code) -> None:
    """The training that runs ends as if nothing had been; its evaluation and the next training are not begun."""
    begun = desk.folder / "begun"
    wait = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); Path({str(begun)!r}).touch(); time.sleep(3)"
    (desk.folder / "train.py").write_text(TRAIN.replace("assert told", f"{wait}\nassert told", 1))

    def stop() -> None:
        while not begun.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(SystemExit) as ended:
        desk.run("--jobs", "1", **FEW)
    thread.join()
    assert ended.value.code == code
    assert capsys.readouterr().err.splitlines()[-1] == "stopped; give the command again to go on"
    assert desk.calls == ["train 30_labels/control-0"]


def test_once_stopped_nothing_is_started(tmp_path) -> None:
    stopped = threading.Event()
    stop_all(stopped)
    (tmp_path / "write.py").write_text(f"open({str(tmp_path / 'there')!r}, 'w')")
    with pytest.raises(SystemExit, match="log: stopped before it was started"):
        call(tmp_path / "write.py", [], tmp_path / "log", stopped=stopped)
    assert not (tmp_path / "there").exists()


def test_stopping_ends_the_wait_for_an_earlier_process(tmp_path) -> None:
    (tmp_path / "sleep.py").write_text("import time\ntime.sleep(8)\n")
    first = threading.Thread(target=call, args=(tmp_path / "sleep.py", [], tmp_path / "log"))
    first.start()
    time.sleep(1)
    stopped = threading.Event()
    threading.Timer(1.0, stopped.set).start()
    began = time.monotonic()
    with pytest.raises(SystemExit, match="stopped before"):
        call(tmp_path / "sleep.py", [], tmp_path / "log", stopped=stopped)
    assert time.monotonic() - began < 4
    first.join()
