"""The native engine on Pascal VOC: 2007 labelled, 2012 unlabelled, scored by COCO's and both of VOC's rules."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sed.config import load_config
from sed.engine.run import evaluate_only, train
from tests.reference.voc import make_folder, random_objects, write_split

SMALL = {
    "ENGINE": "torchvision",
    "DATASETS.TRAIN": "['voc_2007_trainval']",
    "DATASETS.UNLABELED": "['voc_2012_trainval']",
    "DATASETS.TEST": "['voc_2007_test']",
    "INPUT.MIN_SIZE_TRAIN": "(64, 64)",
    "INPUT.MIN_SIZE_TEST": 64,
    "MODEL.DEVICE": "cpu",
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_HEADS.NUM_CLASSES": 20,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "SEMI.LABELED_COUNT": 0,
    "SEMI.IMS_PER_BATCH_LABELED": 2,
    "SEMI.IMS_PER_BATCH_UNLABELED": 2,
    "SEMI.BURN_IN": 1,
    "SED.REGIONS_PER_VIEW": 8,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.STEPS": "(3,)",
    "SOLVER.WARMUP_ITERS": 0,
    "TEST.EVAL_PERIOD": 4,
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    rng = np.random.default_rng(0)
    for year, split, count in ((2007, "trainval", 6), (2007, "test", 4), (2012, "trainval", 6)):
        images = {f"{year}_{split}_{i}": random_objects(rng, (64, 80), ("cat", "dog")) for i in range(count)}
        write_split(make_folder(tmp_path, year), split, images, (64, 80))
    return tmp_path


def test_voc_is_trained_on_and_scored_by_both_rules(root) -> None:
    words = [str(word) for pair in SMALL.items() for word in pair]
    run = root / "run"
    counters = train(load_config("configs/digits.yaml", [*words, "OUTPUT_DIR", str(run)]))
    names = ("AP", "AP50", "VOC07-AP50", "VOC12-AP50")
    teacher = counters.last["teacher"]
    assert all(0 <= teacher[name] <= 100 for name in names)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = next(row for row in reversed(rows) if "teacher/AP" in row)
    assert {name: last[f"teacher/{name}"] for name in names} == {name: teacher[name] for name in names}
    assert any("distill/" in key for row in rows for key in row)  # the images of 2012 were used
    weights = ["MODEL.WEIGHTS", str(run / "model_final.pth")]
    results = evaluate_only(load_config("configs/digits.yaml", [*words, "OUTPUT_DIR", str(run), *weights]))
    assert {name: results[name] for name in names} == {name: teacher[name] for name in names}
    assert "VOC07-AP50  VOC12-AP50" in (run / "log.txt").read_text()
