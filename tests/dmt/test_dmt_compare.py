"""projects/DMT/compare.py and sed.studies: what is run, what is shared, how the table is made."""

from __future__ import annotations

import json
from pathlib import Path

import compare
import pytest

from dmt.config import load
from sed.config import ConfigError
from sed.studies.processes import call
from sed.studies.wording import interval, slug, spread

STUDIES = sorted((Path(__file__).parents[2] / "projects" / "DMT" / "configs").glob("compare_*.yaml"))
STUDY = {
    "config": "c.yaml",
    "score": "mIoU",
    "seeds": [0, 1],
    "options": "NUM_WORKERS 0",
    "cases": {"few": "SPLIT.RATIO 20.0", "more": "SPLIT.RATIO 6.0"},
    "methods": {"baseline": "METHOD.SHARES []", "DMT": "", "all labels": "SPLIT.RATIO 1.0 METHOD.SHARES []"},
}


STAGES = (
    [{"name": "A0", "seconds": 12.0}],
    [{"name": "A0", "seconds": 0.1, "copied_from": "x"}, {"name": "A1", "seconds": 13.0}],  # 12 + 13
)


def test_a_run_is_the_config_with_what_case_method_and_seed_change() -> None:
    output = Path("out")
    assert compare.words(STUDY, ("few", "baseline", 1), output) == (
        "--config-file c.yaml --resume NUM_WORKERS 0 SPLIT.RATIO 20.0 METHOD.SHARES [] SEED 1 SPLIT.FOLD 1 OUTPUT_DIR "
        "out/few/baseline-1"
    ).split(" ")
    assert compare.words(STUDY, ("few", "DMT", 1), output)[-2:] == ["SOLVER.BASELINE_FROM", "out/few/baseline-1"]
    assert "SOLVER.BASELINE_FROM" not in compare.words(STUDY, ("few", "all labels", 1), output)  # has its own


def test_the_table_has_means_spreads_and_paired_differences() -> None:
    scores = {"baseline": (50.0, 54.0), "DMT": (60.0, 62.0), "all labels": (90.0, 90.0)}
    results = {
        (case, method, seed): {"test": {"mIoU": value}, "stages": STAGES[method == "DMT"]}
        for case in STUDY["cases"]
        for method, values in scores.items()
        for seed, value in enumerate(values)
    }
    lines = compare.table(STUDY, results, [0, 1]).splitlines()
    assert lines[3] == "| method | few | to baseline | s | more | to baseline | s |"
    cell = "52.0 ± 2.8 |  | 12"
    assert lines[5] == f"| baseline | {cell} | {cell} |"
    other = compare.table(STUDY, results, [0, 1], "DMT").splitlines()
    assert other[3] == "| method | few | to DMT | s | more | to DMT | s |"
    assert other[5].startswith("| baseline | 52.0 ± 2.8 | -9.0 [-21.7, +3.7] | 12 |")
    assert lines[6].startswith("| DMT | 61.0 ± 1.4 | +9.0 [-3.7, +21.7] | 25 |")  # t(.975, 1) = 12.706, s = sqrt 2


def test_finished_runs_are_kept_and_the_first_method_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def run(script: Path, words: list[str], log: Path) -> None:
        folder = Path(words[words.index("OUTPUT_DIR") + 1])
        called.append(f"{folder.parent.name}/{folder.name}")
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({"test": {"mIoU": 1.0}, "stages": []}))
        (folder / "config.yaml").write_text(load(None, words[3:]).dump())

    monkeypatch.setattr(compare, "call", run)
    monkeypatch.setattr(compare, "load", lambda path, words: load(None, words))
    results = compare.run_all(STUDY, tmp_path, jobs=1)
    assert len(results) == len(called) == 12
    assert called[:4] == ["few/baseline-0", "more/baseline-0", "few/baseline-1", "more/baseline-1"]
    assert len(compare.run_all(STUDY, tmp_path, jobs=2)) == 12
    assert len(called) == 12
    changed = {**STUDY, "options": "NUM_WORKERS 0 SOLVER.BASE_LR 0.5"}
    with pytest.raises(ConfigError, match=r"the study has changed since \(SOLVER\.BASE_LR: 0\.001 -> 0\.5\)"):
        compare.run_all(changed, tmp_path, jobs=1)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_the_studies_hold_runs_that_load(path: Path) -> None:
    study = compare.read_study(path)
    for case in study["cases"]:
        for method in study["methods"]:
            words = compare.words(study, (case, method, 0), Path("out"))
            cfg = load(words[1], words[3:])
            assert cfg.OUTPUT_DIR == f"out/{slug(case)}/{slug(method)}-0"


def test_a_file_that_is_no_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such study"):
        compare.read_study(tmp_path / "no.yaml")
    (tmp_path / "a.yaml").write_text("config: x\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: a study holds exactly the keys cases, config, methods"):
        compare.read_study(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text(json.dumps({**STUDY, "methods": {"DMT+": "", "DMT-": ""}}))
    with pytest.raises(ConfigError, match=r"b\.yaml: two methods would share a folder"):
        compare.read_study(tmp_path / "b.yaml")


def test_a_run_that_fails_shows_its_command_and_the_end_of_its_log(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint('working')\nsys.exit(sys.argv[1])\n")
    with pytest.raises(SystemExit, match=r"script\.py bad\nended with code 1; the end of .*log\.txt:\nworking\nbad"):
        call(script, ["bad"], tmp_path / "sub" / "log.txt")


def test_numbers_over_seeds() -> None:
    assert spread([1.0, 3.0]) == "2.0 ± 1.4"
    assert spread([1.0, float("nan")]) == "1.0"
    assert spread([]) == "-"
    assert interval([1.5]) == "+1.5"
    assert interval([1.0, 2.0, 3.0], 2) == "+2.00 [-0.48, +4.48]"  # t(.975, 2) = 4.303
    assert slug("1/20 (30 labels)") == "1_20__30_labels_"
