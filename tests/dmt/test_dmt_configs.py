"""The configs of DMT and DST-CBC say what the papers' tables say (check 18); each runs on folders of the right shape.

What is replaced for the runs is what a test cannot have: the images, ResNet-101's depth and width, the weights' files,
mixed precision, time. Names, layouts and the order of the stages stay as the files have them.
"""

from __future__ import annotations

import json
import re
from math import ceil, sqrt
from pathlib import Path

import numpy as np
import pytest

from dmt.config import load
from dmt.run import Run
from dmt.splits import nested_split

PROJECTS = Path(__file__).resolve().parents[2] / "projects"
SIZES = {"voc2012_aug": 10582, "voc2012_1464": 10582, "cityscapes": 2975}
# Of the papers of DMT and DST-CBC: labelled images, gamma, learning rates of baseline and rounds, labelled and
# pseudo-labelled images a step, epochs of baseline and rounds
SEGMENTATION = {
    "DMT/voc_1_106": (100, 5, 0.002, 0.001, 1, 7, 300, 4),
    "DMT/voc_1_50": (211, 5, 0.002, 0.001, 1, 7, 212, 4),
    "DMT/voc_1_20": (530, 5, 0.002, 0.001, 1, 7, 134, 4),
    "DMT/voc_1_8": (1322, 5, 0.002, 0.001, 1, 7, 85, 5),
    "DMT/voc_1464": (1464, 5, 0.002, 0.001, 1, 7, 85, 5),
    "DMT/cityscapes_1_30": (100, 3, 0.004, 0.004, 1, 7, 330, 8),
    "DMT/cityscapes_1_8": (371, 3, 0.004, 0.004, 2, 6, 170, 10),
    "DST-CBC/voc_1_106": (100, 9, 0.002, 0.002, 4, 4, 300, 6),
    "DST-CBC/voc_1_50": (211, 9, 0.002, 0.002, 4, 4, 212, 6),
    "DST-CBC/voc_1_20": (530, 9, 0.002, 0.002, 4, 4, 134, 6),
    "DST-CBC/voc_1_8": (1322, 4, 0.002, 0.002, 4, 4, 85, 6),
    "DST-CBC/voc_1_4": (2645, 4, 0.002, 0.002, 4, 4, 60, 6),
    "DST-CBC/cityscapes_1_30": (100, 9, 0.002, 0.004, 4, 4, 330, 12),
    "DST-CBC/cityscapes_1_8": (371, 9, 0.002, 0.004, 4, 4, 170, 12),
    "DST-CBC/cityscapes_1_4": (743, 9, 0.002, 0.004, 4, 4, 120, 12),
}
CLASSIFICATION = {"DMT/cifar10_4k": (400, 64, 448, 1060), "DMT/cifar10_1k": (100, 16, 496, 2120)}
BENCHMARKS = {"DMT/digits", "DMT/textured_digits"}  # the benchmarks run them
STEPS_AN_EPOCH = {
    "DMT/voc_1_20": 1436,
    "DMT/voc_1_8": 1323,
    "DMT/cityscapes_1_8": 434,
    "DST-CBC/voc_1_20": 2513,
}  # check 18


def path_of(name: str) -> Path:
    project, file = name.split("/")
    return PROJECTS / project / "configs" / f"{file}.yaml"


def labeled(cfg) -> int:
    """Labelled images of a segmentation config."""
    if cfg.DATASETS.NAME == "voc2012_1464":
        return 1464
    return len(nested_split(SIZES[cfg.DATASETS.NAME], cfg.SPLIT.RATIO, cfg.SPLIT.FOLD)[0])


# ---------------------------------------------------------------------------------------------- what they say
def test_every_config_is_here():
    files = {
        f"{p.parents[1].name}/{p.stem}" for project in ("DMT", "DST-CBC") for p in PROJECTS.glob(f"{project}/configs/*")
    }
    studies = {name for name in files if name.startswith("DMT/compare_")}
    assert files - studies == {*SEGMENTATION, *CLASSIFICATION, *BENCHMARKS}


@pytest.mark.parametrize("name", sorted({*SEGMENTATION, *CLASSIFICATION, *BENCHMARKS}))
def test_no_test_image_chooses_and_folders_differ(name):
    cfg = load(path_of(name))
    assert cfg.SPLIT.SELECT != "test"
    assert cfg.OUTPUT_DIR not in [load(path_of(other)).OUTPUT_DIR for other in SEGMENTATION if other != name]


@pytest.mark.parametrize("name", sorted(SEGMENTATION))
def test_segmentation_configs_are_the_papers(name):
    cfg = load(path_of(name))
    s, m = cfg.SOLVER, cfg.METHOD
    found = (labeled(cfg), m.GAMMA1, s.BASELINE_LR, s.BASE_LR, s.BATCH_LABELED, s.BATCH_PSEUDO, s.BASELINE_EPOCHS)
    assert (*found, s.EPOCHS) == SEGMENTATION[name]
    base = 30 if "voc" in name else 60
    assert pytest.approx(base * sqrt(SIZES[cfg.DATASETS.NAME] / labeled(cfg)), rel=0.06) == s.BASELINE_EPOCHS
    assert m.SHARES == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert (m.CLASS_BALANCED, m.RENORMALIZE, m.RETRAIN, m.MIXUP, s.EMA) == (True, False, False, 0, 0)
    assert (s.SCHEDULE, s.MOMENTUM, s.WEIGHT_DECAY) == ("poly", 0.9, 0.0005)
    assert (cfg.MODEL.NAME, cfg.MODEL.DEPTH, cfg.MODEL.NUM_ACTIVE_RATES) == ("deeplab_v2", 101, 4)
    assert cfg.MODEL.NORMALIZATION == [{"coco": "caffe"}.get(init, init) for init in cfg.MODEL.INIT]
    if name.startswith("DMT"):
        assert (m.MUTUAL, m.WEIGHT, m.GAMMA2) == (True, "three_case", m.GAMMA1)
        assert (cfg.MODEL.INIT[1] == "coco") == cfg.SPLIT.DIFFERENCE_MAXIMISED == (name == "DMT/voc_1_106")
    else:
        assert (m.MUTUAL, m.WEIGHT, m.KEEP_BEST, cfg.SPLIT.SELECT) == (False, "naive", True, "valtiny")


@pytest.mark.parametrize("name", sorted(CLASSIFICATION))
def test_classification_configs_are_the_papers(name):
    cfg = load(path_of(name))
    s, m = cfg.SOLVER, cfg.METHOD
    assert (cfg.SPLIT.PER_CLASS, s.BATCH_LABELED, s.BATCH_PSEUDO, s.BASELINE_EPOCHS) == CLASSIFICATION[name]
    assert (s.BASELINE_LR, s.BASE_LR, s.EPOCHS, s.SCHEDULE, s.EMA) == (0.2, 0.1, 750, "cosine", 0.999)
    assert (m.GAMMA1, m.GAMMA2, m.GAMMA_RAMP, m.MIXUP, m.WEIGHT) == (4, 4, True, 0.75, "three_case")
    assert (m.MUTUAL, m.RETRAIN, m.CLASS_BALANCED) == (False, True, False)
    assert (cfg.SPLIT.SELECT, cfg.SPLIT.SELECT_COUNT, cfg.TEST.EVAL_PERIOD) == ("valtiny", 20, 0)


@pytest.mark.parametrize("name", sorted(STEPS_AN_EPOCH))
def test_steps_an_epoch(name):
    cfg = load(path_of(name))
    unlabeled = SIZES[cfg.DATASETS.NAME] - labeled(cfg)
    assert ceil(unlabeled / cfg.SOLVER.BATCH_PSEUDO) == STEPS_AN_EPOCH[name]


def test_steps_an_epoch_grow_with_the_share_where_images_are_chosen():
    cfg = load(path_of("DMT/cifar10_4k"))
    left = 50_000 - 10 * (cfg.SPLIT.SELECT_COUNT + cfg.SPLIT.PER_CLASS)
    steps = [ceil(int(left * share) / cfg.SOLVER.BATCH_PSEUDO) for share in cfg.METHOD.SHARES]
    assert (steps[0], steps[-1]) == (21, 103)


@pytest.mark.parametrize("project", ["DMT", "DST-CBC"])
def test_the_words_of_the_readme_are_keys_and_values(project):
    """Every `KEY VALUE ...` in a README, behind the config that it belongs to."""
    text = re.sub(r"```.*?```", "", (PROJECTS / project / "README.md").read_text(), flags=re.DOTALL)
    options = [words for words in re.findall(r"`([^`\n]+)`", text) if re.match(r"[A-Z]+\.[A-Z0-9_.]+ ", words)]
    assert len(options) >= 9
    for words in options:
        name = "cifar10_4k" if "PER_CLASS" in words else "voc_1_20"
        load(path_of(f"{project}/{name}"), words.split())


# ---------------------------------------------------------------------------------------------- what they do
SHORT = (
    "NUM_WORKERS 0 MODEL.DEVICE cpu MODEL.INIT_FILE {weights} SOLVER.MAX_STEPS 2 SOLVER.AMP.ENABLED False "
    "METHOD.SHARES [0.5,1.0] TEST.PICTURES 2 "
)
SMALL = {
    "voc": "SPLIT.RATIO 3.0 SPLIT.SELECT_COUNT 2 INPUT.CROP [33,41] INPUT.PAD_TEST [81,81] TEST.EVAL_PERIOD 1 ",
    "cityscapes": "SPLIT.RATIO 2.5 SPLIT.SELECT_COUNT 1 INPUT.RESIZE [33,65] INPUT.CROP [17,33] TEST.EVAL_PERIOD 1 ",
    "cifar10": "SPLIT.PER_CLASS 3 SPLIT.SELECT_COUNT 2 SOLVER.BATCH_LABELED 4 SOLVER.BATCH_PSEUDO 8 ",
}
SIDES = {"voc": "INPUT.SIDES [33,50,41,60]", "cityscapes": "INPUT.SIDES [17,33,33,65]"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*SEGMENTATION, *CLASSIFICATION}))
def test_the_config_runs(name, folders, tmp_path):
    kind = name.split("/")[1].split("_")[0]
    words = SHORT.format(weights=folders / "coco.pth") + SMALL[kind]
    words += SIDES[kind] if name.startswith("DST-CBC") else ""
    cfg = load(path_of(name), [*words.split(), "DATASETS.ROOT", str(folders), "OUTPUT_DIR", str(tmp_path / "run")])
    summary = Run(cfg).run()
    trainings = [stage for stage in summary["stages"] if stage["kind"] == "train"]
    labellings = [stage for stage in summary["stages"] if stage["kind"] == "label"]
    assert (len(trainings), len(labellings)) == ((6, 4) if cfg.METHOD.MUTUAL else (3, 2))
    assert [stage["steps"] for stage in trainings] == [2] * len(trainings)
    assert all(np.isfinite(stage["test"]["score"]) for stage in trainings)
    assert all(bool(stage["select"]) == (cfg.SPLIT.SELECT != "last") for stage in trainings)
    assert [stage["kept"] for stage in labellings if stage["share"] == 1.0] == [1.0] * (len(labellings) // 2)
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {
        "config.yaml",
        "split.json",
        "summary.json",
        "model_final.pth",
        "pseudo_labels.png",
        "progress.html",
    } <= files
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
