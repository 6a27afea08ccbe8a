"""tools/check_data.py: exit code, pages, and settings that can be pasted."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sed.cli import check as check_data
from sed.config import load_config
from tests.reference.faults import FAULTS
from tests.reference.small_data import Small

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/custom.yaml"


@pytest.fixture
def small(tmp_path):
    return Small(tmp_path / "set")


def words(small, *flags):
    names = small.write()
    return [
        *("--config-file", CONFIG, "--output", str(small.folder / "check"), *flags, "ENGINE", "torchvision"),
        *("DATASETS.TRAIN", repr(names["labelled"]), "DATASETS.UNLABELED", repr(names["unlabelled"])),
        *("DATASETS.TEST", repr(names["test"]), "DATALOADER.NUM_WORKERS", "2"),
    ]


def run(arguments, capsys):
    """Exit code and what is printed."""
    with pytest.raises(SystemExit) as end:
        check_data.main(arguments)
    return end.value.code, capsys.readouterr().out


def test_a_clean_set_passes(small, capsys):
    code, printed = run(words(small), capsys)
    assert code == 0
    assert "Training can start: no error and no warning." in printed
    content = json.loads((small.folder / "check/check.json").read_text())
    assert content["findings"] == []
    assert (content["labelled_images"], content["unlabelled_images"]) == (14, 8)
    page = (small.folder / "check/check.html").read_text()
    assert "Training can start" in page
    assert "<svg" in page
    assert not re.search(r'(src|href)="https?:', page)  # it needs no network
    assert "How they look" not in page


def test_faults_end_with_code_1_and_stand_on_the_page_with_item_remedy_and_picture(small, capsys):
    planted = [(fault.code, *fault.plant(small)) for fault in FAULTS]
    code, printed = run(words(small), capsys)
    assert code == 1
    page = (small.folder / "check/check.html").read_text()
    content = json.loads((small.folder / "check/check.json").read_text())
    found = {row["code"]: row for row in content["findings"]}
    for kind, file, item in planted:
        assert f"[{kind}]" in printed
        assert found[kind]["remedy"] in printed
        assert any(row["file"].endswith(file) and item in row["item"] for row in found[kind]["items"]), kind
    assert "annotation 451 (image 45, 45.jpg)" in page  # the box outside
    assert "data:image/jpeg;base64," in page
    assert "Not ready" in page
    assert "Not ready" in printed
    errors = [row["severity"] for row in content["findings"]]
    assert errors == sorted(errors, key=["error", "warning", "note"].index)


def test_names_of_files_are_text_on_the_page(small, capsys):
    small.bare(70, name="<b>&.jpg")
    small.train["images"][-1]["width"] = 999
    assert run(words(small), capsys)[0] == 1
    page = (small.folder / "check/check.html").read_text()
    assert "image 70 (&lt;b&gt;&amp;.jpg)" in page
    assert "<b>&.jpg" not in page


@pytest.mark.parametrize("gpus", [1, 2])
def test_the_suggested_settings_can_be_pasted(small, capsys, gpus):
    _, printed = run(words(small, "--num-gpus", str(gpus)), capsys)
    line = printed.partition("All of them, for the end of the training command:\n")[2].splitlines()[0]
    cfg = load_config(CONFIG, shlex.split(line))
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    assert cfg.SEMI.IMS_PER_BATCH_LABELED == 4 * gpus
    assert cfg.SOLVER.BASE_LR == pytest.approx(0.005 * gpus)
    assert tuple(cfg.INPUT.MIN_SIZE_TRAIN) == (256, 320)
    assert len(cfg.MODEL.ANCHOR_GENERATOR.SIZES) == 5
    assert max(cfg.SOLVER.STEPS) < cfg.SOLVER.MAX_ITER
    single = [row.split("   # ")[0] for row in printed.splitlines() if re.match(r"  [A-Z_.]+ .*   # ", row)]
    assert shlex.split(" ".join(single)) == shlex.split(line)


@pytest.mark.parametrize("architecture", ["ScaleConsistentRetinaNet", "ScaleConsistentDETR"])
def test_the_classes_and_anchors_of_another_detector(small, capsys, architecture):
    key = {"ScaleConsistentRetinaNet": "MODEL.RETINANET", "ScaleConsistentDETR": "MODEL.DETR"}[architecture]
    code, printed = run([*words(small), "MODEL.META_ARCHITECTURE", architecture], capsys)
    assert code == 1  # 80 classes by default
    assert f"{key}.NUM_CLASSES 3 " in printed
    assert ("ANCHOR_GENERATOR" in printed) == (architecture == "ScaleConsistentRetinaNet")


def test_bad_input_is_one_clear_line(small, capsys):
    assert "at least 1" in run(words(small, "--num-gpus", "0"), capsys)[0]
    assert "nearest known one is SEMI.FOLD" in run([*words(small), "SEMI.FOLDD", "1"], capsys)[0]


def test_it_runs_as_a_command(small):
    """In a process of its own, as a user starts it; with a bar on stderr and the result on stdout."""
    small.save("broken", "{")
    command = [sys.executable, "tools/check_data.py", *words(small)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stderr
    assert "[json-broken]" in done.stdout
    assert "28/28" in done.stderr
    assert "Traceback" not in done.stderr
