"""Classes are matched by name, whatever the order or the ids of a json, wherever trained weights meet data."""

from __future__ import annotations

import json

import pytest
import torch
from fvcore.common.config import CfgNode

from sed.cli import evaluate_scales, predict
from sed.cli.engines import pick
from sed.data.coco import load_coco
from sed.data.errors import DataError
from sed.runtime.checkpoint_files import CheckpointError
from sed.studies.scale_evaluation import measure

CONFIG = "configs/quickstart.yaml"


def swap(digits, part, path):
    """A part of the digits with other ids, in the opposite order."""
    content = json.loads((digits / f"{part}.json").read_text())
    content["images"] = [{**i, "file_name": str(digits / part / i["file_name"])} for i in content["images"]]
    content["categories"] = [{**c, "id": 60 - c["id"]} for c in content["categories"]]
    content["annotations"] = [{**a, "category_id": 60 - a["category_id"]} for a in content["annotations"]]
    path.write_text(json.dumps(content))
    return str(path)


@pytest.fixture
def swapped(digits, tmp_path):
    return ["DATASETS.TEST", swap(digits, "tune", tmp_path / "swapped.json")]


@pytest.fixture
def named(engine, opts, digits, tmp_path):
    """Weights that know the classes of the digits."""
    driver = pick(CONFIG, opts)
    cfg: CfgNode = driver.load_config(CONFIG, opts)
    torch.manual_seed(0)
    path = tmp_path / "named.pth"
    names = load_coco(digits / "tune.json").classes
    if engine == "detectron2":
        from detectron2.modeling import build_model

        from sed.d2.checkpoint import export

        detector = build_model(cfg)
        detector.class_names = names
        export(detector, path, cfg)
    else:
        from sed.engine import build, checkpoint

        detector = build.build_student(cfg, "")
        detector.class_names = names
        checkpoint.save_atomic(checkpoint.plain_weights(detector), path)
    return str(path)


@pytest.fixture
def perfect(monkeypatch, digits):
    """Every detector finds all objects of the test set, by the numbers that the classes had in training."""
    data = load_coco(digits / "tune.json")
    rows = [
        {"image_id": r["image_id"], "category": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for r in data.records
        for a in r["annotations"]
    ]
    for module in ("sed.evaluation.coco", "sed.studies.scale_evaluation"):
        monkeypatch.setattr(f"{module}.detect_all", lambda detector, batches, device: [list(batches), rows][1])


def test_stock_frameworks_do_not_see_the_names(named, engine, opts):
    content = torch.load(named, weights_only=True)
    weights = content["model"] if engine == "detectron2" else content
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    detector = pick(CONFIG, opts).load_detector(pick(CONFIG, opts).load_config(CONFIG, opts), named)
    assert detector.class_names == ("0", "1", "2", "3", "4")


def test_evaluation(named, engine, opts, swapped, perfect, tmp_path):
    words = [*opts, *swapped, "MODEL.WEIGHTS", named, "OUTPUT_DIR", str(tmp_path / "run")]
    driver = pick(CONFIG, words)
    cfg = driver.load_config(CONFIG, words)
    if engine == "detectron2":  # its evaluators know classes by number: the catalog has the detector's order
        from detectron2.data import MetadataCatalog

        driver.evaluate_only(cfg)
        assert MetadataCatalog.get(swapped[1]).thing_classes == ["0", "1", "2", "3", "4"]
    else:
        assert driver.evaluate_only(cfg)["AP"] == pytest.approx(100)


def test_evaluation_of_scales(named, opts, swapped, perfect):
    words = [*opts, *swapped]
    driver = pick(CONFIG, words)
    cfg = driver.load_config(CONFIG, words)
    detector = evaluate_scales.load(driver, cfg, named, "teacher")
    sizes = evaluate_scales.read_sizes(["128"], (128, 128), False)
    (found,) = measure(driver, cfg, detector, sizes, False)["sizes"].values()
    assert found["AP"] == pytest.approx(100)


def test_predictions(named, opts, swapped, digits, tmp_path):
    """Names are the model's, ids those of the json; without one the names alone are known."""
    words = ["--config-file", CONFIG, "--weights", named, "--input", str(digits / "tune"), "--as-annotations"]
    for name, more in (("with", swapped), ("without", ["DATASETS.TEST", "()"])):
        predict.main([*words, "--score-threshold", "0", "--output", str(tmp_path / f"{name}.json"), *opts, *more])
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("with", "without")}
    assert {c["name"]: c["id"] for c in found["with"]["categories"]} == {str(i): 59 - i for i in range(5)}
    assert {c["name"]: c["id"] for c in found["without"]["categories"]} == {str(i): i + 1 for i in range(5)}
    by_name = []
    for content in found.values():
        names = {c["id"]: c["name"] for c in content["categories"]}
        by_name.append([(names[a["category_id"]], a["bbox"]) for a in content["annotations"]])
    assert by_name[0] == by_name[1]
    assert by_name[0]


def test_other_classes_are_one_error_with_both_lists(named, opts, swapped, digits, tmp_path):
    path = tmp_path / "swapped.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "cow"
    path.write_text(json.dumps(content))
    driver = pick(CONFIG, [*opts, *swapped])
    cfg = driver.load_config(CONFIG, [*opts, *swapped])
    detector = evaluate_scales.load(driver, cfg, named, "teacher")
    with pytest.raises(DataError, match=r"cow.*the detector has .*'0', '1', '2', '3', '4'"):
        measure(driver, cfg, detector, evaluate_scales.read_sizes(["128"], (128, 128), False), False)


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_classes(opts, digits, tmp_path):
    short = "SOLVER.MAX_ITER 2 SOLVER.STEPS () SEMI.BURN_IN 1 TEST.EVAL_PERIOD 0 SOLVER.CHECKPOINT_PERIOD 1".split()
    words = [*opts, *short, "DATASETS.TEST", "()", "OUTPUT_DIR", str(tmp_path / "run")]
    driver = pick(CONFIG, words)
    driver.train(driver.load_config(CONFIG, words))
    words += ["DATASETS.TRAIN", swap(digits, "train", tmp_path / "train.json")]
    words[words.index("SOLVER.MAX_ITER") + 1] = "3"
    with pytest.raises(CheckpointError, match=r"trained for the classes \['0', '1', .* the data here has \['4', '3'"):
        driver.train(driver.load_config(CONFIG, words), resume=True)
