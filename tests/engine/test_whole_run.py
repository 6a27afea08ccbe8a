"""`tools/train_net.py` and `sed.engine.run` on images: resume after SIGKILL, what a run leaves, its errors."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
import torch

from sed.config import ConfigError, load_config
from sed.data.errors import DataError
from sed.engine import checkpoint
from sed.engine.build import build_student
from sed.engine.run import evaluate_only, train
from sed.runtime.checkpoint_files import checkpoint_path, checkpoints
from sed.runtime.output import OutputError
from tests.reference.squares import write_set
from tests.reference.training import same

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
KILLS = int(os.environ.get("SED_KILLS", "1"))  # at so many random moments


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {"train": write_set(folder, "train", 10, 0), "test": write_set(folder, "test", 5, 1), "folder": folder}


def overrides(data, output, **more) -> list[str]:
    values = {
        "ENGINE": "torchvision",
        "OUTPUT_DIR": output,
        "DATASETS.TRAIN": f"['{data['train']}']",
        "DATASETS.TEST": f"['{data['test']}']",
        "INPUT.MIN_SIZE_TRAIN": "(64, 64)",
        "INPUT.MIN_SIZE_TEST": 64,
        "MODEL.DEVICE": "cpu",
        "MODEL.FPN.OUT_CHANNELS": 16,
        "MODEL.ROI_HEADS.NUM_CLASSES": 2,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
        "SEMI.LABELED_COUNT": 4,
        "SEMI.IMS_PER_BATCH_LABELED": 2,
        "SEMI.IMS_PER_BATCH_UNLABELED": 2,
        "SEMI.BURN_IN": 3,
        "SED.REGIONS_PER_VIEW": 8,
        "SOLVER.MAX_ITER": STEPS,
        "SOLVER.STEPS": "(8,)",
        "SOLVER.CHECKPOINT_PERIOD": 1,
        "SOLVER.CHECKPOINTS_KEPT": 3,
        "SOLVER.WARMUP_ITERS": 2,
        "TEST.EVAL_PERIOD": 5,
        **more,
    }
    return [str(word) for pair in values.items() for word in pair]


def config(data, output, **more):
    return load_config(ROOT / "configs" / "digits.yaml", overrides(data, output, **more))


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """An uninterrupted run; (folder, counters)."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("straight") / "run"
    return folder, train(config(data, folder))


def metrics(folder):
    """All rows but for the time that they took."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["seconds_per_step"] > 0 for row in rows if "loss" in row)
    return [{key: value for key, value in row.items() if key != "seconds_per_step"} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_a_random_step_and_resumed_is_bit_for_bit_the_same(data, straight, tmp_path, number):
    folder = tmp_path / "run"
    words = ["--config-file", str(ROOT / "configs" / "digits.yaml")]
    extra = {"DATALOADER.NUM_WORKERS": 1}  # the straight run has none: workers must not matter either
    command = [sys.executable, str(ROOT / "tools" / "train_net.py"), *words, *overrides(data, folder, **extra)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    chosen = random.SystemRandom().randrange(1, STEPS - 3)
    deadline = time.monotonic() + 120
    while not any(int(p.stem[-7:]) >= chosen for p in checkpoints(folder)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(random.SystemRandom().uniform(0, 0.1))  # anywhere within a step
    process.send_signal(signal.SIGKILL)
    process.communicate()
    reached = int(checkpoints(folder)[-1].stem[-7:])
    assert chosen <= reached < STEPS, f"killed too late: {reached}"

    counters = train(config(data, folder, **extra), resume=True)
    expected, found = (checkpoint.read_full(checkpoint_path(f, STEPS)) for f in (straight[0], folder))
    same(expected, found)
    same(vars(straight[1]), vars(counters))
    for name in ("model_final.pth", "model_best.pth"):
        same(*(checkpoint.read(f / name) for f in (straight[0], folder)))
    same(metrics(straight[0]), metrics(folder))


def test_what_a_run_leaves(straight, data):
    folder, counters = straight
    for name in ("config.yaml", "versions.json", "split.json", "log.txt", "metrics.jsonl", "predictions.png"):
        assert (folder / name).stat().st_size > 0, name
    assert list(folder.glob("events.out.tfevents.*"))
    assert len(checkpoints(folder)) == 3
    assert not list(folder.glob(".*"))  # no half-written file
    first = (folder / "log.txt").read_text().splitlines()[0]
    assert "engine: torchvision (" in first
    assert load_config(folder / "config.yaml").SOLVER.MAX_ITER == STEPS  # the written config is a config
    assert json.loads((folder / "versions.json").read_text())["packages"]["torch"] == torch.__version__.split("+")[0]
    split = json.loads((folder / "split.json").read_text())
    assert (split["labeled"], split["unlabeled"]) == (4, 6)
    assert cv2.imread(str(folder / "predictions.png")).shape[1] > 5 * 300
    rows = metrics(folder)
    assert [r["step"] for r in rows if "teacher/AP" in r] == [5, 10, 12]
    losses = next(r for r in rows if "loss" in r)
    assert {"sup/dense_cls", "sup/region_box", "scale/region_cls", "distill/dense_box", "lr", "grad_norm"} <= set(
        losses
    )
    assert set(counters.last) == {"student", "teacher"}


def test_model_final_is_the_teacher_for_stock_torchvision(straight, data):
    folder, _ = straight
    detector = build_student(config(data, folder), "")
    final = torch.load(folder / "model_final.pth", weights_only=True)
    detector.model.load_state_dict(final)  # the stock model, strictly
    teacher = build_student(config(data, folder), str(checkpoints(folder)[-1]))  # a full checkpoint's
    same(dict(detector.state_dict()), dict(teacher.state_dict()))


def test_a_checkpoint_begins_a_run_with_other_classes_as_model_final_does(straight, data):
    folder, _ = straight
    more = {"MODEL.ROI_HEADS.NUM_CLASSES": 7, "MODEL.RETINANET.NUM_CLASSES": 7}
    states = []
    for path in (folder / "model_final.pth", checkpoints(folder)[-1]):
        torch.manual_seed(0)
        states.append(dict(build_student(config(data, folder, **more), str(path)).state_dict()))
    same(*states)


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_eval_only_equals_the_last_evaluation(straight, data, tmp_path, which):
    folder, counters = straight
    results = evaluate_only(config(data, folder), which=which)
    same(results, counters.last[which])
    assert json.loads((folder / f"evaluation_{which}.json").read_text())["AP"] == results["AP"]
    if which == "teacher":  # the plain file says the same, from an empty folder
        plain = config(data, tmp_path / "elsewhere", **{"MODEL.WEIGHTS": folder / "model_final.pth"})
        same(evaluate_only(plain), results)


def test_eval_only_with_nothing_to_evaluate(data, tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match=r"holds no checkpoint; set MODEL\.WEIGHTS"):
        evaluate_only(config(data, tmp_path))


def test_a_folder_with_another_run_is_refused(straight, data, tmp_path):
    with pytest.raises(OutputError, match=r"holds another run .*--resume, or choose another OUTPUT_DIR"):
        train(config(data, straight[0]))
    (tmp_path / "config.yaml").write_text("SEED: 1\n")
    with pytest.raises(OutputError, match="holds another run"):
        train(config(data, tmp_path))


def test_resume_with_another_architecture_or_split_is_refused(straight, data):
    folder, _ = straight
    with pytest.raises(checkpoint.CheckpointError, match=r"checkpoint_0000012.pth: of another architecture.*there and"):
        train(config(data, folder, **{"MODEL.ROI_BOX_HEAD.FC_DIM": 24}), resume=True)
    with pytest.raises(DataError, match=r"split.json.*labeled images differ"):
        train(config(data, folder, **{"SEMI.FOLD": 1}), resume=True)


@pytest.mark.slow
def test_command_line_tells_errors_in_one_line(straight, data):
    command = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--config-file", str(ROOT / "configs/digits.yaml")]
    run = subprocess.run(
        [*command, *overrides(data, straight[0])], capture_output=True, text=True, cwd=ROOT, env=os.environ
    )
    assert run.returncode == 1
    assert "error: " in run.stderr
    assert "holds another run" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (
            {"MODEL.ROI_HEADS.NUM_CLASSES": 5},
            DataError,
            r"NUM_CLASSES is 5, but .*train.json has 2 categories .*set it to 2",
        ),
        ({"SEMI.LABELED_COUNT": 0}, DataError, "there is no unlabelled image: set DATASETS.UNLABELED"),
        ({"DATASETS.UNLABELED": "['somewhere']"}, DataError, "exclude each other"),
        ({"DATASETS.TRAIN": "[]"}, DataError, "DATASETS.TRAIN is empty"),
        ({"MODEL.ANCHOR_GENERATOR.SIZES": "[[8],[16]]"}, ConfigError, "2 lists; this backbone has"),
        ({"MODEL.BACKBONE.NAME": "vgg"}, ConfigError, "MODEL.BACKBONE.NAME is 'vgg'"),
        ({"SEMI.LABELED_COUNT": 11}, DataError, "expected 1 to 10"),
    ],
)
def test_configs_that_cannot_be(data, tmp_path, more, error, message):
    with pytest.raises(error, match=message):
        train(config(data, tmp_path / "run", **more))
    assert not (tmp_path / "run" / "config.yaml").exists()  # the folder stays free for the corrected run


def test_sets_must_not_overlap_and_must_agree(data, tmp_path):
    same_images = {"DATASETS.TEST": f"['{data['train']}']"}
    with pytest.raises(DataError, match=r"both in the (un)?labelled and in the validation set"):
        train(config(data, tmp_path / "a", **same_images))
    other = write_set(tmp_path, "other", 2, 5, classes=("red", "green"))
    with pytest.raises(DataError, match=r"has the categories .*they are matched by name"):
        train(config(data, tmp_path / "b", **{"DATASETS.TEST": f"['{other}']"}))
    folder = {"DATASETS.UNLABELED": f"['{data['folder'] / 'test'}']", "SEMI.LABELED_COUNT": 0}
    with pytest.raises(DataError, match="unlabelled"):
        train(config(data, tmp_path / "c", **folder))


@pytest.mark.parametrize("method", ["supervised", "pseudo_label"])
def test_the_other_methods_run(data, tmp_path, method):
    more = {"SEMI.METHOD": method, "SOLVER.MAX_ITER": 3, "SEMI.BURN_IN": 1, "TEST.EVAL_PERIOD": 0}
    counters = train(config(data, tmp_path / "run", **more))
    assert counters.last["teacher"]["AP"] >= 0
    assert (tmp_path / "run" / "model_final.pth").exists()


def test_a_run_without_test_set_leaves_the_teacher(data, tmp_path):
    more = {"DATASETS.TEST": "[]", "SOLVER.MAX_ITER": 2, "SEMI.BURN_IN": 1}
    counters = train(config(data, tmp_path / "run", **more))
    assert counters.last == {}
    assert (tmp_path / "run" / "model_final.pth").exists()
    assert not (tmp_path / "run" / "model_best.pth").exists()
    assert "nothing is evaluated" in (tmp_path / "run" / "log.txt").read_text()
