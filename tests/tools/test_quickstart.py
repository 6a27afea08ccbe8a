"""tools/quickstart.py: two runs side by side, one view, one report; a failing arm ends it."""

import sys
import time

import pytest

from sed.studies import two_runs
from sed.studies.side_by_side import Arm, ArmError, run_side_by_side
from tools import quickstart


def arm(folder, label, code, steps=10):
    return Arm(label, [sys.executable, "-c", code], folder, steps, supervised_steps=4)


WRITES = """
import json, os, pathlib, sys
folder = pathlib.Path({folder!r}); folder.mkdir()
rows = [{{"step": 5, "loss": 1.0}}, {{"step": 10, "teacher/AP": 12.34}}, {{"step": 10, "loss": 0.5}}]
(folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
print("threads", os.environ["OMP_NUM_THREADS"])
"""


def test_arms_run_together_and_their_state_is_told(tmp_path, capsys):
    arms = [arm(tmp_path / name, name, WRITES.format(folder=str(tmp_path / name))) for name in ("one", "two")]
    seconds = run_side_by_side(arms, threads=3)
    told = capsys.readouterr().out.splitlines()[-1]
    assert "one 10/10 steps, done in" in told
    assert "AP 12.3" in told
    assert all(0 < s < 60 for s in seconds)
    assert (tmp_path / "two.log").read_text() == "threads 3\n"


def test_a_step_with_unlabelled_images_counts_for_more(tmp_path):
    one = arm(tmp_path, "one", "")
    assert one.work(4) == 4
    assert one.work(10) == pytest.approx(4 + 3.4 * 6)


def test_a_failing_arm_ends_all_with_its_last_words(tmp_path):
    bad = arm(tmp_path / "bad", "Bad", "print('a'); raise SystemExit('disk full')")
    slow = arm(tmp_path / "slow", "Slow", "import time; time.sleep(60)")
    began = time.monotonic()
    with pytest.raises(ArmError, match=r"(?s)Bad ended with status 1.*bad\.log.*disk full"):
        run_side_by_side([slow, bad], threads=1)
    assert time.monotonic() - began < 20  # the other one was stopped


def test_only_its_own_folder_is_overwritten(tmp_path):
    quickstart.clear(tmp_path / "new")
    (tmp_path / "new" / "report.html").write_text("old")
    quickstart.clear(tmp_path / "new")
    assert [p.name for p in (tmp_path / "new").iterdir()] == [quickstart.STAMP]
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1").write_text("x")
    with pytest.raises(SystemExit, match="holds something else"):
        quickstart.main(["--output", str(other)])
    assert (other / "chapter1").exists()
    with pytest.raises(SystemExit, match="is a file"):
        quickstart.main(["--output", str(other / "chapter1")])


@pytest.mark.slow
def test_the_whole_quick_start_at_few_steps(tmp_path, digits, data_opts, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # it works from anywhere
    monkeypatch.setattr(quickstart, "TEST_SET", str(digits / "test.json"))
    monkeypatch.setattr(two_runs, "SHOWN", 4)
    monkeypatch.setattr(quickstart, "ensure_digits", lambda root: None)
    opts = [*data_opts, "SOLVER.MAX_ITER", "4", "SEMI.BURN_IN", "2", "TEST.EVAL_PERIOD", "2", "MODEL.DEVICE", "cpu"]
    opts += ["SEMI.IMS_PER_BATCH_LABELED", "2", "SEMI.IMS_PER_BATCH_UNLABELED", "2"]
    quickstart.main(["--output", "out", *opts])
    told = capsys.readouterr().out
    assert "Supervised baseline, EMA teacher" in told
    assert "SED plus, student" in told
    assert "SED plus 4/4 steps, done in" in told
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "the same 4 labelled images" in page
    assert page.count("tools/train_net.py") == 2
    with pytest.raises(SystemExit, match=r"(?s)ended with status.*lost\.pth: no such"):
        quickstart.main(["--output", str(tmp_path / "out"), *opts, "MODEL.WEIGHTS", "lost.pth"])
