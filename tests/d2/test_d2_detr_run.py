"""ScaleConsistentDETR in Detectron2's trainer: a run and what it leaves, resume, evaluation, tools, two processes."""

import json
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)")

import cv2
import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.utils import comm
from transformers import AutoModelForObjectDetection

from sed.cli import predict, visualize
from sed.config import ConfigError
from sed.d2 import SemiSupervisedTrainer
from sed.d2.run import evaluate_only, train
from sed.engine.solver import build_optimizer
from sed.runtime.launch import launch
from tests.reference.detectron2_run import make_trainer, tiny_config
from tests.reference.detr import write_config
from tests.reference.training import same

NAMES = ["detr", "rt_detr"]  # a softmax and a sigmoid head
TERMS = {f"{term}/query_{part}" for term in ("sup", "scale", "distill") for part in ("cls", "box")}


@pytest.fixture(scope="module", params=NAMES)
def run(request, squares, tmp_path_factory):
    """A whole run: its overrides, its results, its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    keys = {
        "MODEL__META_ARCHITECTURE": "ScaleConsistentDETR",
        "MODEL__DETR__CONFIG": write_config(folder, request.param),
        "MODEL__DETR__NUM_CLASSES": 2,
        "SOLVER__CHECKPOINT_PERIOD": 2,
    }
    results = train(tiny_config(squares, folder / "run", **keys))
    return keys, results, folder / "run"


def load(path):
    return torch.load(path, weights_only=True)


def found_in(folder):
    """What COCOEvaluator was given, image by image."""
    return json.loads((folder / "inference" / "coco_instances_results.json").read_text())


# ------------------------------------------------------------------------------------------ a run
def test_what_a_run_leaves(run):
    _, results, folder = run
    names = {path.name for path in folder.iterdir()}
    assert {"model_best.pth", "model_final.pth", "model_final", "predictions.png", "split.json", "log.txt"} <= names
    assert "detectron2.yaml" not in names  # Detectron2 alone has no such detector
    assert set(results) == {"student", "teacher"}
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert TERMS | {"teacher_positives"} <= set(next(row for row in rows if "total_loss" in row))


def test_the_exported_folder_is_the_teacher_for_transformers(run):
    _, _, folder = run
    model = AutoModelForObjectDetection.from_pretrained(folder / "model_final")
    assert model.config.id2label == {0: "red", 1: "blue"}
    final = load(folder / "model_final.pth")["model"]
    assert same(dict(model.state_dict()), final) is None
    full = load(folder / "checkpoint_0000006.pth")["model"]
    assert same({name: full[f"method.teacher.module.model.{name}"] for name in final}, final) is None
    assert any(not torch.equal(full[f"method.student.model.{name}"], value) for name, value in final.items())


def test_it_evaluates_as_the_last_evaluation_said(run, squares):
    """`--eval-only` on model_final.pth, on the folder of transformers, on the last checkpoint."""
    keys, results, folder = run
    wanted = found_in(folder / "teacher")
    assert len(wanted) > 8
    assert wanted != found_in(folder / "student")
    for weights in (folder / "model_final.pth", folder / "model_final", "", "coco"):  # both names: the run's own
        again = evaluate_only(tiny_config(squares, folder, **{**keys, "MODEL__WEIGHTS": weights}))
        assert found_in(folder) == wanted, weights
        assert same(dict(again["bbox"]), dict(results["teacher"]["bbox"])) is None
    evaluate_only(tiny_config(squares, folder, **keys), which="student")
    assert found_in(folder) == found_in(folder / "student")


@pytest.mark.parametrize("at", [2, 4], ids=["in burn-in", "after it"])
def test_resume_is_exact(run, squares, tmp_path, at):
    """Dropout, denoising queries and batch norm included."""
    keys, _, folder = run
    name = f"checkpoint_{at:07d}.pth"
    (tmp_path / name).write_bytes((folder / name).read_bytes())
    torch.rand(17)
    np.random.rand(3)  # noqa: NPY002 (another state of the global generator)
    train(tiny_config(squares, tmp_path, **keys), resume=True)
    a, b = (load(path / "checkpoint_0000006.pth") for path in (folder, tmp_path))
    assert same(a["model"], b["model"]) is None
    assert same(a["trainer"]["_trainer"]["optimizer"]["state"], b["trainer"]["_trainer"]["optimizer"]["state"]) is None


def test_the_tools_know_it(run, squares, tmp_path):
    """predict.py and visualize.py with the run's own config; detections are those of Detectron2's evaluation."""
    _, _, folder = run
    config, weights = ["--config-file", str(folder / "config.yaml")], ["--weights", str(folder / "model_final.pth")]
    images = squares["DATASETS.TEST"].strip("[']").removesuffix(".json")  # a folder beside the json; 0.png has id 1
    words = [*config, *weights, "--input", images, "--output", str(tmp_path / "found.json"), "--score-threshold", "0"]
    predict.main(words)
    rows = [row for row in json.loads((tmp_path / "found.json").read_text()) if min(row["bbox"][2:]) > 0]
    wanted = found_in(folder / "teacher")
    assert len(rows) == len(wanted) > 8
    for row, want in zip(rows, wanted, strict=True):
        assert row["file_name"] == f"{want['image_id'] - 1}.png"
        assert row["category_id"] == want["category_id"]
        assert row["score"] == pytest.approx(want["score"], rel=1e-4)
        assert row["bbox"] == pytest.approx(want["bbox"], abs=0.02)
    for mode in ("predictions", "views"):
        visualize.main([*config, *weights, "--mode", mode, "--count", "2", "--output", str(tmp_path / mode)])
        assert cv2.imread(str(tmp_path / mode / "contact_sheet.png")).any()


# ------------------------------------------------------------------------------------------ the optimizer
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
@pytest.mark.parametrize("name", NAMES)
def test_parameter_groups_are_those_of_the_native_engine(family, tmp_path, name, kind):
    rates = {"SOLVER__BACKBONE_MULTIPLIER": 0.1, "SOLVER__WEIGHT_DECAY": 0.2, "SOLVER__WEIGHT_DECAY_NORM": 0.3}
    keys = {**family(name), **rates, "SOLVER__OPTIMIZER": kind, "MODEL__BACKBONE__FREEZE_AT": 2}
    cfg = tiny_config({}, tmp_path, **keys)
    detector = build_model(cfg)
    values = {"lr": cfg.SOLVER.BASE_LR, "weight_decay": 0.2, "weight_decay_norm": 0.3, "backbone_multiplier": 0.1}
    values["momentum"] = cfg.SOLVER.MOMENTUM
    names = {id(parameter): name for name, parameter in detector.named_parameters()}

    def groups(optimizer):
        return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}

    ours = groups(SemiSupervisedTrainer.build_optimizer(cfg, detector))
    assert ours == groups(build_optimizer(detector, kind, **values))
    lr = cfg.SOLVER.BASE_LR
    assert set(ours.values()) >= {(lr, 0.2), (lr, 0.3), (lr * 0.1, 0.2)}
    assert set(ours) == {name for name, parameter in detector.named_parameters() if parameter.requires_grad}


def test_all_gradients_are_clipped_together(family, squares, tmp_path):
    """DETR's recipe: the norm of all, where some parameters have none."""
    clip = {"SOLVER__CLIP_GRADIENTS__ENABLED": True, "SOLVER__CLIP_GRADIENTS__CLIP_TYPE": "full_model"}
    keys = {**family("rt_detr"), **clip, "SOLVER__CLIP_GRADIENTS__CLIP_VALUE": 0.1, "SOLVER__MAX_ITER": 2}
    trainer = make_trainer(tiny_config(squares, tmp_path, **keys, SOLVER__STEPS="()", DATASETS__TEST="()"))
    optimizer, norms = trainer.optimizer, []

    def norm(*_):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(grads).item())

    optimizer.register_step_pre_hook(norm)  # after ours
    trainer.resume_or_load()
    trainer.train()
    assert norms == pytest.approx([0.1, 0.1], rel=1e-4)


def test_a_slower_backbone_needs_one(family, tmp_path):
    cfg = tiny_config({}, tmp_path, **family("detr"), SOLVER__BACKBONE_MULTIPLIER=0.1)
    head = build_model(cfg).model.bbox_predictor
    with pytest.raises(
        ConfigError, match=r"SOLVER\.BACKBONE_MULTIPLIER is 0\.1, but .* trains no module named backbone"
    ):
        SemiSupervisedTrainer.build_optimizer(cfg, head)


# ------------------------------------------------------------------------------------------ processes
def losses_of(output, data, keys):
    """Train six steps; every step's losses, averaged over the processes, the boxes of this one, and the weights."""
    more = {"SEMI__IMS_PER_BATCH_LABELED": 4, "SEMI__IMS_PER_BATCH_UNLABELED": 4, "SEMI__STRONG_LABELED": False}
    more |= {"SED__REWEIGHT__OVER_PROCESSES": True, "SOLVER__OPTIMIZER": "SGD", "SOLVER__BASE_LR": 0.01}
    trainer = make_trainer(tiny_config(data, output, **more, **keys, DATASETS__TEST="()"))
    trainer.resume_or_load()
    rows, boxes, forward = [], [], trainer.method.forward

    def record(labeled, unlabeled, step):
        losses = forward(labeled, unlabeled, step)
        assert len(labeled) == 4 // comm.get_world_size()
        boxes.append(sum(len(target.classes) for target in labeled.targets))
        rows.append({name: loss.item() for name, loss in losses.items()})
        return losses

    trainer.method.forward = record
    trainer.train()
    every = comm.all_gather(rows)
    means = [{name: float(np.mean([r[i][name] for r in every])) for name in rows[i]} for i in range(len(rows))]
    return {"means": means, "boxes": boxes, "state": trainer.method.state_dict()}


def two(output, members):
    """One of two processes: every member, one after the other."""
    torch.set_num_threads(1)
    for name, (data, keys) in members.items():
        torch.save(losses_of(f"{output}/{name}", data, keys), f"{output}/{name}{comm.get_rank()}.pth")


def half_without_boxes(squares, folder):
    """The same images, every second one without annotation."""
    source = Path(squares["DATASETS.TRAIN"].strip("[']"))
    content = json.loads(source.read_text())
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] % 2]
    (folder / "half.json").write_text(json.dumps(content))
    return {**squares, "DATASETS.TRAIN": f"['{folder / 'half.json'}']", "DATASETS.IMAGE_ROOT": source.with_suffix("")}


@pytest.mark.slow
def test_two_processes(family, squares, tmp_path):
    """DETR without dropout equals one process with the whole batch. RT-DETR has weights without gradient where a batch
    has no boxes, in one process or in both, and other denoising queries in each; the weights stay the same in both.
    """
    empty = {"DATALOADER__FILTER_EMPTY_ANNOTATIONS": False, "SEMI__LABELED_COUNT": 8}
    members = {
        "detr": (squares, family("detr", dropout=0.0)),
        "rt_detr": (half_without_boxes(squares, tmp_path), {**family("rt_detr"), **empty}),
    }
    launch(two, num_gpus=2, args=(str(tmp_path), members))
    one = losses_of(tmp_path / "one", *members["detr"])
    ranks = {name: [load(tmp_path / f"{name}{r}.pth") for r in (0, 1)] for name in members}
    assert set(one["means"][-1]) == TERMS
    for mine, theirs in zip(one["means"], ranks["detr"][0]["means"], strict=True):
        assert theirs == pytest.approx(mine, abs=1e-4, rel=1e-4)
    for name, value in one["state"].items():
        torch.testing.assert_close(ranks["detr"][0]["state"][name], value, atol=1e-4, rtol=1e-3)
    boxes = list(zip(*(rank["boxes"] for rank in ranks["rt_detr"]), strict=True))
    assert any(min(row) == 0 < max(row) for row in boxes)
    for first, second in ranks.values():
        running = {name for name in first["state"] if "running_" in name}  # each process's own
        for name, value in first["state"].items():
            assert name in running or torch.equal(second["state"][name], value), name
