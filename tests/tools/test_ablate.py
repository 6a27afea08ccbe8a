"""tools/ablate.py: which runs the tables need, what each changes, and a whole table at a size that fits a test."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ablate
import pytest
from tqdm import tqdm

from sed.cli.study import make_runner
from sed.config import load_config
from sed.studies.study_runs import Evaluation, Run

ROOT = Path(__file__).resolve().parents[2]
BASE = str(ROOT / "configs/coco_10.yaml")


def test_the_paper_s_figures_are_those_of_method_9() -> None:
    """METHOD 9 lists them in its own words."""
    found = {table: [ap for _, ap in rows] for table, (_, rows) in ablate.TABLES.items()}
    assert found == {
        4: [23.86, 26.8, 30.1, 29.8, 31.4, 29.5, 34.0],
        6: [31.4, 32.0, 34.0],
        8: [26.1, 25.2, 23.1, 21.1],
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
    control = runs.pop(ablate.CONTROL)
    alone = {name for name, run in runs.items() if not runner.shares_burn_in(replace(run, baseline=control))}
    assert alone == {"distillation, wide jitter", *(f"RetinaNet, scale, rate {2**s}" for s in (1, 2, 3, 4))}


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

    results = {"all, cosine EMA": {0: run(10.0), 1: run(20.0)}, "all": {0: run(13.0), 1: run(25.0)}}
    results["all, constant EMA"] = {0: run(math.nan), 1: run(math.nan)}
    rows = [line for line in ablate.make_table(9, results, [0, 1]).splitlines() if line.startswith("| all")]
    assert rows[0] == "| all, cosine EMA | 15.0 ± 7.1 | 30.0 ± 14.1 | 0.0 ± 0.0 | 33.0 | +0.0 |"
    assert rows[1] == "| all | 19.0 ± 8.5 | 38.0 ± 17.0 | 4.0 ± 1.4 | 34.1 | +1.1 |"
    assert rows[2] == "| all, constant EMA | - | - | - | 32.0 | -1.0 |"


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
    assert "after step 2" in logs["all-0"]  # from the control's burn-in
    assert "after step 2" not in logs["distillation__wide_jitter-0"]
    assert f"{ablate.CONTROL}-0" in logs  # in no row of the table, but its burn-in is theirs
    (tmp_path / "out/all-0/result.json").unlink()  # as if it had been interrupted
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "out/distillation-0.log").read_text() == logs["distillation-0"]  # nothing ran twice
    assert (tmp_path / "out/all-0.log").read_text() != logs["all-0"]
