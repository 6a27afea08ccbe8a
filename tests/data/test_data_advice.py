"""The settings that a check of the data suggests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sed.checks.advice import advise, coverage
from tests.reference.small_data import ANCHORS, RATIOS, SETUP


def suggest(width, height, frame=(640, 480), labelled=300, unlabelled=1000, number=200, **changes):
    boxes, frames = np.tile([width, height], (number, 1)), np.tile(frame, (number, 1))
    images = np.tile(frame, (50, 1))
    rows = advise(replace(SETUP, **changes), 3, boxes.astype(float), frames.astype(float), images, labelled, unlabelled)
    assert all(row.reason for row in rows)
    return {row.key: row.value for row in rows}


def test_images_of_medium_objects_keep_their_size():
    got = suggest(100, 100)
    assert got["INPUT.MIN_SIZE_TRAIN"] == (384, 480)
    assert (got["INPUT.MAX_SIZE_TRAIN"], got["INPUT.MIN_SIZE_TEST"]) == (640, 480)
    assert got["MODEL.ANCHOR_GENERATOR.SIZES"] == ANCHORS
    assert got["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"] == RATIOS


def test_small_objects_get_larger_images_and_large_images_of_large_objects_shrink():
    assert suggest(12, 12)["INPUT.MIN_SIZE_TRAIN"] == (640, 800)  # 20 pixels at 800
    assert suggest(4, 4)["INPUT.MIN_SIZE_TRAIN"][1] == 960  # no more than twice the file's
    assert suggest(900, 900, frame=(4000, 3000))["INPUT.MIN_SIZE_TRAIN"] == (640, 800)
    assert suggest(30, 30, frame=(4000, 3000))["INPUT.MIN_SIZE_TRAIN"][1] == 1216  # the limit


def test_anchors_follow_small_and_long_boxes_and_keep_their_number():
    long = suggest(400, 60)
    assert coverage(np.array([[400.0, 60.0]]), ANCHORS, RATIOS) == 0
    assert (
        coverage(
            np.array([[400.0, 60.0]]) * 432 / 480,
            long["MODEL.ANCHOR_GENERATOR.SIZES"],
            long["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"],
        )
        == 1
    )
    assert len(long["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"][0]) == 3
    little = suggest(8, 8, frame=(1600, 1200))
    assert little["MODEL.ANCHOR_GENERATOR.SIZES"][0][0] < 32
    assert len(little["MODEL.ANCHOR_GENERATOR.SIZES"]) == 5
    assert "MODEL.ANCHOR_GENERATOR.SIZES" not in suggest(8, 8, anchor_sizes=[])


def test_coverage_by_hand():
    square = np.array([[32.0, 32.0], [64.0, 16.0], [16.0, 64.0]])  # IoU with 32 x 32: 1, 1/3, 1/3
    assert coverage(square, [[32]], [[1.0]]) == pytest.approx(1 / 3)
    assert coverage(square, [[32]], [[1.0, 4.0]]) == pytest.approx(2 / 3)  # height by width: 16 wide, 64 high
    assert coverage(square[2:], [[32]], [[4.0]]) == 1
    assert coverage(square, [[16], [32]], [[1.0], [0.25]]) == pytest.approx(1 / 3)  # one list a level


@pytest.mark.parametrize(
    ("gpus", "labelled", "batch", "rate"),
    [
        (1, 300, 4, 0.005),
        (2, 300, 8, 0.01),
        (4, 300, 16, 0.02),
        (8, 300, 16, 0.02),
        (1, 2, 2, 0.0025),
        (32, 300, 32, 0.04),
    ],
)
def test_batch_and_learning_rate_follow_the_gpus(gpus, labelled, batch, rate):
    got = suggest(100, 100, gpus=gpus, labelled=labelled)
    assert got["SEMI.IMS_PER_BATCH_LABELED"] == got["SEMI.IMS_PER_BATCH_UNLABELED"] == batch
    assert got["SOLVER.BASE_LR"] == pytest.approx(rate)
    assert batch % gpus == 0


def test_the_schedule_is_custom_yaml_s_for_small_sets_and_the_paper_s_for_large_ones():
    got = suggest(100, 100, labelled=30)
    assert (got["SOLVER.MAX_ITER"], got["SOLVER.STEPS"], got["SEMI.BURN_IN"]) == (18000, (12000, 16000), 2000)
    assert suggest(100, 100, labelled=5011, gpus=2)["SOLVER.MAX_ITER"] == 40000  # VOC
    coco = suggest(100, 100, labelled=118287, gpus=2)
    assert (coco["SOLVER.MAX_ITER"], coco["SOLVER.STEPS"]) == (180000, (120000, 160000))
    assert "SOLVER.REFERENCE_WORLD_SIZE" not in coco
    assert suggest(100, 100, reference=8)["SOLVER.REFERENCE_WORLD_SIZE"] == 0  # or all would be scaled once more
    assert "SOLVER.BASE_LR" not in suggest(100, 100, optimizer="AdamW")
