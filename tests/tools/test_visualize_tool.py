"""tools/visualize.py on each engine: what it draws and that boxes lie in the right place in each view.

What Detectron2's `Visualizer` draws: tests/d2/test_d2_inference.py.
"""

import cv2
import numpy as np
import pytest
import torch

from sed.cli import engines, visualize
from sed.core.structures import Images, Targets
from sed.evaluation.pictures import draw_found, draw_truth, draw_view
from sed.evaluation.visualize import PALETTE

CONFIG = "configs/quickstart.yaml"


def pixel(picture, x, y):
    return tuple(int(v) for v in picture[y, x])


@pytest.fixture
def record(tmp_path):
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((40, 60, 3), np.uint8))
    box = {"bbox": [10, 20, 30, 15], "bbox_mode": 1, "category_id": 1, "iscrowd": 0}
    crowd = {"bbox": [2, 2, 5, 5], "bbox_mode": 1, "category_id": 0, "iscrowd": 1}
    record = {"file_name": str(tmp_path / "x.png"), "image_id": 7, "height": 40, "width": 60}
    return record | {"annotations": [box, crowd]}


def test_truth_lies_where_it_is_annotated(record):
    picture = draw_truth(record, ["a", "b"])
    assert picture.shape == (40, 60, 3)
    assert pixel(picture, 40, 30) == PALETTE[1]  # the right side: x = 10 + 30
    assert pixel(picture, 25, 35) == PALETTE[1]  # the lower one: y = 20 + 15
    assert pixel(picture, 25, 30) == (0, 0, 0)
    assert pixel(picture, 4, 7) == (0, 0, 0)  # the crowd
    enlarged = draw_truth(record, ["a", "b"], min_side=100)
    assert enlarged.shape == (80, 120, 3)
    assert pixel(enlarged, 80, 60) == PALETTE[1]


def test_detections_of_this_image_above_the_threshold_are_drawn(record):
    rows = [
        {"image_id": 7, "category": 0, "bbox": [5, 5, 10, 30], "score": 0.9},
        {"image_id": 7, "category": 0, "bbox": [30, 5, 20, 30], "score": 0.4},
        {"image_id": 8, "category": 0, "bbox": [30, 5, 25, 30], "score": 0.9},
    ]
    picture = draw_found(record, rows, ["a", "b"], 0.5)
    assert pixel(picture, 15, 30) == PALETTE[0]
    assert pixel(picture, 50, 30) == (0, 0, 0)
    assert pixel(picture, 55, 30) == (0, 0, 0)


def test_a_small_view_is_seen_small():
    images = Images(torch.full((1, 3, 32, 32), 90.0), ((20, 30),))
    targets = Targets(torch.tensor([[4.0, 5.0, 24.0, 15.0]]), torch.tensor([2]))
    picture = draw_view(images, 0, targets, ["a", "b", "c"], frame=(40, 60))
    assert picture.shape == (40, 60, 3)
    assert pixel(picture, 24, 12) == PALETTE[2]
    assert pixel(picture, 27, 18) == (90, 90, 90)
    assert pixel(picture, 32, 18) == (225, 225, 225)


def test_all_views_share_one_geometry(opts, monkeypatch):
    seen = []

    def note(images, i, targets, classes, min_side, frame=None, paint=None):
        height, width = images.sizes[i]
        seen.append((images.tensor[i, :, :height, :width].float(), targets))
        return np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr(visualize, "draw_view", note)
    driver = engines.pick(CONFIG, opts)
    cfg = driver.load_config(CONFIG, [*opts, "INPUT.MIN_SIZE_TRAIN", "(80, 120)", "INPUT.RANDOM_FLIP", "horizontal"])
    rows = list(visualize.views(driver, cfg, 5))
    assert [len(row) for row in rows] == [3] * 5
    assert "small view, 1 / 2" in rows[0][2][1]
    for (weak, a), (strong, b), (small, c) in zip(seen[::3], seen[1::3], seen[2::3], strict=True):
        assert torch.equal(a.boxes, b.boxes)
        assert weak.shape == strong.shape
        assert not torch.equal(weak, strong)
        assert torch.allclose(c.boxes, a.boxes / 2)
        half = weak[:, : weak.shape[1] // 2 * 2, : weak.shape[2] // 2 * 2]
        want = half.unfold(1, 2, 2).unfold(2, 2, 2).mean((3, 4))
        assert torch.allclose(small[:, : want.shape[1], : want.shape[2]], want, atol=1e-3)


def test_truth_and_views_are_written(tmp_path, opts):
    for mode, kinds in (("ground_truth", ["truth"]), ("views", ["weak_view", "strong_view", "small_view"])):
        folder = tmp_path / mode
        words = ["--config-file", CONFIG, "--mode", mode, "--count", "3", "--output", str(folder)]
        visualize.main([*words, *opts])
        names = {path.name for path in folder.iterdir()}
        assert names == {f"000{i}_{kind}.png" for i in range(3) for kind in kinds} | {"contact_sheet.png"}
        sheet = cv2.imread(str(folder / "contact_sheet.png"))
        assert sheet.std() > 10


def test_predictions_are_drawn_beside_the_truth(tmp_path, opts, weights):
    words = ["--config-file", CONFIG, "--mode", "predictions", "--weights", weights, "--score-threshold", "0"]
    visualize.main([*words, "--count", "2", "--output", str(tmp_path), *opts])
    assert {path.name for path in tmp_path.iterdir()} == {
        *("0000_truth.png", "0000_prediction.png", "0001_truth.png", "0001_prediction.png", "contact_sheet.png")
    }


@pytest.mark.parametrize(("mode", "pictures"), [("ground_truth", 2), ("views", 6), ("predictions", 4)])
def test_the_engine_draws(mode, pictures, tmp_path, opts, weights, monkeypatch):
    """All pictures come from the driver's painter: on Detectron2, its `Visualizer`."""
    drawn = []

    def paint(image, corners, categories, scores, classes):
        assert len(corners) == len(categories)
        assert classes == ("0", "1", "2", "3", "4")
        drawn.append(len(scores))
        return image

    monkeypatch.setattr(engines.pick(CONFIG, opts), "painter", lambda dataset: paint)
    words = ["--config-file", CONFIG, "--mode", mode, "--weights", weights, "--score-threshold", "0", "--count", "2"]
    visualize.main([*words, "--output", str(tmp_path), *opts])
    assert len(drawn) == pictures
    assert sum(drawn) == (10 if mode == "predictions" else 0)  # five detections an image


def test_bad_input_is_one_clear_line(tmp_path, opts):
    words = ["--config-file", CONFIG, "--output", str(tmp_path), "--mode"]
    with pytest.raises(SystemExit, match=r"holds no model_best\.pth"):
        visualize.main([*words, "predictions", *opts, "OUTPUT_DIR", str(tmp_path)])
    with pytest.raises(SystemExit, match="at least 1"):
        visualize.main([*words, "views", "--count", "0"])
    with pytest.raises(SystemExit, match=r"nearest known one is SEMI\.FOLD"):
        visualize.main([*words, "views", *opts, "SEMI.FOLDD", "1"])
