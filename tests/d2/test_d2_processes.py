"""Two gloo processes against one with the whole batch, and the COCO recipe at full resolution."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)")

import cv2
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.utils import comm

from sed.runtime.launch import launch
from tests.reference.detectron2_run import make_trainer, tiny_config, words

ROOT = Path(__file__).resolve().parents[2]
STEPS = 10
# Nothing is drawn at random and every image has equally many samples, so that a mean of means is the mean of all
WHOLE = {
    "SOLVER__MAX_ITER": STEPS,
    "SOLVER__STEPS": "(8,)",
    "SEMI__BURN_IN": 4,
    "SEMI__IMS_PER_BATCH_LABELED": 4,
    "SEMI__IMS_PER_BATCH_UNLABELED": 4,
    "MODEL__RPN__BATCH_SIZE_PER_IMAGE": 100_000,
    "MODEL__RPN__POST_NMS_TOPK_TRAIN": 20,
    "MODEL__RPN__NMS_THRESH": 1.0,
    "MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE": 20,
    "MODEL__ROI_HEADS__POSITIVE_FRACTION": 1.0,
    "MODEL__ROI_HEADS__PROPOSAL_APPEND_GT": False,
    "SED__REWEIGHT__OVER_PROCESSES": True,
    "SOLVER__OPTIMIZER": "SGD",
    "SOLVER__BASE_LR": 0.02,
    "DATASETS__TEST": "()",
    "TEST__EVAL_PERIOD": 0,
}


def losses_of(squares, output):
    """Train; every step's losses, averaged over the processes, and the weights."""
    cfg = tiny_config(squares, output, **WHOLE)
    trainer = make_trainer(cfg)
    trainer.resume_or_load()
    rows = []
    forward = trainer.method.forward

    def record(labeled, unlabeled, step):
        losses = forward(labeled, unlabeled, step)
        assert len(labeled) == 4 // comm.get_world_size()
        rows.append({name: loss.item() for name, loss in losses.items()})
        return losses

    trainer.method.forward = record
    trainer.train()
    every = comm.all_gather(rows)
    means = [{name: float(np.mean([r[i][name] for r in every])) for name in rows[i]} for i in range(STEPS)]
    return means, trainer.method.state_dict()


def two(squares, output):
    means, state = losses_of(squares, output)
    torch.save({"means": means, "state": state}, f"{output}/rank{comm.get_rank()}.pth")


@pytest.mark.slow
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path, squares):
    """Acceptance 3: ten steps, the same losses to 1e-4."""
    (tmp_path / "two").mkdir()
    launch(two, num_gpus=2, args=(squares, str(tmp_path / "two")))
    one, state = losses_of(squares, str(tmp_path / "one"))
    ranks = [torch.load(tmp_path / "two" / f"rank{r}.pth", weights_only=True) for r in (0, 1)]
    assert len(one) == len(ranks[0]["means"]) == STEPS
    assert len(one[0]) == 4 and len(one[-1]) == 12  # noqa: PT018 (burn-in; and the terms of SED)
    for mine, theirs in zip(one, ranks[0]["means"], strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert theirs[name] == pytest.approx(value, abs=1e-4, rel=1e-4), name
    assert abs(one[0]["sup/region_cls"] - one[-1]["sup/region_cls"]) > 1e-2  # far more than the tolerance
    for name, value in state.items():
        torch.testing.assert_close(ranks[0]["state"][name], value, atol=1e-4, rtol=1e-3)
        assert torch.equal(ranks[0]["state"][name], ranks[1]["state"][name])


def write_coco(root: Path, count: int = 6) -> None:
    """A folder like COCO's, under DETECTRON2_DATASETS: 80 categories, photographs' sizes."""
    rng = np.random.default_rng(0)
    categories = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    for split in ("train", "val"):
        (root / "coco" / f"{split}2017").mkdir(parents=True)
        (root / "coco" / "annotations").mkdir(exist_ok=True)
        images, annotations = [], []
        for i in range(count):
            name = f"{i + (100 if split == 'val' else 0):012d}.jpg"
            pixels = cv2.resize(rng.integers(0, 255, (15, 20, 3), dtype=np.uint8), (640, 480))
            cv2.imwrite(str(root / "coco" / f"{split}2017" / name), pixels)
            images.append({"id": i + 1, "file_name": name, "height": 480, "width": 640})
            box = [50 + 10 * i, 60, 200, 150]
            row = {"id": i + 1, "image_id": i + 1, "category_id": categories[i]["id"], "bbox": box}
            annotations.append({**row, "area": 30000, "iscrowd": 0})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "coco" / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("processes", [1, 2])
def test_the_coco_recipe_runs_at_full_resolution(tmp_path, processes):
    """Acceptance 5: ten steps, R50-FPN, short side 640 to 800; as the file says but for the machine's limits."""
    write_coco(tmp_path)
    output = tmp_path / "run"
    values = {
        "ENGINE": "detectron2",
        "OUTPUT_DIR": output,
        "MODEL.WEIGHTS": "",  # no network
        "DATALOADER.NUM_WORKERS": 1,
        "SEMI.LABELED_PERCENT": 50.0,
        "SEMI.IMS_PER_BATCH_LABELED": processes,
        "SEMI.IMS_PER_BATCH_UNLABELED": processes,
        "SEMI.BURN_IN": 8,
        "SOLVER.MAX_ITER": 10,
        "SOLVER.STEPS": "(9,)",
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.BASE_LR": 1e-5,  # from random weights with frozen BN
        "TEST.EVAL_PERIOD": 0,
    }
    command = ["tools/train_net.py", "--num-gpus", str(processes), "--config-file", "configs/coco_10.yaml"]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *command, *words(values)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"World size: {processes}" in done.stdout
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert rows[-1]["iteration"] == 10
    assert {"student/bbox/AP", "teacher/bbox/AP"} <= set(rows[-1])
    losses = next(row for row in rows if "total_loss" in row)
    assert {"sup/dense_cls", "scale/region_cls", "distill/dense_box"} <= set(losses)
    assert np.isfinite(losses["total_loss"])
    for name in ("model_final.pth", "checkpoint_0000010.pth", "predictions.png", "split.json"):
        assert (output / name).is_file()
