"""tools/evaluate_scales.py on each engine: the same figures as the engine's own evaluation, of every size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sed.cli import engines, evaluate_scales
from sed.config import ConfigError
from sed.data.loaders import test_loader as batches_of
from sed.evaluation.coco import detect_all, score
from sed.evaluation.scales import ensemble
from sed.runtime.checkpoint_files import CheckpointError
from sed.studies.scale_evaluation import explained

CONFIG = "configs/quickstart.yaml"
ROOT = Path(__file__).resolve().parents[2]


def at(size, longest):
    return ("INPUT.MIN_SIZE_TEST", str(size), "INPUT.MAX_SIZE_TEST", str(longest))


@pytest.fixture
def find(opts):
    """Detections at (short side, longest side) by the engine's own parts, and the test set."""

    def call(file, size=(128, 128), more=()):
        driver, cfg, path = engines.pick_trained(CONFIG, [*opts, *more, *at(*size)], file)
        detector, test = driver.load_detector(cfg, path), driver.test_set(cfg)
        loader = batches_of(test.records, driver.test_mapper(cfg), 3, 0, multiple=detector.size_divisibility)
        return detect_all(detector, loader, "cpu"), test

    return call


@pytest.fixture
def own_truth(find, digits, tmp_path):
    """Overrides for a test set on which weights have an AP of 100 at 128 px: what they find is the truth."""

    def call(file):
        found, _ = find(file)
        content = json.loads((digits / "tune.json").read_text())
        ids = [category["id"] for category in content["categories"]]
        content["annotations"] = [
            {
                "id": i,
                "image_id": row["image_id"],
                "category_id": ids[row["category"]],
                "bbox": row["bbox"],
                "area": row["bbox"][2] * row["bbox"][3],
                "iscrowd": 0,
            }
            for i, row in enumerate(found, 1)
            if min(row["bbox"][2:]) > 2
        ]
        (tmp_path / "own.json").write_text(json.dumps(content))
        return ("DATASETS.TEST", str(tmp_path / "own.json"), "DATASETS.IMAGE_ROOT", str(digits / "tune"))

    return call


@pytest.fixture
def run(tmp_path, weights, opts):
    def call(*flags, file=weights, more=()):
        output = tmp_path / "out" / "found.json"
        words = ["--config-file", CONFIG, "--weights", file, *flags, "--output", str(output)]
        evaluate_scales.main([*words, *opts, *more])
        return json.loads(output.read_text())

    return call


def same(found, expected):
    assert set(found) - {"gain"} == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), name


def test_every_size_is_evaluated_at_that_size(run, find, own_truth, weights, capsys):
    own = own_truth(weights)
    found = run("--sizes", "128", "64", "128", more=own)
    assert list(found) == ["sizes", "seconds"]
    assert found["seconds"].keys() == found["sizes"].keys()
    assert min(found["seconds"].values()) > 0
    assert list(found["sizes"]) == ["128", "64"]
    assert found["sizes"]["128"]["AP"] > 99.9
    assert found["sizes"]["64"]["AP"] < 90
    same(found["sizes"]["64"], score(*find(weights, (64, 64), own)))
    table = capsys.readouterr().out.splitlines()
    assert [line[:7].strip() for line in table] == ["", "128 px", "64 px"]
    assert [line.split()[-1] for line in table[1:]] == [f"{found['seconds'][size]:.4f}" for size in ("128", "64")]


def test_all_is_the_ensemble_and_the_distance(run, find, own_truth, weights, capsys):
    own = own_truth(weights)
    found = run("--sizes", "64", "128", "--all", more=own)
    runs, tests = zip(*(find(weights, size, own) for size in ((64, 64), (128, 128))), strict=True)
    assert found["seconds"]["ensemble"] > found["seconds"]["64"] + found["seconds"]["128"]
    same(found["ensemble"], score(ensemble(runs, limit=5), tests[0]))  # TEST.DETECTIONS_PER_IMAGE is 5
    assert found["ensemble"]["gain"] == found["ensemble"]["AP"] - found["sizes"]["128"]["AP"] < 0
    distance = found["score_distance"]
    assert distance["images"] == 6  # digits' tune set
    assert 0 < distance["GT"] == distance["regions"]["mean"] < 1
    assert all(len(distance[kind]["histogram"]) == 10 for kind in ("foreground", "background", "regions"))
    # 128 px: P3, P4 and P5 have partners, with two anchors a cell in 16 x 16, 8 x 8 and 4 x 4 cells
    anchors = sum(distance[kind]["per_image"] for kind in ("foreground", "background"))
    assert 0.2 * 672 < anchors <= 672
    out = capsys.readouterr().out
    assert "gain of the ensemble" in out
    assert f"half size: {distance['GT']:.3f} (GT)" in out


def test_the_long_side_follows(run, find, own_truth, weights):
    own = own_truth(weights)
    found = run("--sizes", "96", more=(*own, *at(128, 100)))
    same(found["sizes"]["96"], score(*find(weights, (96, 96), own)))  # 75, but no less than the short side


def test_both_sides_can_be_given(run, find, own_truth, weights):
    """As SIT prints them; the digits are square, so that a long limit changes none of them."""
    own = own_truth(weights)
    found = run("--sizes", "64x80", "64", "128x128", "--all", more=own)
    assert list(found["sizes"]) == ["64x80", "64", "128x128"]
    assert found["sizes"]["64x80"] == found["sizes"]["64"]
    same(found["sizes"]["64x80"], score(*find(weights, (64, 80), own)))
    assert found["ensemble"]["gain"] == found["ensemble"]["AP"] - found["sizes"]["128x128"]["AP"]


def test_bad_input_is_one_clear_line(run, weights, tmp_path):
    with pytest.raises(SystemExit, match=r"error: --sizes 64: the ensemble is compared with INPUT\.MIN_SIZE_TEST, 128"):
        run("--sizes", "64", "--all")
    with pytest.raises(SystemExit, match="error: --sizes 64 0: 0: expected lengths in pixels"):
        run("--sizes", "64", "0")
    with pytest.raises(SystemExit, match=r"error: .*lost\.pth: (no such file|cannot be had)"):
        run("--sizes", "64", file=str(tmp_path / "lost.pth"))
    with pytest.raises(SystemExit, match=r"error: lost\.json: neither a file"):
        run("--sizes", "64", more=("DATASETS.TEST", "lost.json"))
    with pytest.raises(SystemExit, match=r"error: .*model_final\.pth: holds no student; name a full checkpoint"):
        run("--sizes", "64", "--which", "student", file=weights)
    assert not list((tmp_path / "out").glob("*"))  # nothing half-written


def test_a_size_that_a_detector_refuses_is_named():
    with pytest.raises(ConfigError, match="at 32 px: fewer places"), explained(32):
        raise ValueError("fewer places than queries")
    with pytest.raises(CheckpointError, match=r"^as it was$"), explained(32):
        raise CheckpointError("as it was")


@pytest.mark.slow
def test_both_models_of_a_run_as_a_script(run, own_truth, tmp_path, opts):
    """A run of two steps, one of them after burn-in, so that student and teacher differ."""

    def script(name, *flags):
        words = [sys.executable, f"tools/{name}.py", "--config-file", CONFIG, *flags, *opts, *few]
        subprocess.run(words, check=True, cwd=ROOT, capture_output=True)

    folder = tmp_path / "run"
    few = ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "SEMI.BURN_IN", "1", "TEST.EVAL_PERIOD", "0"]
    few += ["SEMI.IMS_PER_BATCH_LABELED", "2", "SEMI.IMS_PER_BATCH_UNLABELED", "2", "SOLVER.WARMUP_ITERS", "0"]
    few += ["OUTPUT_DIR", str(folder)]
    script("train_net")
    both = str(folder / "checkpoint_0000002.pth")
    few += own_truth(both)
    assert run("--sizes", "128", file=both, more=few)["sizes"]["128"]["AP"] > 99.9
    script("train_net", "--eval-only", "--eval-model", "student")
    expected = json.loads((folder / "evaluation_student.json").read_text())
    output = tmp_path / "student.json"
    script("evaluate_scales", "--which", "student", "--weights", both, "--sizes", "128", "--output", str(output))
    found = json.loads(output.read_text())["sizes"]["128"]
    assert 0 < found["AP"] < 90
    for name in ("AP", "AP50", "AP75", "APs", "APm"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3, nan_ok=True), name
