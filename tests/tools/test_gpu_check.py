"""tools/gpu_check.py on the CPU: its tables, and what a cut leaves."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sed.studies import gpu_check
from sed.studies.gpu_check import TABLES, Check, Report, run

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, str(ROOT / "tools/gpu_check.py"), "--device", "cpu", "--small"]


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute where nothing else runs
def test_every_part_is_measured(tmp_path):
    done = subprocess.run([*COMMAND, "--output", str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["finished"]) == set(TABLES)
    numbers = {row["test"]: row for row in report["rows"]["numbers"]}
    assert numbers["test_predictions"]["passed"] >= 2  # yolos and small_rcnn
    assert not any(row["failed"] for row in numbers.values())
    assert {row["method"] for row in report["rows"]["throughput"]} == {"supervised", "pseudo_label"}
    assert all(row["images/s"] > 0 and row["ms passes"] > 0 for row in report["rows"]["throughput"])
    assert {row["method"] for row in report["rows"]["training"]} == {"supervised", "sed_plus"}
    text = (tmp_path / "report.md").read_text()
    assert all(f"## {part}" in text for part in TABLES if part != "waits")  # nobody waits for a CPU
    assert "Not finished" not in text


@pytest.mark.slow
def test_a_cut_leaves_what_was_measured(tmp_path):
    words = ["--only", "loading", "training", "--output", str(tmp_path)]
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "digits" / "study.log").exists():  # loading is over, training runs
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: stopped" in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["finished"] == ["loading"]
    assert [row["workers"] for row in report["rows"]["loading"]] == [0]
    assert "Not finished: numbers, waits, outside, throughput, training." in printed
    for log in (tmp_path / "digits").rglob("*.log"):  # a process keeps the lock of what it prints to while it lives
        with log.open() as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_part_that_is_measured_anew_leaves_the_others(tmp_path):
    check = Check("cpu", True, 1, tmp_path)
    first = Report(check, ("a", "b"))
    for part in "ab":
        first.start(part)
        first.add(part, {"what": part, "value": 0.00001})
        first.finish(part)
    again = Report(check, ("a", "b"))
    again.start("a")
    again.add("a", {"what": "new", "value": 2.0, "more": "x"})
    text = (tmp_path / "report.md").read_text()
    assert "| new | 2 | x |" in text
    assert "| b | 1.0e-05 |" in text
    assert "Not finished: a (1 rows)." in text
    assert not list(tmp_path.glob(".*"))


def test_figures_of_another_machine_or_size_are_not_kept(tmp_path):
    first = Report(Check("cpu", True, 1, tmp_path), ("a",))
    first.start("a")
    first.add("a", {"what": "small"})
    first.finish("a")
    assert Report(Check("cpu", True, 9, tmp_path), ("a",)).finished == ["a"]
    assert Report(Check("cpu", False, 1, tmp_path), ("a",)).rows == {}


def test_a_part_that_fails_does_not_end_the_others(tmp_path, monkeypatch):
    def out_of_memory(check, report):
        report.add("outside", {"what": "one", "measured": 1.0})
        raise RuntimeError("CUDA out of\nmemory")

    def killed(check, report):
        raise SystemExit("error: the study failed")

    def fine(check, report):
        report.add("loading", {"workers": 0})
        return True

    parts = {"outside": out_of_memory, "training": killed, "loading": fine}
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    check = Check("cpu", True, 1, tmp_path)
    assert list(run(check, tuple(parts))) == [("outside", False), ("training", False), ("loading", True)]
    text = (tmp_path / "report.md").read_text()
    assert "RuntimeError: CUDA out of memory" in text
    assert "SystemExit: error: the study failed" in text
    assert "Not finished: numbers, waits, outside (2 rows), throughput, training (1 rows)." in text


def test_the_training_part_trains_anew(tmp_path, monkeypatch):
    """A study's finished runs would be given out as this commit's."""
    old = tmp_path / "digits" / "old.json"
    old.parent.mkdir()
    old.write_text("{}")

    def study(tool, words, log):
        assert not old.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_check, "call", study)
    with pytest.raises(KeyboardInterrupt):
        gpu_check.training(Check("cpu", True, 1, tmp_path), Report(Check("cpu", True, 1, tmp_path), TABLES))
