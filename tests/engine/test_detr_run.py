"""Two of the DETR family on the native engine: a run, resume, evaluation, the tools, and what transformers loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

from sed.config import ConfigError, load_config
from sed.core.structures import Images
from sed.engine import checkpoint
from sed.engine.build import build_student, build_test_set, trained_detector
from sed.engine.inference import load_detector
from sed.engine.run import evaluate_only, train
from sed.runtime.checkpoint_files import checkpoint_path
from tests.reference.detr import write_config
from tests.reference.squares import write_set
from tests.reference.training import same

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {"train": write_set(folder, "train", 10, 0), "test": write_set(folder, "test", 5, 1), "folder": folder}


def overrides(data, output, name, **more) -> list[str]:
    values = {
        "ENGINE": "torchvision",
        "OUTPUT_DIR": output,
        "MODEL.META_ARCHITECTURE": "ScaleConsistentDETR",
        "MODEL.DETR.CONFIG": write_config(data["folder"], name),
        "MODEL.DETR.NUM_CLASSES": 2,
        "MODEL.DEVICE": "cpu",
        "DATASETS.TRAIN": f"['{data['train']}']",
        "DATASETS.TEST": f"['{data['test']}']",
        "INPUT.MIN_SIZE_TRAIN": "(64, 64)",
        "INPUT.MIN_SIZE_TEST": 64,
        "SEMI.LABELED_COUNT": 4,
        "SEMI.IMS_PER_BATCH_LABELED": 2,
        "SEMI.IMS_PER_BATCH_UNLABELED": 2,
        "SEMI.BURN_IN": 2,
        "SOLVER.MAX_ITER": STEPS,
        "SOLVER.STEPS": "(4,)",
        "SOLVER.BACKBONE_MULTIPLIER": 0.1,
        "SOLVER.CHECKPOINT_PERIOD": 3,
        "SOLVER.CHECKPOINTS_KEPT": 5,
        "TEST.EVAL_PERIOD": 3,
        **more,
    }
    return [str(word) for pair in values.items() for word in pair]


def config(data, output, name, **more):
    return load_config(ROOT / "configs" / "digits.yaml", overrides(data, output, name, **more))


@pytest.fixture(scope="module", params=["detr", "rt_detr"])
def run(request, data, tmp_path_factory):
    """A finished run: (name, folder, counters)."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param) / "run"
    return request.param, folder, train(config(data, folder, request.param))


def test_what_a_run_leaves(run):
    _, folder, counters = run
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    parts = {f"{term}/query_{kind}" for term in ("sup", "scale", "distill") for kind in ("cls", "box")}
    assert parts <= {key for row in rows for key in row}
    assert [r["step"] for r in rows if "teacher/AP" in r] == [3, 6]
    assert set(counters.last) == {"student", "teacher"}
    assert sorted(p.name for p in (folder / "model_final").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert not list(folder.glob("*.new"))
    assert cv2.imread(str(folder / "predictions.png")) is not None


def test_resumed_in_the_middle_is_bit_for_bit_the_same(run, data, tmp_path):
    name, folder, counters = run
    again = tmp_path / "run"
    again.mkdir()
    middle = checkpoint_path(folder, 3)
    (again / middle.name).write_bytes(middle.read_bytes())
    resumed = train(config(data, again, name), resume=True)
    same(*(checkpoint.read_full(checkpoint_path(f, STEPS)) for f in (folder, again)))
    same(vars(counters), vars(resumed))


def test_eval_only_equals_the_last_evaluation(run, data):
    """From the last checkpoint, from model_final.pth and from the folder that transformers loads."""
    name, folder, counters = run
    for weights in ("", folder / "model_final.pth", folder / "model_final"):
        found = evaluate_only(config(data, folder, name, **{"MODEL.WEIGHTS": weights or "''"}))
        same(found, counters.last["teacher"])


def test_the_exported_teacher_loads_with_from_pretrained(run, data):
    """Stock transformers, model and image processor, finds what our teacher finds."""
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    name, folder, _ = run
    model = AutoModelForObjectDetection.from_pretrained(folder / "model_final").eval()
    assert model.config.id2label == dict(enumerate(build_test_set(config(data, folder, name)).classes))
    detector = load_detector(config(data, folder, name), str(folder / "model_final.pth"))
    same(dict(model.state_dict()), dict(detector.plain_state_dict()))
    picture = cv2.imread(str(next(data["folder"].rglob("*.png"))))[..., ::-1].copy()
    processor = AutoImageProcessor.from_pretrained(folder / "model_final")
    height, width = picture.shape[:2]
    assert (height, width) == (64, 64)  # no resizing, whose filters differ
    with torch.no_grad():
        output = model(**processor(picture, return_tensors="pt"))
    (theirs,) = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(height, width)])
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None]
    (ours,) = detector.detect(Images(tensor, ((height, width),)))
    count = len(theirs["scores"])  # RT-DETR's processor keeps as many as there are queries
    assert 8 == count <= len(ours.scores)
    torch.testing.assert_close(ours.scores[:count], theirs["scores"].sort(descending=True).values, atol=1e-5, rtol=1e-5)
    # pairwise, so that two scores that agree in five digits may change places, or be the last that is kept
    same_box = (theirs["boxes"].clamp(0, 64)[:, None] - ours.boxes).abs().amax(-1) < 0.01  # [count, D], pixels
    same_box &= (theirs["scores"][:, None] - ours.scores).abs() < 1e-5
    same_box &= theirs["labels"][:, None] == ours.classes
    assert same_box.any(1).all()


@pytest.mark.slow
def test_the_tools_work(run, data, tmp_path):
    folder = run[1]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    common = ["--config-file", str(folder / "config.yaml")]
    results = tmp_path / "found.json"
    for command in (
        [
            "tools/predict.py",
            *common,
            "--input",
            str(data["folder"]),
            "--output",
            str(results),
            "--score-threshold",
            "0",
        ],
        ["tools/visualize.py", *common, "--mode", "predictions"],
        ["tools/visualize.py", *common, "--mode", "views"],
        ["tools/train_net.py", *common, "--eval-only", "MODEL.WEIGHTS", str(folder / "model_final.pth")],
    ):
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert len(json.loads(results.read_text())) > 15


# ---------------------------------------------------------------------------------------------- what to start from
def test_training_starts_from_the_weights_of_a_folder(run, data, tmp_path):
    """MODEL.WEIGHTS coco: those that MODEL.DETR.CONFIG itself holds; with other classes the classifier starts fresh."""
    name, folder, _ = run
    source = {"MODEL.DETR.CONFIG": folder / "model_final"}
    theirs = trained_detector(config(data, tmp_path, name), str(folder / "model_final.pth")).plain_state_dict()
    ours = build_student(config(data, tmp_path, name, **source), "coco").plain_state_dict()
    same(dict(ours), dict(theirs))
    for weights in ("coco", str(folder / "model_final.pth")):
        cfg = config(data, tmp_path, name, **source, **{"MODEL.DETR.NUM_CLASSES": 5})
        other = build_student(cfg, weights)
        assert other.num_classes == 5
        state = other.plain_state_dict()
        changed = [key for key in state if state[key].shape != theirs[key].shape]
        assert changed
        assert all(torch.equal(state[key], theirs[key]) for key in state if key not in changed)


def test_what_cannot_be_built_is_one_config_error(data, tmp_path):
    for source, words in (
        ("''", "MODEL.DETR.CONFIG is empty"),
        ("absent.json", "no such file"),
        ("someone/no-such-model", "cannot be read"),
    ):
        cfg = config(data, tmp_path, "detr", **{"MODEL.DETR.CONFIG": source})
        with pytest.raises(ConfigError, match=words):
            build_student(cfg, "")
    (tmp_path / "bert.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match=r"bert.json"):
        build_student(config(data, tmp_path, "detr", **{"MODEL.DETR.CONFIG": tmp_path / "bert.json"}), "")
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(ConfigError, match="not a config of transformers"):
        build_student(config(data, tmp_path, "detr", **{"MODEL.DETR.CONFIG": tmp_path / "text.json"}), "")
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(ConfigError, match="has no model_type"):
        build_student(config(data, tmp_path, "detr", **{"MODEL.DETR.CONFIG": tmp_path / "none.json"}), "")


@pytest.mark.slow
def test_two_processes_train_where_a_batch_leaves_weights_out(data, tmp_path):
    """Without boxes RT-DETR makes no denoising queries, and their embedding gets no gradient: DDP must not wait."""
    few = Path(write_set(tmp_path, "few", 8, 7))
    source = json.loads(few.read_text())
    few.write_text(json.dumps(source | {"annotations": source["annotations"][:2]}))
    more = {"DATASETS.TRAIN": f"['{few}']", "SEMI.LABELED_COUNT": 6, "SEMI.IMS_PER_BATCH_UNLABELED": 4}
    more |= {"DATALOADER.FILTER_EMPTY_ANNOTATIONS": False, "SOLVER.MAX_ITER": 4, "SOLVER.STEPS": "(3,)"}
    words = ["--config-file", str(ROOT / "configs" / "digits.yaml"), "--num-gpus", "2"]
    command = [sys.executable, "tools/train_net.py", *words, *overrides(data, tmp_path / "run", "rt_detr", **more)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "model_final" / "model.safetensors").exists()
