"""tools/ablate.py: which runs the tables need, what each changes, and a whole table at a size that fits a test."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tqdm import tqdm

from sed.cli.study import make_runner
from sed.config import load_config
from sed.data.digits import make_digits
from sed.studies import ablations as ablate
from sed.studies.study_runs import Evaluation, Run
from tests.reference.small import SMALL

ROOT = Path(__file__).resolve().parents[2]
BASE = str(ROOT / "configs/coco_10.yaml")


def test_the_paper_s_figures_are_those_of_the_specification() -> None:
    """docs/method.md 9."""
    found = {table: [ap for _, ap in rows] for table, (_, rows) in ablate.TABLES.items()}
    assert found == {
        4: [23.86, 26.8, 30.1, 29.8, 31.4, 29.5, 34.0],
        6: [31.4, 32.0, 34.0],
        8: [21.5, 23.0, 26.1, 25.2, 23.1, 21.1],
        9: [33.0, 34.1, 32.0],
        10: [30.1, 31.4, 31.2, 34.0],
    }


def test_every_arm_is_a_few_keys_of_one_config_and_no_two_are_the_same() -> None:
    wanted = {arm for _, rows in ablate.TABLES.values() for arm, _ in rows}
    assert wanted == set(ablate.ARMS)
    configs = {name: load_config(BASE, ablate.make_arm(name, BASE, [])).dump() for name in ablate.ARMS}
    assert len(set(configs.values())) == len(configs)
    assert configs["all"] == load_config(BASE).dump()


def test_what_changes_burn_in_does_not_share_it() -> None:
    runner = make_runner(BASE, 1, tqdm(disable=True))
    runs = {name: Run(Path(name), ablate.make_arm(name, BASE, []), Evaluation("")) for name in ablate.ARMS}
    baselines = {name: runs.pop(name) for name in (ablate.SUPERVISED, ablate.RETINANET_SUPERVISED)}
    own = {name: replace(run, baseline=baselines[ablate.detector_of(name)]) for name, run in runs.items()}
    assert {name for name, run in own.items() if not runner.shares_burn_in(run)} == {"distillation, wide jitter"}
    other = [replace(run, baseline=baselines[ablate.SUPERVISED]) for name, run in own.items() if "RetinaNet" in name]
    assert len(other) == 5
    assert not any(map(runner.shares_burn_in, other))  # another detector


def test_retinanet_has_nine_anchors_a_cell_the_classes_and_the_pyramid_of_the_config() -> None:
    arm = "RetinaNet, scale, rate 2"
    found, own = load_config(BASE, ablate.make_arm(arm, BASE, [])), load_config(ROOT / "configs/retinanet_r18.yaml")
    assert found.MODEL == own.MODEL
    digits = str(ROOT / "configs/digits.yaml")
    model = load_config(digits, ablate.make_arm(arm, digits, [])).MODEL
    assert model.RETINANET.NUM_CLASSES == 5
    assert model.ANCHOR_GENERATOR.SIZES[0] == [12, 15.1, 19.0]
    assert [len(sizes) for sizes in model.ANCHOR_GENERATOR.SIZES] == [3, 3, 3, 3]
    assert model.ANCHOR_GENERATOR.ASPECT_RATIOS == [[0.5, 1.0, 2.0]]


def test_a_rate_too_large_for_the_pyramid_is_left_out() -> None:
    assert ablate.without_pair(BASE, []) == {}
    lost = ablate.without_pair(str(ROOT / "configs/digits.yaml"), [])
    assert lost == {"RetinaNet, scale, rate 16": "a pyramid of 4 levels has none that are 4 apart"}
    results = {arm: {"0": {"teacher": {"full": {"AP": 1.0, "AP50": 2.0}}}} for arm, _ in ablate.TABLES[8][1][:-1]}
    assert "rate 16" not in ablate.make_table(8, results, [0])
    assert "rate 8" in ablate.make_table(8, results, [0])


def test_every_fold_has_every_seed() -> None:
    assert ablate.make_cases([0, 1], []) == {"0": ("SEED", "0"), "1": ("SEED", "1")}
    cases = ablate.make_cases([3], [0, 2])
    assert cases == {f"3-fold{f}": ("SEED", "3", "SEMI.FOLD", str(f)) for f in (0, 2)}
    runs = ablate.make_runs(
        ["scale", ablate.SUPERVISED, "RetinaNet, scale, rate 1"], cases, BASE, [], "coco_2017_val", Path("out")
    )
    assert [run.folder.name for run in runs["scale"]] == ["scale-3-fold0", "scale-3-fold2"]
    assert [run.baseline for run in runs["scale"]] == runs[ablate.SUPERVISED]
    assert [load_config(BASE, run.words).SEMI.FOLD for run in runs["scale"]] == [0, 2]
    rate_1 = runs["RetinaNet, scale, rate 1"]
    assert [load_config(BASE, run.words).SED.MAX_SCALE for run in rate_1] == [0, 0]
    assert all(load_config(BASE, r.baseline.words).SEMI.METHOD == "supervised" for r in rate_1)
    assert "Seeds 3; folds 0, 2;" in ablate.make_table(9, {}, [3], [0, 2])


def test_the_wide_jitter_is_the_paper_s_and_keeps_its_proportions_elsewhere() -> None:
    cfg = load_config(BASE, ablate.make_arm("distillation, wide jitter", BASE, []))
    assert tuple(cfg.INPUT.MIN_SIZE_TRAIN) == (300, 1200)
    assert cfg.SED.LAMBDA_SCALE == 0
    digits = str(ROOT / "configs/digits.yaml")
    cfg = load_config(digits, ablate.make_arm("distillation, wide jitter", digits, []))
    assert tuple(cfg.INPUT.MIN_SIZE_TRAIN) == (60, 192)
    assert cfg.INPUT.MAX_SIZE_TRAIN == 192


def test_a_table_gives_the_gain_seed_by_seed() -> None:
    def run(ap: float) -> dict:
        return {"teacher": {"full": {"AP": ap, "AP50": 2 * ap}}}

    results = {"all, cosine EMA": {"0": run(10.0), "1": run(20.0)}, "all": {"0": run(13.0), "1": run(25.0)}}
    results["all, constant EMA"] = {"0": run(math.nan), "1": run(math.nan)}
    rows = [line for line in ablate.make_table(9, results, [0, 1]).splitlines() if line.startswith("| all")]
    assert rows[0] == "| all, cosine EMA | 15.0 ± 7.1 | 30.0 ± 14.1 | 0.0 ± 0.0 | 33.0 | +0.0 |"
    assert rows[1] == "| all | 19.0 ± 8.5 | 38.0 ± 17.0 | 4.0 ± 1.4 | 34.1 | +1.1 |"
    assert rows[2] == "| all, constant EMA | - | - | - | 32.0 | -1.0 |"


TINY = {"SOLVER.MAX_ITER": 2, "SOLVER.STEPS": "(2,)", "SEMI.BURN_IN": 1, "SEMI.LABELED_COUNT": 4}
TINY |= {"SEMI.IMS_PER_BATCH_LABELED": 1, "SEMI.IMS_PER_BATCH_UNLABELED": 1, "TEST.EVAL_PERIOD": 0}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("config", "tables"), [("digits.yaml", []), ("coco_10.yaml", [8])])
def test_the_tables_run(config: str, tables: list[int], tmp_path: Path) -> None:
    """From digits.yaml all of them, the default; two steps a run, on a handful of digits."""
    digits = make_digits(tmp_path / "data", counts=(10, 4, 4))
    more = f"DATASETS.TRAIN {digits}/train.json DATASETS.TEST {digits}/test.json SEMI.LABELED_PERCENT 0 "
    more += "DATALOADER.NUM_WORKERS 0 " + (SMALL if config == "coco_10.yaml" else "")
    command = [sys.executable, "tools/ablate.py", "--config-file", f"configs/{config}", "--test", f"{digits}/test.json"]
    command += ["--tables", *map(str, tables)] if tables else []
    command += ["--num-gpus", "1", "--output", str(tmp_path / "out"), "--", "ENGINE", "torchvision"]
    command += ["" if word == "''" else word for word in more.split()]
    command += [str(word) for pair in TINY.items() for word in pair]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = (tmp_path / "out/tables.md").read_text()
    assert [n for n in ablate.TABLES if f"Table {n}:" in written] == (tables or list(ablate.TABLES))
    left_out = "RetinaNet, scale, rate 16: left out" in done.stdout
    assert left_out == ("rate 16 |" not in written) == (config == "digits.yaml")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_table_is_run_and_interrupted_runs_are_kept(tmp_path: Path) -> None:
    tiny = {"SOLVER.MAX_ITER": 3, "SOLVER.STEPS": "(2,)", "SEMI.BURN_IN": 2, "SEMI.LABELED_COUNT": 4}
    tiny |= {"SEMI.IMS_PER_BATCH_LABELED": 2, "SEMI.IMS_PER_BATCH_UNLABELED": 2, "TEST.EVAL_PERIOD": 0}
    command = [sys.executable, "tools/ablate.py", "--config-file", "configs/digits.yaml", "--test", "digits_test"]
    command += ["--tables", "6", "--output", str(tmp_path / "out"), "--", "ENGINE", "torchvision"]
    command += [str(word) for pair in tiny.items() for word in pair]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| distillation, wide jitter |" in (tmp_path / "out/tables.md").read_text()
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert set(results) == {arm for arm, _ in ablate.TABLES[6][1]}
    logs = {path.stem: path.read_text() for path in (tmp_path / "out").glob("*.log")}
    assert "after step 2" in logs["all-0"]  # from the supervised baseline's burn-in
    assert "after step 2" not in logs["distillation__wide_jitter-0"]
    assert f"{ablate.SUPERVISED}-0" in logs  # in no row of the table, but its burn-in is theirs
    (tmp_path / "out/all-0/result.json").unlink()  # as if it had been interrupted
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "out/distillation-0.log").read_text() == logs["distillation-0"]  # nothing ran twice
    assert (tmp_path / "out/all-0.log").read_text() != logs["all-0"]
