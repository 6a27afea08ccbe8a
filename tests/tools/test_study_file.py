"""The files of studies: what they may say; those of configs/studies; and a whole tiny study, killed in the midst."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import study
import torch
import yaml
from tqdm import tqdm

from sed.config import ConfigError, load_config
from sed.engine.run import train
from sed.runtime.checkpoint_files import checkpoints
from sed.studies.study_file import StudyCase, read_study
from sed.studies.study_plan import Plan
from sed.studies.study_runs import seconds_per_step
from tests.reference.squares import write_set
from tests.reference.training import same

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted((ROOT / "configs/studies").glob("*.yaml"))
STUDY = {
    "config": "digits.yaml",
    "tune": "digits_tune",
    "test": "digits_test",
    "tune_seeds": [10],
    "seeds": [0, 1],
    "cases": {"few": "SEMI.LABELED_COUNT 30", "more": "SEMI.LABELED_COUNT 60"},
    "methods": {"control": "SEMI.METHOD supervised", "plus": "", "rival": {"candidates": {"a": "", "b": "SED.X 1"}}},
    "reference": "plus",
}
METHODS = STUDY["methods"]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_the_studies_hold_runs_that_load(path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    found = read_study(path)
    plan = Plan(found, tmp_path)
    with tqdm(total=plan.size, disable=True) as bar:
        runner = study.make_runner(found.config, 1, bar)
        plan.check(runner)
        first = {name: next(iter(method.candidates), "") for name, method in found.methods.items()}
        cfg = runner.config(found.words(found.main_case, found.reference, 3, first))
    assert (cfg["SEED"], cfg["SEMI.FOLD"], cfg["DATASETS.TEST"]) == (3, 3, [])  # training sees no test set
    for case in found.cases.values():
        assert not {case.test, case.tune} & {*cfg["DATASETS.TRAIN"], *cfg["DATASETS.UNLABELED"]}
    assert plan.size >= len(found.methods) * len(found.seeds)


def test_a_whole_file_is_read(tmp_path) -> None:
    rival = {"options": "SEMI.METHOD pseudo_label", "candidates": {"one": "", "two": "PSEUDO_LABEL.BOX_LOSS True"}}
    more = {"methods": {**METHODS, "rival": rival, "like it": {"like": "rival", "own_burn_in": True}}}
    found = read_study(write(tmp_path, {**STUDY, **more, "options": "ENGINE torchvision", "sizes": [64]}))
    assert (found.config, found.baseline, found.main_case) == (tmp_path / "digits.yaml", "control", "few")
    assert found.tuned(["like it"]) == ["rival"]
    words = found.words("more", "like it", 1, {"rival": "two"})
    assert " ".join(words) == (
        "ENGINE torchvision SEMI.LABELED_COUNT 60 SEMI.METHOD pseudo_label PSEUDO_LABEL.BOX_LOSS True "
        "SEED 1 SEMI.FOLD 1 DATASETS.TEST ()"
    )
    assert (found.own_burn_in("like it"), found.own_burn_in("rival")) == (True, False)
    assert (found.tune_seeds, found.seeds, found.sizes, found.equal_seconds) == ((10,), (0, 1), (64,), ())


def test_a_case_may_have_its_own_sets(tmp_path) -> None:
    own = {"options": "SEMI.LABELED_COUNT 5", "tune": "a", "test": "b"}
    cases = {"few": "SEMI.LABELED_COUNT 30", "other": own}
    found = read_study(write(tmp_path, {**STUDY, "cases": cases, "tune_cases": ["other", "few"]}))
    assert found.cases["few"] == StudyCase(("SEMI.LABELED_COUNT", "30"), "digits_tune", "digits_test")
    assert found.cases["other"] == StudyCase(("SEMI.LABELED_COUNT", "5"), "a", "b")
    assert found.chosen_in == ("other", "few")
    cases["more"] = {"like": "other", "options": "SEMI.LABELED_COUNT 9", "test": "c"}
    found = read_study(write(tmp_path, {**STUDY, "cases": cases}))
    assert found.cases["more"] == StudyCase(("SEMI.LABELED_COUNT", "5", "SEMI.LABELED_COUNT", "9"), "a", "c")
    assert read_study(write(tmp_path, STUDY)).chosen_in == ("few",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metods": {}}, "unknown key metods; the nearest of .* is methods"),
        ({"seeds": []}, r"seeds missing or empty; a study needs config, seeds, cases"),
        ({"seeds": [0, 10]}, r"seeds and tune_seeds share \[10\]"),
        ({"seeds": [0, 0]}, r"seeds: expected whole numbers, each once, got \[0, 0\]"),
        ({"sizes": ["64 px"]}, r"sizes: expected whole numbers"),
        ({"seeds": 3}, "seeds expects a list, got 3"),
        ({"test": "digits_tune"}, "tune and test are both digits_tune"),
        (
            {"reference": "best"},
            "reference, upper_bound and equal_seconds name best; the methods are control, plus",
        ),
        ({"equal_seconds": ["slow"]}, "reference, upper_bound and equal_seconds name slow"),
        ({"equal_seconds": ["plus"]}, "equal_seconds holds the reference"),
        ({"tune_seeds": []}, "rival are tuned; give tune and tune_seeds"),
        ({"test": ""}, "case few: it has no test, nor has the study"),
        ({"cases": {"few": {"test": "digits_tune"}, "x": ""}}, "tune and test are both digits_tune"),
        (
            {"tune": "v.json", "test": "v.json, second half"},
            "tune and test are both v.json, second half",
        ),
        ({"tune": "./v.json, first half", "test": "v.json, first half"}, "tune and test are both v.json, first half"),
        ({"methods": {**METHODS, "plus": {"cases": ["few"]}}}, "plus is what others are compared with: it is in all"),
        ({"cases": {"few": {"tests": "a"}}}, "case few: unknown key tests; the nearest of .* is test"),
        ({"cases": {"few": {"like": "more"}, "more": ""}}, "case few: like names more; before it are none"),
        ({"tune_cases": ["few", "many"]}, "tune_cases and cases of methods name many; the cases are few, more"),
        ({"methods": {**METHODS, "plus": {"cases": ["none"]}}}, "tune_cases and cases of methods name none"),
        ({"methods": {**METHODS, "control": {"cases": ["few"]}}}, "control is the supervised baseline: it is in all"),
        ({"cases": {"tune": ""}}, "a case may not be called tune"),
        ({"cases": {"a+": "", "a-": ""}}, "cases: two names would share a folder; rename one"),
        ({"cases": {"few": "SEMI.LABELED_COUNT"}}, "case few: expected a string of KEY VALUE pairs"),
        ({"cases": {"few": None}}, "case few: expected a string of KEY VALUE pairs .* got None"),
        ({"options": "SEED 3"}, "options: SEED is set by the study itself; leave it out"),
        ({"options": "A 'b"}, "options: .*No closing quotation"),
        ({"methods": {**METHODS, "x": 3}}, "method x: expected options, or a mapping with any of options, candidates"),
        ({"methods": {**METHODS, "x": {"option": ""}}}, "method x: unknown key option; the nearest of .* is options"),
        ({"methods": {**METHODS, "x": {"like": "y"}}}, "like of x: expected a method that is not like another"),
        ({"methods": {**METHODS, "x": {"like": "plus", "candidates": {"a": ""}}}}, "like of x: .* and no candidates"),
        ({"methods": {"plus": {"candidates": {"a": ""}}}}, "plus is the supervised baseline"),
    ],
)
def test_what_makes_no_sense_is_told_with_file_and_key(tmp_path, changes, message) -> None:
    path = write(tmp_path, {**STUDY, **changes})
    with pytest.raises(ConfigError, match=rf"^{path}: {message}"):
        read_study(path)


def test_files_that_are_no_studies_are_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: no such study"):
        read_study(tmp_path / "no.yaml")
    for text, message in (("- 1", "expected a mapping of keys, got list"), ("a: [", "not YAML")):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(ConfigError, match=rf"a\.yaml: {message}"):
            read_study(tmp_path / "a.yaml")


def test_a_wrong_option_of_a_method_is_told_before_anything_runs(tmp_path, capsys) -> None:
    path = write(tmp_path, {**STUDY, "config": str(ROOT / "configs/digits.yaml")})
    with pytest.raises(SystemExit, match=r"with the options of few, rival, b: command line: unknown key SED\.X"):
        study.main(["--study", str(path), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="--only best: the study has control, plus, rival"):
        study.main(["--study", str(path), "--output", str(tmp_path / "out"), "--only", "best"])
    assert not (tmp_path / "out").exists()


def write(folder: Path, content: dict) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


# ---------------------------------------------------------------------------------------------- a whole one
TINY = {
    "INPUT.MIN_SIZE_TRAIN": "(64,64)",
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 64,
    "MODEL.DEVICE": "cpu",
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "SEMI.IMS_PER_BATCH_LABELED": 2,
    "SEMI.IMS_PER_BATCH_UNLABELED": 2,
    "SEMI.BURN_IN": 4,
    "SED.REGIONS_PER_VIEW": 8,
    "SOLVER.MAX_ITER": 16,
    "SOLVER.STEPS": "(12,)",
    "SOLVER.WARMUP_ITERS": 2,
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_killed_in_the_midst_ends_as_if_nothing_had_been(tmp_path) -> None:
    """Weights and AP are those of one uninterrupted run without a shared burn-in; what was finished is not repeated."""
    counts = {"train": 10, "tune": 4, "test": 4}
    sets = {name: write_set(tmp_path, name, count, seed) for seed, (name, count) in enumerate(counts.items())}
    config = tmp_path / "config.yaml"  # a checkpoint after every step
    config.write_text(f"_BASE_: {ROOT / 'configs/digits.yaml'}\nSOLVER: {{CHECKPOINT_PERIOD: 1}}\n")
    options = f"ENGINE torchvision DATASETS.TRAIN {sets['train']} " + " ".join(f"{k} {v}" for k, v in TINY.items())
    content = {
        "config": "config.yaml",
        "options": options,
        "tune": sets["tune"],
        "test": sets["test"],
        "seeds": [1],
        "cases": {"few": "SEMI.LABELED_COUNT 4"},
        "methods": {"control": "SEMI.METHOD supervised", "plus": "SED.SCALE_TARGET teacher"},
        "reference": "plus",
        "sizes": [96],
    }
    output = tmp_path / "out"
    command = [sys.executable, str(ROOT / "tools/study.py"), "--study", str(write(tmp_path, content))]
    command += ["--output", str(output), "--jobs", "1"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    plus = output / "few/plus-1"
    while not any(int(path.stem[-7:]) > 5 for path in checkpoints(plus)):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    reached = int(checkpoints(plus)[-1].stem[-7:])
    assert reached < 16, "killed too late"
    control = (output / "few/control-1.log").read_text()

    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (output / "few/control-1.log").read_text() == control  # nothing ran twice
    log = plus.with_suffix(".log").read_text()
    assert "after step 4" in log  # from the control's burn-in
    assert f"after step {reached}" in log
    assert (plus / "model_final.pth").exists()
    assert checkpoints(plus) == []  # of a finished run the weights are enough
    results = json.loads((output / "results.json").read_text())["test"]["few"]["plus"]["1"]
    assert results["seconds_per_step"] == seconds_per_step(plus, 4) > 0
    assert set(results["teacher"]["sizes"]) == {"32", "64", "96"}
    assert {"AP", "gain"} <= set(results["teacher"]["ensemble"])
    assert {"ap_by_size.png", "ap_by_scale.png", "table.md"} <= {path.name for path in output.iterdir()}
    assert "| control, student |" in done.stdout

    torch.set_num_threads(1)
    words = f"{options} SEMI.LABELED_COUNT 4 SED.SCALE_TARGET teacher SEED 1 SEMI.FOLD 1 TEST.EVAL_PERIOD 0".split()
    words += ["DATASETS.TEST", sets["test"], "OUTPUT_DIR", str(tmp_path / "straight")]
    last = train(load_config(config, words)).last["teacher"]
    weights = (torch.load(folder / "model_final.pth", weights_only=True) for folder in (tmp_path / "straight", plus))
    same(*weights)
    full = results["teacher"]["full"]
    assert {key: full[key] for key in last} == pytest.approx(last, abs=1e-9, nan_ok=True)
