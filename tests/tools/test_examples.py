"""The examples run as they stand and print what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sed.config import load_config
from sed.core.structures import Images
from sed.engine.build import build_student

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_plain_loop_trains_before_and_after_burn_in():
    command = [sys.executable, "examples/plain_loop.py", "--burn-in", "3", "--steps", "5", "--batch", "2"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.splitlines()
    assert re.fullmatch(r"before, 30 labelled images alone: \d+\.\d AP, \d+\.\d AP50", before)
    assert re.fullmatch(r"after, with 300 images without labels: \d+\.\d AP, \d+\.\d AP50", after)


def test_a_teacher_with_a_timm_backbone_loads_in_plain_code(tmp_path):
    """examples/load_timm.py finds in an image what this project's detector finds; of sides that nobody resizes."""
    words = "ENGINE torchvision MODEL.WEIGHTS '' INPUT.MIN_SIZE_TEST 256 INPUT.MAX_SIZE_TEST 320 MODEL.DEVICE cpu"
    words += " MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.26 MODEL.ROI_HEADS.NMS_THRESH_TEST 0.3 MODEL.RPN.NMS_THRESH 0.6"
    words += " TEST.DETECTIONS_PER_IMAGE 6"
    cfg = load_config(ROOT / "configs/custom_small.yaml", ["" if w == "''" else w for w in words.split()])
    torch.manual_seed(0)
    detector = build_student(cfg, "").eval()
    torch.save(detector.plain_state_dict(), tmp_path / "model_final.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    pixels = np.random.default_rng(0).integers(0, 256, (256, 320, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), pixels[..., ::-1])  # OpenCV writes BGR
    command = [sys.executable, "examples/load_timm.py", str(tmp_path), str(tmp_path / "image.png")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [re.fullmatch(r"(\d+) (\d\.\d+) \[(.*)\]", line).groups() for line in done.stdout.splitlines()]
    (expected,) = detector.detect(Images(torch.as_tensor(pixels).permute(2, 0, 1)[None], ((256, 320),)))
    assert len(found) == len(expected.boxes) > 3
    for (label, score, box), k, s, b in zip(found, expected.classes, expected.scores, expected.boxes, strict=True):
        assert int(label) == k
        assert float(score) == pytest.approx(s.item(), abs=1e-3)
        assert [float(v) for v in box.split(",")] == pytest.approx(b.tolist(), abs=0.2)
