"""SemiSupervisedTrainer: a DefaultTrainer with a teacher; resume, precision, optimizers, evaluation, alarms."""

import json
import logging
import math

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)")

import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, hooks
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator

from sed.config import ConfigError
from sed.d2 import SemiSupervisedTrainer, add_sed_config
from sed.d2.run import evaluate_only, train
from sed.runtime.guards import TrainingError
from sed.runtime.output import OutputError
from sed.runtime.rng import rng_state
from tests.reference.detectron2_run import RETINANET, make_trainer, tiny_config
from tests.reference.training import same


@pytest.fixture(scope="module")
def straight(tmp_path_factory, squares):
    """A whole run."""
    folder = tmp_path_factory.mktemp("straight")
    return tiny_config(squares, folder / "run"), train(tiny_config(squares, folder / "run")), folder / "run"


def load(path):
    return torch.load(path, weights_only=True)


# ------------------------------------------------------------------------------------------ what a run is
def test_what_a_run_leaves(straight):
    _, results, folder = straight
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "versions.json", "split.json", "predictions.png"} <= names
    assert {
        "model_best.pth",
        "model_final.pth",
        "detectron2.yaml",
        "checkpoint_0000006.pth",
        "student",
        "teacher",
    } <= names
    assert any(name.startswith("events.out") for name in names)
    assert set(results) == {"student", "teacher"}
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert {"student/bbox/AP", "teacher/bbox/AP"} <= set(rows[-1])
    losses = next(row for row in rows if "total_loss" in row)
    assert {"sup/region_cls", "scale/dense_cls", "distill/region_box", "teacher_positives"} <= set(losses)
    assert (folder / "teacher" / "inference" / "coco_instances_results.json").is_file()


def test_model_final_is_the_teacher_alone(straight):
    _, _, folder = straight
    full, final = load(folder / "checkpoint_0000006.pth")["model"], load(folder / "model_final.pth")
    teacher = {n.removeprefix("method.teacher.module."): v for n, v in full.items() if "teacher.module." in n}
    assert final["model"].keys() == teacher.keys()
    assert all(torch.equal(v, teacher[n]) for n, v in final["model"].items())
    assert any(not torch.equal(v, full[f"method.student.{n}"]) for n, v in teacher.items())


def test_the_exported_teacher_evaluates_as_the_last_evaluation_said(straight, squares):
    """Acceptance 4: `--eval-only` on model_final.pth."""
    _, results, folder = straight
    for which, weights in (("teacher", folder / "model_final.pth"), ("student", "")):
        again = evaluate_only(tiny_config(squares, folder, MODEL__WEIGHTS=weights), which=which)
        assert same(dict(again["bbox"]), dict(results[which]["bbox"])) is None
        written = json.loads((folder / f"evaluation_{which}.json").read_text())
        assert written["AP50"] == results[which]["bbox"]["AP50"] or math.isnan(written["AP50"])


def test_a_second_run_does_not_write_over_the_first(straight, squares):
    cfg, _, folder = straight
    with pytest.raises(OutputError, match="--resume"):
        train(tiny_config(squares, folder))
    assert cfg.OUTPUT_DIR == str(folder)


def test_it_is_a_default_trainer_whose_parts_can_be_overridden(tmp_path, squares):
    seen = []

    class Mine(SemiSupervisedTrainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            class Count(DatasetEvaluator):
                def process(self, inputs, outputs):
                    seen.append(len(outputs[0]["instances"]))

                def evaluate(self):
                    return {"bbox": {"AP": 1.5}}

            return Count()

        def build_writers(self):
            return []

    class Hook(HookBase):
        def after_step(self):
            seen.append(f"step {self.trainer.iter}")

    trainer = make_trainer(tiny_config(squares, tmp_path), Mine)
    assert isinstance(trainer, DefaultTrainer)
    assert isinstance(trainer._trainer, SimpleTrainer)
    trainer.register_hooks([Hook()])
    trainer.resume_or_load()
    trainer.train()
    assert trainer._last_eval_results["teacher"] == {"bbox": {"AP": 1.5}}
    assert [s for s in seen if isinstance(s, str)] == [f"step {i}" for i in range(6)]
    kinds = [type(hook) for hook in trainer._hooks]
    for kind in (hooks.IterationTimer, hooks.LRScheduler, hooks.EvalHook, hooks.PeriodicWriter):
        assert kind in kinds


def test_a_plain_detectron2_config_trains_too(tmp_path, squares):
    """get_cfg, add_sed_config and Detectron2's own defaults: C4, BGR, its own solver."""
    tiny = tiny_config(squares, tmp_path)
    cfg = get_cfg()
    add_sed_config(cfg)
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "ScaleConsistentRCNN", "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", 2])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.RESNETS.NORM = 2, "BN"
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = (
        2,
        8,
        4,
    )
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tiny.DATASETS.TRAIN, ()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.DATALOADER.NUM_WORKERS, cfg.OUTPUT_DIR = (64,), 0, str(tmp_path)
    cfg.SEMI = tiny.SEMI
    cfg.SEMI.BURN_IN = 1
    trainer = make_trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert (tmp_path / "model_final.pth").is_file()


# ------------------------------------------------------------------------------------------ exact resume
@pytest.mark.parametrize("kind", [{}, RETINANET], ids=["rcnn", "retinanet"])
@pytest.mark.parametrize("at", [2, 4], ids=["in burn-in", "after it"])
def test_resume_is_exact(tmp_path, squares, kind, at):
    """Weights, optimizer, random numbers: bit for bit those of a run that was not interrupted."""
    more = {key.replace(".", "__"): value for key, value in kind.items()} | {"SOLVER__CHECKPOINT_PERIOD": 2}
    train(tiny_config(squares, tmp_path / "a", **more))
    (tmp_path / "b").mkdir()
    name = f"checkpoint_{at:07d}.pth"
    (tmp_path / "b" / name).write_bytes((tmp_path / "a" / name).read_bytes())
    torch.rand(17)
    np.random.rand(3)  # noqa: NPY002 (another state of the global generator)
    train(tiny_config(squares, tmp_path / "b", **more), resume=True)
    a, b = (load(tmp_path / run / "checkpoint_0000006.pth") for run in "ab")
    assert same(a["model"], b["model"]) is None
    assert same(a["trainer"]["_trainer"]["optimizer"]["state"], b["trainer"]["_trainer"]["optimizer"]["state"]) is None
    assert torch.equal(*(run["trainer"]["hooks"]["Checkpoints"]["processes"][0]["rng"]["torch"] for run in (a, b)))


def test_a_resumed_run_knows_the_best_teacher_so_far(tmp_path, squares, monkeypatch):
    results = iter([30.0, 10.0, 20.0])

    def test(cls, cfg, model, evaluators=None):
        ap = next(results)
        return {"student": {"bbox": {"AP": 0.0}}, "teacher": {"bbox": {"AP": ap}}}

    monkeypatch.setattr(SemiSupervisedTrainer, "test", classmethod(test))
    cfg = tiny_config(squares, tmp_path, TEST__EVAL_PERIOD=2, SOLVER__CHECKPOINT_PERIOD=2)
    trainer = make_trainer(cfg)
    stop = type("Stop", (HookBase,), {"after_step": lambda self: 1 / 0 if self.trainer.iter == 3 else None})
    trainer.register_hooks([stop()])
    trainer.resume_or_load()
    with pytest.raises(ZeroDivisionError):
        trainer.train()  # evaluated after 2 and 4 steps: 30 and 10
    assert load(tmp_path / "model_best.pth")["best"] == {"AP": 30.0, "step": 2}
    again = make_trainer(cfg)
    again.resume_or_load()
    assert again.start_iter == 4
    again.train()  # at the end: 20
    assert load(tmp_path / "model_best.pth")["best"] == {"AP": 30.0, "step": 2}


# ------------------------------------------------------------------------------------------ the step
def test_the_teacher_copies_in_burn_in_and_follows_slowly_after_it(tmp_path, squares):
    distances = []

    class Look(HookBase):
        def after_step(self):
            method = self.trainer.method
            pairs = zip(method.student.parameters(), method.teacher.module.parameters(), strict=True)
            distances.append(max((s - t).abs().max().item() for s, t in pairs))
            assert self.trainer._trainer.model.training
            assert not method.teacher.module.training

    trainer = make_trainer(tiny_config(squares, tmp_path, DATASETS__TEST="()"))
    trainer.register_hooks([Look()])
    trainer.resume_or_load()
    trainer.train()
    assert distances[:3] == [0, 0, 0]
    assert min(distances[3:]) > 0


@pytest.mark.parametrize("enabled", [False, True])
def test_mixed_precision_is_really_on(tmp_path, squares, enabled):
    trainer = make_trainer(
        tiny_config(squares, tmp_path, DATASETS__TEST="()", SOLVER__AMP__ENABLED=enabled, SOLVER__MAX_ITER=4)
    )
    method, seen = trainer.method, []
    for model in (method.student, method.teacher.module):
        model.backbone.register_forward_hook(lambda module, args, out: seen.append(out["p3"].dtype))
    before = [p.clone() for p in method.student.parameters()]
    trainer.resume_or_load()
    trainer.train()
    assert set(seen) == {torch.bfloat16 if enabled else torch.float32}
    assert len(seen) == 4 + 3  # one pass a view: labelled, and after burn-in student twice and teacher once
    moved = [not torch.equal(a, b) for a, b in zip(before, method.student.parameters(), strict=True)]
    assert all(moved)
    assert all(p.dtype == torch.float32 for p in method.parameters())


def test_a_loss_that_is_not_finite_ends_training_and_says_what_to_do(tmp_path, squares, monkeypatch):
    trainer = make_trainer(tiny_config(squares, tmp_path, DATASETS__TEST="()"))
    trainer.resume_or_load()
    forward = type(trainer.method).forward

    def poisoned(self, labeled, unlabeled, step):
        losses = forward(self, labeled, unlabeled, step)
        return {name: loss * (math.nan if step == 4 else 1) for name, loss in losses.items()}

    monkeypatch.setattr(type(trainer.method), "forward", poisoned)
    with pytest.raises(TrainingError, match=r"step 4.*checkpoint_0000004.pth.*SOLVER.BASE_LR"):
        trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.method.parameters())
    assert not (tmp_path / "model_final.pth").exists()


def test_a_silent_teacher_is_warned_of_once(tmp_path, squares, monkeypatch):
    told = []
    monkeypatch.setattr(
        logging.getLogger("sed.runtime.guards"), "warning", lambda text, *args: told.append(text % args)
    )
    monkeypatch.setattr("sed.d2.hooks.METRIC_PERIOD", 1)
    cfg = tiny_config(squares, tmp_path, DATASETS__TEST="()", SEMI__COLLAPSE_STEPS=2, SOLVER__BASE_LR=0.0)
    trainer = make_trainer(cfg)
    trainer.resume_or_load()
    with torch.no_grad():
        trainer.method.student.roi_heads.box_predictor.cls_score.bias[-1] = 50.0  # all is background
    trainer.method.teacher.update(trainer.method.student, 0.0)
    trainer.train()
    assert len(told) == 1
    assert "step 5: the teacher has found next to nothing on the unlabelled images for 2 steps" in told[0]


# ------------------------------------------------------------------------------------------ evaluation
def test_evaluation_leaves_the_training_untouched_and_spares_the_copy(tmp_path, squares):
    cfg = tiny_config(squares, tmp_path)
    trainer = make_trainer(cfg)
    before = rng_state()
    results = trainer.test(cfg, trainer.model)
    assert same(before["torch"], rng_state()["torch"]) is None
    assert results["teacher"] is results["student"]  # still a copy: evaluated once
    assert not (tmp_path / "teacher").exists()
    with torch.no_grad():
        trainer.method.student.roi_heads.box_predictor.cls_score.weight.add_(1.0)
    results = trainer.test(cfg, trainer.model)
    assert results["teacher"] is not results["student"]
    assert (tmp_path / "teacher").exists()
    assert trainer.method.student.training


def test_the_evaluator_follows_the_data_set(tmp_path, squares):
    from detectron2.data import MetadataCatalog

    from sed.d2.data import build_test_sets

    cfg = tiny_config(squares, tmp_path)
    build_test_sets(cfg)
    evaluator = SemiSupervisedTrainer.build_evaluator(cfg, cfg.DATASETS.TEST[0])
    assert isinstance(evaluator, COCOEvaluator)
    assert evaluator._max_dets_per_image == [1, 10, 100]
    cfg.TEST.DETECTIONS_PER_IMAGE = 1500
    evaluator = SemiSupervisedTrainer.build_evaluator(cfg, cfg.DATASETS.TEST[0])
    assert evaluator._max_dets_per_image == [1, 10, 1500]
    MetadataCatalog.get("voc_for_the_evaluator").set(
        evaluator_type="pascal_voc", dirname=str(tmp_path), split="test", year=2007
    )
    MetadataCatalog.get("voc_for_the_evaluator").set(thing_classes=["a"])
    assert isinstance(SemiSupervisedTrainer.build_evaluator(cfg, "voc_for_the_evaluator"), PascalVOCDetectionEvaluator)


# ------------------------------------------------------------------------------------------ errors
def test_what_cannot_be_trained_is_said(tmp_path, squares):
    with pytest.raises(ConfigError, match="float16 needs a GPU"):
        SemiSupervisedTrainer(tiny_config(squares, tmp_path, SOLVER__AMP__ENABLED=True, SOLVER__AMP__DTYPE="float16"))
    cfg = tiny_config(squares, tmp_path)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    with pytest.raises(ConfigError, match=r"MODEL.META_ARCHITECTURE GeneralizedRCNN: set it to ScaleConsistentRCNN"):
        SemiSupervisedTrainer(cfg)
