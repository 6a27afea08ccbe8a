"""Every file in configs/ trains, shortened to three steps on a handful of digits: the README's commands as they stand.

What is replaced is what a test cannot have: COCO, a user's data, ImageNet weights, a ResNet-50 and time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sed.data.digits import make_digits
from tests.reference.small import ENGINES, SMALL

ROOT = Path(__file__).resolve().parents[2]

SHORT = "SOLVER.MAX_ITER 3 SOLVER.STEPS (2,) SOLVER.CHECKPOINT_PERIOD 3 TEST.EVAL_PERIOD 3 SEMI.BURN_IN 1"
SPLIT = "DATASETS.TRAIN {digits}/train.json DATASETS.TEST {digits}/test.json SEMI.LABELED_PERCENT 0 "
PAIR = "DATASETS.TRAIN {digits}/train.json DATASETS.TEST {digits}/test.json DATASETS.UNLABELED {digits}/tune "
ONE_STAGE = "MODEL.RETINANET.NUM_CLASSES 5 "
CHANGED = {
    "coco_5.yaml": SPLIT + "SEMI.LABELED_COUNT 4 " + SMALL,
    "coco_10.yaml": SPLIT + "SEMI.LABELED_COUNT 4 " + SMALL,
    "coco_35k.yaml": PAIR + "DATASETS.IMAGE_ROOT '' " + SMALL,
    "coco_100.yaml": PAIR + SMALL,
    "coco_100_270k.yaml": PAIR + SMALL,
    "retinanet_r18.yaml": SPLIT + "SEMI.LABELED_COUNT 4 " + ONE_STAGE + SMALL,
    "retinanet_r50.yaml": SPLIT + "SEMI.LABELED_COUNT 4 " + ONE_STAGE + SMALL,
    "voc.yaml": PAIR + SMALL,
    "voc_geometric.yaml": PAIR + SMALL,
    "custom.yaml": PAIR + SMALL,
    "custom_scratch.yaml": PAIR + "MODEL.ROI_HEADS.NUM_CLASSES 5",
    "custom_small.yaml": PAIR + "MODEL.ROI_HEADS.NUM_CLASSES 5",
    "digits.yaml": SPLIT + "SEMI.LABELED_COUNT 4",
    "digits_detr.yaml": SPLIT + "SEMI.LABELED_COUNT 4",
    "quickstart.yaml": SPLIT + "SEMI.LABELED_COUNT 4",
    "voc_detr.yaml": PAIR + "MODEL.DETR.NUM_CLASSES 5 " + SMALL,
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("data"), counts=(10, 6, 4))


def test_every_config_is_here() -> None:
    assert sorted(CHANGED) == sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", sorted(CHANGED))
def test_the_config_trains(name: str, engine: str, digits: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    words = f"ENGINE {engine} OUTPUT_DIR {output} {SHORT} {CHANGED[name].format(digits=digits)}"
    overrides = ["" if word == "''" else word for word in words.split()]
    command = [sys.executable, "tools/train_net.py", "--config-file", f"configs/{name}", *overrides]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    weights = torch.load(output / "model_final.pth", weights_only=True)
    weights = weights.get("model", weights)  # Detectron2 has them one level down
    assert all(value.isfinite().all() for value in weights.values())
    (metrics,) = output.glob("metrics.json*")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert any(("scale/" in key or "pseudo/" in key) for row in rows for key in row), "the unsupervised terms never ran"
