"""A study's runs kept in a file, and halves of the only set to evaluate on."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil

import pytest
import study
from tqdm import tqdm

from sed.config import ConfigError
from sed.studies.halves import half_of
from sed.studies.kept_runs import collect, read_kept
from sed.studies.study_file import read_study
from sed.studies.study_runs import differences
from sed.studies.wording import slug
from tests.tools.study_desk import ROOT, STUDY


# ---------------------------------------------------------------------------------------------- kept runs
@pytest.mark.slow
def test_a_study_goes_on_from_the_file_alone(desk, tmp_path):
    """With everything else gone nothing is trained again, and the result is the same."""
    kept = tmp_path / "results" / "runs.json"
    desk.run("--kept", str(kept), "--only", "control", "plus")
    table = (desk.output / "table.md").read_text()
    size = kept.stat().st_size
    shutil.rmtree(desk.output)
    desk.run("--kept", str(kept), "--only", "control", "plus")
    assert desk.calls == []
    assert (desk.output / "table.md").read_text() == table
    assert kept.stat().st_size == size
    desk.run("--kept", str(kept))  # what is new is trained, and added
    assert {line.split("/")[-1][:-2] for line in desk.calls if line.startswith("train")} == {"all_labels", "plus__hard"}
    assert kept.stat().st_size > size


@pytest.mark.slow
def test_what_the_study_asks_for_otherwise_now_is_made_anew(desk, tmp_path, caplog, monkeypatch):
    """Another config, or another set to test on: the weights are gone, and the old result is not this one's."""
    monkeypatch.setattr(logging.getLogger("sed"), "propagate", True)
    kept = tmp_path / "runs.json"
    desk.run("--kept", str(kept), "--only", "control")
    before = len(desk.calls)
    for change in ({"options": "ENGINE torchvision SOLVER.BASE_LR 0.5"}, {"test": "digits_hard_test"}):
        shutil.rmtree(desk.output)
        desk.run("--kept", str(kept), "--only", "control", **change)
        assert len(desk.calls) == before
        assert "the study asks for another run than is kept; it is made anew" in caplog.text
        caplog.clear()


def test_what_is_kept_comes_back(tmp_path):
    asked = {
        "a/x-0": {"config": {"SEED": 0, "A.B": [1, 2], "OLD": 1}, "defaults": {"SEED": 0}},
        "a/x-1": {"config": {"SEED": 1, "A.B": [1, 2], "NEW": None}, "defaults": {"SEED": 0, "NEW": 3}},
    }
    for name, content in asked.items():
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "asked.json").write_text(json.dumps(content))
        (tmp_path / "out" / name / "result.json").write_text(json.dumps({"steps": len(name), "AP": float("nan")}))
    (tmp_path / "out" / "a" / "unfinished").mkdir()
    assert collect(tmp_path / "out", tmp_path / "runs.json") == 2
    shutil.rmtree(tmp_path / "out" / "a" / "x-0")
    assert collect(tmp_path / "out", tmp_path / "runs.json") == 2  # what is not here now stays in the file
    found = read_kept(tmp_path / "runs.json")
    assert {name: run[0] for name, run in found.items()} == asked
    assert {name: run[1]["steps"] for name, run in found.items()} == {name: len(name) for name in asked}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "asked": {}, "runs": {"a": {}}}'])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "runs.json").write_text(text)
    with pytest.raises(ConfigError, match=r"runs\.json: "):
        read_kept(tmp_path / "runs.json")


def test_the_runs_of_the_photos_study_are_those_that_it_asks_for_today(monkeypatch):
    """Else it could not go on from docs/results/runs."""
    monkeypatch.chdir(ROOT)
    found = read_study("configs/studies/photos.yaml")
    kept = read_kept(ROOT / "docs/results/runs/photos.json")
    assert kept
    with tqdm(disable=True) as bar:
        runner = study.make_runner(found.config, 1, bar)
        for folder, (asked, result) in kept.items():
            _, place, name = folder.split("/")
            case = next(name for name in found.chosen_in if slug(name) == place)
            name, _, seed = name.rpartition("-")
            rows = {slug(found.baseline): (found.baseline, {})}
            for method in found.tuned(found.methods):
                for candidate in found.methods[method].candidates:
                    rows[f"{slug(method)}-{slug(candidate)}"] = (method, {method: candidate})
            method, chosen = rows[name]
            config = runner.config(found.words(case, method, int(seed), chosen))
            assert differences(asked, {"config": config, "defaults": config}) == []
            assert result["test"]["dataset"] == found.cases[case].tune


# ---------------------------------------------------------------------------------------------- halves
def make_set(folder, contents):
    """A json of images whose files have these bytes, a box in each."""
    (folder / "images").mkdir(parents=True)
    for i, content in enumerate(contents):
        (folder / "images" / f"{i}.jpg").write_bytes(content)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 20, "height": 10} for i in range(len(contents))]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25} for i in range(len(contents))]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    (folder / "val.json").write_text(json.dumps(content))
    return str(folder / "val.json")


def read_half(path, which, folder):
    folder.mkdir(exist_ok=True)
    return json.loads(open(half_of(f"{path}, {which}", "", folder)).read())


def test_halves_share_nothing_and_are_all(tmp_path):
    path = make_set(tmp_path / "a", [bytes([i]) for i in range(7)])
    first, second = (read_half(path, f"{which} half", tmp_path / "out") for which in ("first", "second"))
    ids = [{image["id"] for image in half["images"]} for half in (first, second)]
    assert [len(part) for part in ids] == [3, 4]
    assert ids[0] | ids[1] == set(range(7))
    by_hash = sorted(range(7), key=lambda i: hashlib.sha256(bytes([i])).hexdigest())
    assert ids[0] == set(by_hash[:3])
    for half, part in zip((first, second), ids, strict=True):
        assert {a["image_id"] for a in half["annotations"]} == part
        assert all(
            (tmp_path / "a" / "images" / image["file_name"]).samefile(image["file_name"]) for image in half["images"]
        )
        assert half["categories"] == [{"id": 1, "name": "a"}]


def test_equal_files_are_in_one_half(tmp_path):
    path = make_set(tmp_path / "a", [b"x", b"y", b"y", b"y", b"y", b"z"])
    halves = [read_half(path, f"{which} half", tmp_path / "out") for which in ("first", "second")]
    sides = [{image["id"] for image in half["images"]} & {1, 2, 3, 4} for half in halves]
    assert sorted(map(len, sides)) == [0, 4]
    assert min(len(half["images"]) for half in halves) >= 1


def test_one_image_has_no_halves(tmp_path):
    path = make_set(tmp_path / "a", [b"x", b"x"])
    with pytest.raises(ConfigError, match=r"first half: there are no two different images"):
        read_half(path, "first half", tmp_path / "out")


def test_a_name_is_left_alone(tmp_path):
    assert half_of("digits_test", "", tmp_path) == "digits_test"


@pytest.mark.slow
def test_a_study_chooses_on_one_half_and_reports_on_the_other(desk, tmp_path, monkeypatch):
    path = make_set(tmp_path / "a", [bytes([i]) for i in range(4)])
    asked = []

    def half(dataset, image_root, folder):
        asked.append((dataset, folder.parent.name))
        return "digits_tune" if "first" in dataset else "digits_test"

    monkeypatch.setattr("sed.studies.study_runs.half_of", half)
    results = desk.run(tune=f"{path}, first half", test=f"{path}, second half")
    assert results["chosen"]["plus"] == "b"
    assert {(name.split(", ")[1], folder) for name, folder in asked} == {
        ("first half", "tune"),
        ("second half", "30_labels"),
    }
    assert set(STUDY["seeds"]) == {int(seed) for seed in results["test"]["30 labels"]["plus"]}


@pytest.mark.slow
def test_choices_in_several_cases_and_methods_in_some(desk):
    """A candidate is judged by the mean over cases and seeds; a method may be reported in one case only."""
    cases = {"30 labels": "SEMI.LABELED_COUNT 30", "40 labels": "SEMI.LABELED_COUNT 40"}
    methods = {**STUDY["methods"], "plus, hard": {**STUDY["methods"]["plus, hard"], "cases": ["40 labels"]}}
    results = desk.run(cases=cases, methods=methods, tune_cases=list(cases), seeds=[0], equal_seconds=[])
    assert results["chosen"]["plus"] == "b"
    assert len(results["tuned"]["plus"]["b"]) == 4  # two cases, two seeds
    trained = {line.removeprefix("train ") for line in desk.calls if line.startswith("train ")}
    assert {f"{case}/plus-b-{seed}" for case in ("30_labels", "40_labels") for seed in (10, 11)} <= trained
    assert list(results["test"]["30 labels"]) == ["control", "all labels", "plus"]
    assert list(results["test"]["40 labels"]) == ["control", "all labels", "plus", "plus, hard"]
