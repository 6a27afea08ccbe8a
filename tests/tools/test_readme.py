"""The README's own commands, word for word and in order, on a few digits in place of a user's photos.

Only what a test cannot have is replaced: the interpreter's place, ResNet-50 and its weights, the time, and eight GPUs.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from sed.data.digits import make_digits
from sed.detectors.detr import IMAGENET_MEAN, IMAGENET_STD
from sed.detectors.detr_build import build_detr
from sed.detectors.export import save_pretrained
from tests.reference.detectors import make_detector, make_labeled, make_unlabeled
from tests.reference.detr import write_config
from tests.reference.small import NEEDS_DETECTRON2, SMALL

ROOT = Path(__file__).resolve().parents[2]
SHORT = "SOLVER.MAX_ITER 2 SOLVER.STEPS (2,) SOLVER.CHECKPOINT_PERIOD 2 TEST.EVAL_PERIOD 0 SEMI.BURN_IN 1"
OWN = "DATASETS.TRAIN my/train.json DATASETS.UNLABELED my/photos DATASETS.TEST my/val.json"
COCO = "DATASETS.TRAIN my/train.json DATASETS.TEST my/val.json SEMI.LABELED_PERCENT 0 SEMI.LABELED_COUNT 4"


def tool_commands(page: str) -> list[list[str]]:
    """Words of every command of `tools/` and of `ssod` of a page's bash fences, in order."""
    fences = (ROOT / page).read_text().split("```bash\n")[1:]
    text = "\n".join(fence.split("```")[0] for fence in fences).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if "tools/" in line or "bin/ssod" in line]


def test_the_python_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the 170 MB model is replaced, by a tiny one of the same class."""
    code = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    asked = []

    def tiny(weights: str) -> torch.nn.Module:
        asked.append(weights)
        return make_detector("small_rcnn").model

    monkeypatch.setattr(torchvision.models.detection, "fasterrcnn_resnet50_fpn_v2", tiny)
    names = {"labeled": make_labeled(), "unlabeled": make_unlabeled(), "step": 2000}
    exec(code, names)
    assert asked == ["DEFAULT"]
    assert {term.partition("/")[0] for term in names["losses"]} == {"sup", "scale", "distill"}
    assert all(p.grad is not None for p in names["detector"].parameters())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the project's root, with `my/` in it."""
    folder = tmp_path_factory.mktemp("home")
    made = make_digits(tmp_path_factory.mktemp("data"), counts=(8, 6, 4))
    for name in ("configs", "tools"):
        (folder / name).symlink_to(ROOT / name)
    my = folder / "my"
    shutil.copytree(made / "tune", my / "photos")
    for name, source in (("train", "train"), ("val", "test")):
        shutil.copytree(made / source, my / name)
        shutil.copy(made / f"{source}.json", my / f"{name}.json")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_run_as_they_stand(home: Path) -> None:
    elsewhere = {"tools/ablate.py", "tools/study.py"}  # test_ablate.py, test_study_file.py
    commands = [words for words in tool_commands("README.md") if elsewhere.isdisjoint(words)]
    assert len(commands) == 3
    for words in commands:
        run(words, home, "ENGINE torchvision")
    left_by_ssod(home)
    assert (home / "output/coco_10/model_final.pth").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
@NEEDS_DETECTRON2
def test_the_commands_for_detectron2_run_as_they_stand(home: Path) -> None:
    commands = tool_commands("docs/detectron2.md")
    assert len(commands) == 4
    shutil.rmtree(home / "output", ignore_errors=True)
    for words in commands:
        assert words[words.index("ENGINE") + 1] == "detectron2"
        run(words, home, "")
    left = "config.yaml detectron2.yaml metrics.json model_final.pth evaluation_teacher.json predictions.png"
    assert [name for name in left.split() if not (home / "output/coco_10" / name).exists()] == []
    assert (home / "output/coco_10/visualize/predictions/contact_sheet.png").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_of_own_data_runs_as_it_stands(home: Path) -> None:
    commands = tool_commands("docs/own_data.md")
    assert len(commands) == 8
    for folder in ("output", "ssod_run"):
        shutil.rmtree(home / folder, ignore_errors=True)
    for words in commands[:2]:
        run(words, home, "")
    left_by_ssod(home)
    for words in commands[2:]:
        run(words, home, "ENGINE torchvision")
    custom = home / "output/custom"
    left = "config.yaml versions.json split.json metrics.jsonl model_best.pth model_final.pth predictions.png"
    assert [name for name in left.split() if not (custom / name).exists()] == []
    assert isinstance(json.loads((home / "predictions.json").read_text()), list)
    assert "Settings to start from" in (custom / "check/check.html").read_text()


def left_by_ssod(home: Path) -> None:
    """What `ssod train` and `ssod predict` leave."""
    assert [name for name in ("report.html", "model.pth") if not (home / "ssod_run" / name).exists()] == []
    assert isinstance(json.loads((home / "predictions.json").read_text()), list)
    assert len(list((home / "pictures").iterdir())) == 6


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_of_the_detr_family_runs_as_it_stands(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only published weights are replaced, by folders of the same names with tiny models in them."""
    page = (ROOT / "docs/detr.md").read_text()
    shutil.rmtree(home / "output", ignore_errors=True)
    for place, name, mean, std in (
        ("PekingU/rtdetr_r18vd_coco_o365", "rt_detr", (0.0,) * 3, (255.0,) * 3),
        ("SenseTime/deformable-detr", "deformable_detr", IMAGENET_MEAN, IMAGENET_STD),
    ):
        tiny = build_detr(str(write_config(home, name)), 4, mean, std)
        (home / place).parent.mkdir()
        save_pretrained(tiny, home / place, [f"class {k}" for k in range(4)], (128, 128))
    commands = tool_commands("docs/detr.md")
    assert len(commands) == 2
    for words in commands:
        run(words, home, "ENGINE torchvision MODEL.DETR.NUM_CLASSES 5")
    monkeypatch.chdir(home)
    (home / "datasets/digits/test").mkdir(parents=True)
    shutil.copy(home / "my/val/00000.png", home / "datasets/digits/test/00000.png")
    for block in page.split("```python\n")[1:]:
        exec(block.split("```")[0], names := {})
    assert names["detector"].heads == {"query"}


def run(words: list[str], home: Path, more: str) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    if words[0] == ".venv/bin/ssod":
        command = [sys.executable, "-m", "sed.cli.main", *words[1:]]
        if words[1] == "train":  # from the features that pip brings, small and short
            command += shlex.split("--steps 40 INPUT.MIN_SIZE_TRAIN (96,96) INPUT.MIN_SIZE_TEST 96")
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr[-3000:]}"
        return
    assert words[0] == ".venv/bin/python"
    data = OWN if "custom" in words[words.index("--config-file") + 1] else COCO
    small = SMALL.replace("MODEL.WEIGHTS ''", "") if "MODEL.WEIGHTS" in words else SMALL
    command = ["2" if word == "8" else word for word in words[1:]]  # two processes for eight GPUs
    command = [sys.executable, *command, *shlex.split(f"{more} {data} {SHORT} {small}")]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr[-3000:]}"
