"""tools/study.py: what is run, kept, shared, chosen and refused, with scripts in place of training and evaluation."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import study
from tqdm import tqdm

from sed.cli.arguments import duration
from sed.config import load_config
from sed.studies import study_plan, study_runs
from sed.studies.processes import call, stop_all
from sed.studies.study_runs import differences, same_burn_in, seconds_per_step
from tests.tools.study_desk import CONTROLS, ROOT, STUDY, TRAIN


@pytest.mark.slow
def test_choices_are_made_on_tune_and_everything_starts_from_the_controls_burn_in(desk) -> None:
    results = desk.run()
    assert results["chosen"]["plus"] == "b"  # 3 on tune, and 5.3 on test, where "a" would have had 7.7
    trained = [line.removeprefix("train ") for line in desk.calls if line.startswith("train ")]
    tuned = [f"tune/{name}-{seed}" for seed in (10, 11) for name in ("control", "plus-a", "plus-b")]
    assert sorted(trained[:6]) == sorted(tuned)  # "a again" is "a"
    assert set(trained[6:10]) >= {f"30_labels/control-{seed}" for seed in (0, 1, 2)}  # before what waits for them
    assert len(trained) == len(set(trained)) == 6 + 3 * 4 + 3
    for seed in (0, 1, 2):
        told = {name: desk.trained(f"30_labels/{name}-{seed}") for name in ("control", "all_labels", "plus")}
        told |= {n: desk.trained(f"30_labels/{n}-{seed}") for n in ("plus__hard", "control-equal_seconds")}
        begin = {name: content["begin"] for name, content in told.items()}
        shared = ["checkpoint_0000500.pth"]
        assert begin == {**dict.fromkeys(begin, shared), "control": [], "all_labels": []}
        words = told["plus__hard"]["told"]
        assert (words["SED.SCALE_TARGET"], words["SED.LAMBDA_SCALE"]) == ("teacher", "3.0")  # like plus as chosen
        assert (words["SED.DISTILL_TARGET"], words["SEED"], words["SEMI.FOLD"]) == ("hard", str(seed), str(seed))
        assert words["DATASETS.TEST"] == "()"  # training sees no test set
        longer = told["control-equal_seconds"]["told"]
        assert longer["SOLVER.MAX_ITER"] == "1875"  # 500 and 550 x .25 / .1
        assert longer["SOLVER.STEPS"] == "(1500,)"  # 80 %, as 840 of 1050
    assert results["test"]["30 labels"]["plus"]["0"]["teacher"]["half"]["AP"] == pytest.approx(2.65)
    lines = (desk.output / "table.md").read_text().splitlines()
    (row,) = [line for line in lines if line.startswith("| control |")]
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert cells[0] == "8.4 ± 0.1"
    assert cells[5:8] == ["-", "4.2 ± 0.0", "1050 / 55"]  # no large object; seconds of 550 steps
    pair = ["-3.0 [-3.0, -3.0]", "-1.5 [-1.5, -1.5]"]  # and on half-size input, where everything has half its AP
    assert cells[8:] == [*pair, "8.4 ± 0.1 (1875 / 138)", *pair]
    assert any(line.startswith("| control, student |") for line in lines)
    assert "## plus: budget 3, chosen: b" in (desk.output / "choices.md").read_text()


@pytest.mark.slow
def test_finished_runs_are_kept_and_a_new_question_repeats_no_training(desk) -> None:
    first = desk.run()
    assert json.dumps(desk.run()) == json.dumps(first)  # as text: it holds NaN
    assert desk.calls == []
    (desk.output / "30_labels/plus-1/result.json").unlink()  # as if it had been interrupted
    desk.run()
    assert desk.calls == ["evaluation_teacher 30_labels/plus-1"]  # after training
    for name in ("result.json", "model_final.pth"):
        (desk.output / "30_labels/plus-1" / name).unlink()  # within training
    assert json.dumps(desk.run()) == json.dumps(first)
    assert desk.calls == ["train 30_labels/plus-1", "evaluation_teacher 30_labels/plus-1"]
    found = desk.run(seeds=[0, 1, 2, 3])
    assert found["equal seconds"]["30 labels"]["control"]["3"]["steps"] == 1875
    assert {line.rpartition("-")[2] for line in desk.calls} == {"3"}
    table = (desk.output / "table.md").read_text()
    desk.run("--only", "plus, hard", seeds=[0, 1, 2, 3], methods={**STUDY["methods"], "new": "SED.LAMBDA_DISTILL 0.5"})
    assert desk.calls == []
    part = (desk.output / "table.md").read_text()
    assert "| plus, hard |" in part
    assert "| control |" not in part
    desk.run(seeds=[0, 1, 2, 3])  # all of it again, for nothing
    assert desk.calls == []
    assert (desk.output / "table.md").read_text() == table


@pytest.mark.slow
def test_a_run_that_is_asked_for_otherwise_is_refused_before_anything_runs(desk, capsys) -> None:
    desk.run(seeds=[0])
    methods = {**STUDY["methods"], "control": "SEMI.METHOD supervised SOLVER.BASE_LR 0.5"}
    for changes in ({"methods": methods}, {"options": "ENGINE torchvision SOLVER.BASE_LR 0.5"}):
        with pytest.raises(SystemExit, match=r"tune/control-10: .*\(SOLVER\.BASE_LR: 0\.002 -> 0\.5\); delete"):
            desk.run(seeds=[0], **changes)
        assert desk.calls == []
    desk.run(seeds=[0], options="ENGINE torchvision DATALOADER.NUM_WORKERS 1")  # changes no weight
    assert desk.calls == []
    shutil.rmtree(desk.output / "30_labels/plus-0")
    (desk.output / "30_labels/plus-0").mkdir()
    with pytest.raises(SystemExit, match=r"plus-0: no asked\.json, so no study made it"):
        desk.run(seeds=[0])


def test_a_key_that_the_run_did_not_know_counts_as_its_default() -> None:
    old = {"config": {"A": 1, "GONE": 2}, "defaults": {"A": 0, "GONE": 2}}
    assert differences(old, {"config": {"A": 1, "NEW": 5}, "defaults": {"A": 0, "NEW": 5}}) == []
    assert differences(old, {"config": {"A": 1, "NEW": 6}, "defaults": {"A": 0, "NEW": 5}}) == ["NEW: 5 -> 6"]
    old["config"]["GONE"] = 3
    assert differences(old, {"config": {"A": 0}, "defaults": {"A": 0}}) == ["A: 1 -> 0", "GONE: 3 -> 2"]


@pytest.mark.slow
def test_a_failing_run_stops_no_other_and_is_tried_again(desk) -> None:
    methods = {"control": "SEMI.METHOD supervised", "plus": "SED.REWEIGHT.BINS 13", "other": ""}
    changes = {"methods": methods, "equal_seconds": [], "seeds": [0, 1]}
    with pytest.raises(SystemExit, match=r"^runs failed; repeat the command(?s:.*AssertionError: unlucky){2}"):
        desk.run(**changes)
    assert (desk.output / "30_labels/other-1/result.json").exists()
    (desk.folder / "train.py").write_text(TRAIN.replace('"13"', '"14"'))
    desk.run(**changes)
    assert sorted(line for line in desk.calls if line[0] == "t") == [f"train 30_labels/plus-{s}" for s in (0, 1)]
    assert desk.trained("30_labels/plus-0")["begin"] == ["checkpoint_0000500.pth"]


@pytest.mark.slow
def test_a_kill_while_the_burn_in_is_copied_leaves_no_run_that_starts_from_nothing(desk, monkeypatch) -> None:
    def killed(source, target):
        Path(target).write_bytes(b"half")
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(study_runs.shutil, "copy", killed)
        with pytest.raises(SystemExit, match="killed"):
            desk.run(seeds=[0], equal_seconds=[])
    assert not (desk.output / "tune/plus-a-10").exists()
    assert list((desk.output / "tune").glob(".plus-a-10.*.tmp"))
    desk.run(seeds=[0], equal_seconds=[])
    assert desk.trained("tune/plus-a-10")["begin"] == ["checkpoint_0000500.pth"]
    assert list(desk.output.rglob(".*")) == []


@pytest.mark.slow
def test_more_sizes_are_measured_on_the_weights_that_are_there(desk, monkeypatch) -> None:
    drawn = {}
    for name in ("ap_by_size", "ap_by_scale"):
        monkeypatch.setattr(study, name, lambda path, rows: drawn.update({path.name: rows}))
    desk.run(seeds=[0])
    results = desk.run(seeds=[0], sizes=[96, 192])
    assert {line.split()[0] for line in desk.calls} == {"evaluation_teacher", "evaluation_student"}
    assert set(results["test"]["30 labels"]["plus"]["0"]["teacher"]["sizes"]) == {"64", "96", "128", "192"}
    assert drawn["ap_by_scale.png"]["plus"] == {n: [pytest.approx(5.3 * n / 128)] for n in (64, 96, 128, 192)}
    assert drawn["ap_by_size.png"]["plus"]["APs"] == [pytest.approx(5.3)]
    assert math.isnan(drawn["ap_by_size.png"]["plus"]["APl"][0])
    left = {n: sorted(p.name for p in (desk.output / n).glob("*.pth")) for n in ("tune/plus-a-10", *CONTROLS)}
    whole = [f"checkpoint_000{step}.pth" for step in (1050, 1875)]
    assert left == {
        "tune/plus-a-10": ["model_final.pth"],  # what nobody needs again is deleted
        CONTROLS[0]: ["checkpoint_0000500.pth", whole[0], "model_final.pth"],
        CONTROLS[1]: [whole[1], "model_final.pth"],
    }
    assert "## 30 labels: scales" in (desk.output / "table.md").read_text()


def test_burn_in_is_shared_exactly_where_nothing_differs_before_its_end(desk) -> None:
    runner = desk.runner(STUDY["config"], 1, tqdm(disable=True))
    control = runner.config(("SEMI.METHOD", "supervised"))
    for words in (
        "SEMI.METHOD pseudo_label PSEUDO_LABEL.WEIGHT 2.0",
        "SED.SCALE_TARGET teacher SEMI.EMA.START 0.9 SEMI.RAMP_STEPS 100 SEMI.IMS_PER_BATCH_UNLABELED 16",
        "SOLVER.MAX_ITER 2000 SOLVER.STEPS (1600,) TEST.EVAL_PERIOD 0",
    ):
        assert same_burn_in(runner.config(tuple(words.split())), control), words
    for words in (
        "SEMI.LABELED_COUNT 60",
        "SEMI.BURN_IN 400",
        "INPUT.MIN_SIZE_TRAIN (100,128)",
        "SOLVER.STEPS (400,)",
        "SOLVER.MAX_ITER 500 SOLVER.STEPS ()",
        "SEED 1",
    ):
        assert not same_burn_in(runner.config(tuple(words.split())), control), words
    cosine = runner.config(("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"))
    assert not same_burn_in({**cosine, "SOLVER.MAX_ITER": 2000}, cosine)


def test_drops_keep_their_share_but_stay_behind_burn_in() -> None:
    cfg = {"SOLVER.MAX_ITER": 1000, "SOLVER.STEPS": [600, 900], "SEMI.BURN_IN": 500}
    assert study_plan.longer(cfg, 2000) == ("SOLVER.MAX_ITER", "2000", "SOLVER.STEPS", "(1200,1800,)")
    assert study_plan.longer(cfg, 600) == ("SOLVER.MAX_ITER", "600", "SOLVER.STEPS", "(501,540,)")
    assert load_config(None, study_plan.longer({**cfg, "SOLVER.STEPS": []}, 600)).SOLVER.STEPS == ()


def test_times_are_those_after_burn_in_of_either_engine(tmp_path) -> None:
    assert math.isnan(seconds_per_step(tmp_path, 0))
    rows = [{"iteration": 9, "time": 5.0}, {"iteration": 19, "time": 1.0}, {"iteration": 29, "time": 3.0}]
    (tmp_path / "metrics.json").write_text("\n".join(json.dumps(row) for row in [*rows, {"iteration": 29}]))
    assert seconds_per_step(tmp_path, 10) == 2.0
    assert seconds_per_step(tmp_path, 20) == 3.0


@pytest.mark.slow
def test_the_orphan_of_a_killed_caller_is_waited_for(tmp_path) -> None:
    (tmp_path / "write.py").write_text("import sys, time\ntime.sleep(float(sys.argv[1]))\nprint(sys.argv[2])\n")
    code = "import sys; from sed.studies.processes import call; from pathlib import Path\n"
    code += f"call({str(tmp_path / 'write.py')!r}, ['2', 'first'], Path({str(tmp_path / 'log')!r}))"
    caller = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    while not (tmp_path / "log").exists():
        assert caller.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)
    caller.kill()
    caller.wait()
    call(tmp_path / "write.py", ["0", "second"], tmp_path / "log")
    assert (tmp_path / "log").read_text().split() == ["first", "second"]


@pytest.mark.slow
def test_stopping_ends_what_runs(tmp_path) -> None:
    (tmp_path / "sleep.py").write_text("import time\ntime.sleep(60)\n")
    began = time.monotonic()
    signal.signal(signal.SIGALRM, lambda *_: stop_all())
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    with pytest.raises(SystemExit, match="ended with code -15"):
        call(tmp_path / "sleep.py", [], tmp_path / "log")
    assert time.monotonic() - began < 30


def test_a_study_stops_when_its_time_is_up_and_goes_on(desk) -> None:
    """A training that takes longer than there is time ends; the command given again repeats only that."""
    slow = TRAIN.replace("assert told", 'time.sleep(60 if told["SEED"] == "11" else 0)\nassert told', 1)
    (desk.folder / "train.py").write_text(slow)
    start = time.monotonic()
    with pytest.raises(SystemExit, match=str(128 + signal.SIGALRM)):
        desk.run("--time", "6s")
    assert time.monotonic() - start < 30
    finished = set(desk.output.rglob("result.json"))
    assert not any("-11" in str(path) for path in finished)
    (desk.folder / "train.py").write_text(TRAIN)
    desk.run()
    assert finished < set(desk.output.rglob("result.json"))
    again = {f"train {path.parent.parent.name}/{path.parent.name}" for path in finished}
    assert not again & set(desk.calls)


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("12m", 720), ("1.5h", 5400)])
def test_a_time_has_a_unit(text, expected) -> None:
    assert duration(text) == expected
    for wrong in ("", "12", "0m", "-1m", "m", "12 minutes"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected one such as 90s, 12m or 2h"):
            duration(wrong)
