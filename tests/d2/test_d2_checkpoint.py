"""Weights of every kind that is promised, into student and teacher; never silently ignored, never run as code."""

import pickle
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)")

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from sed.d2.checkpoint import export, load_weights
from sed.d2.config import load_config, stock_config
from sed.detectors.weights import WeightsError
from sed.runtime.checkpoint_files import CheckpointError, save_atomic
from tests.reference.detectron2_run import make_trainer, stock_weights, tiny_config


def start(cfg):
    """Student's and teacher's weights at the start of a run."""
    trainer = make_trainer(cfg)
    trainer.resume_or_load(resume=False)
    return trainer.method.student.state_dict(), trainer.method.teacher.module.state_dict()


def test_a_plain_checkpoint_starts_both(tmp_path, squares):
    cfg = tiny_config(squares, tmp_path, MODEL__WEIGHTS=tmp_path / "plain.pth")
    state = stock_weights(cfg, tmp_path / "plain.pth")
    for own in start(cfg):
        assert all(torch.equal(own[name], value) for name, value in state.items())


def test_a_bare_state_dict_is_one_too(tmp_path, squares):
    cfg = tiny_config(squares, tmp_path, MODEL__WEIGHTS=tmp_path / "bare.pth")
    state = stock_weights(cfg, tmp_path / "plain.pth")
    torch.save(state, tmp_path / "bare.pth")
    assert all(torch.equal(start(cfg)[1][name], value) for name, value in state.items())


@pytest.mark.parametrize("key", ["state_dict", "model", ""])
def test_forms_of_other_tools_load_as_on_the_native_engine(tmp_path, squares, key):
    cfg = tiny_config(squares, tmp_path, MODEL__WEIGHTS=tmp_path / "w.pth")
    state = stock_weights(cfg, tmp_path / "plain.pth")
    named = {f"module.{name}": value for name, value in state.items()}
    torch.save({key: named, "epoch": 3} if key else named, tmp_path / "w.pth")
    assert all(torch.equal(start(cfg)[0][name], value) for name, value in state.items())
    first = next(name for name, value in state.items() if value.is_floating_point())
    for odd, message in ((state[first].long(), "is torch.int64"), (state[first].to_sparse(), "is sparse, quantised")):
        torch.save({"model": {**state, first: odd}}, tmp_path / "w.pth")
        with pytest.raises((WeightsError, CheckpointError), match=rf"w\.pth: {first} {message}"):
            start(cfg)


def test_folders_and_cut_pickles_are_told(tmp_path, squares):
    cfg = tiny_config(squares, tmp_path)
    with pytest.raises(CheckpointError, match="a folder; expected a file of weights"):
        load_weights(build_model(cfg), str(tmp_path), cfg)
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps({"model": {"a": np.ones(50)}})[:80])
    with pytest.raises(CheckpointError, match=r"cut\.pkl: cannot be read; it seems to be a pickle"):
        load_weights(build_model(cfg), str(tmp_path / "cut.pkl"), cfg)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_model_zoo_pickle_starts_both(tmp_path, squares, protocol):
    """Arrays by name, with Detectron2's author key; ImageNet files hold the backbone alone, in their own names."""
    cfg = tiny_config(squares, tmp_path, MODEL__WEIGHTS=tmp_path / "zoo.pkl")
    state = {n: v.numpy() for n, v in stock_weights(cfg, tmp_path / "plain.pth").items()}
    content = {"model": state, "__author__": "someone", "matching_heuristics": True}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    for own in start(cfg):
        assert all(np.array_equal(own[name].numpy(), value) for name, value in state.items())


def test_other_classes_start_fresh_and_the_rest_is_taken(tmp_path, squares):
    cfg = tiny_config(squares, tmp_path, MODEL__WEIGHTS=tmp_path / "plain.pth")
    other = tiny_config(squares, tmp_path, MODEL__ROI_HEADS__NUM_CLASSES=7)
    state = stock_weights(other, tmp_path / "plain.pth")
    student, teacher = start(cfg)
    fresh = {n for n in state if not (state[n].shape == student[n].shape and torch.equal(state[n], student[n]))}
    assert fresh == {
        f"roi_heads.box_predictor.{n}"
        for n in ("cls_score.weight", "cls_score.bias", "bbox_pred.weight", "bbox_pred.bias")
    }
    assert all(torch.equal(student[n], teacher[n]) for n in student)
    with pytest.raises(WeightsError, match=r"4 of \d+ tensors are missing or of another shape"):  # not to evaluate
        load_weights(build_model(cfg), str(tmp_path / "plain.pth"), cfg)


def test_the_teacher_of_a_full_checkpoint_starts_both(tmp_path, squares):
    trainer = make_trainer(tiny_config(squares, tmp_path, DATASETS__TEST="()"))
    trainer.resume_or_load()
    trainer.train()
    cfg = tiny_config(squares, tmp_path / "new", MODEL__WEIGHTS=tmp_path / "checkpoint_0000006.pth", SEED=5)
    wanted = trainer.method.teacher.module.state_dict()
    for own in start(cfg):
        assert all(torch.equal(own[name], value) for name, value in wanted.items())
    detector = build_model(cfg)
    load_weights(detector, str(tmp_path / "checkpoint_0000006.pth"), cfg, "student")
    wanted = trainer.method.student.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in detector.state_dict().items())


def test_weights_that_fit_nothing_are_an_error(tmp_path, squares):
    torch.save({"model": {"encoder.weight": torch.zeros(3)}}, tmp_path / "vit.pth")
    with pytest.raises(WeightsError, match=r"vit.pth: does not fit this ScaleConsistentRCNN.*holds encoder.weight"):
        start(tiny_config(squares, tmp_path, MODEL__WEIGHTS=tmp_path / "vit.pth"))


def test_weights_that_cannot_be_had_say_what_to_do(tmp_path, squares):
    with pytest.raises(WeightsError, match=r"absent.pth: cannot be had .* set MODEL.WEIGHTS to the file"):
        start(tiny_config(squares, tmp_path, MODEL__WEIGHTS=tmp_path / "absent.pth"))
    with pytest.raises(WeightsError, match=r"detectron2://nothing/of/the/kind.pkl: cannot be had"):
        start(tiny_config(squares, tmp_path, MODEL__WEIGHTS="detectron2://nothing/of/the/kind.pkl"))


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (self.marker, "w"))


@pytest.mark.parametrize("name", ["evil.pkl", "evil.pth"])
def test_a_file_that_would_run_code_is_refused(tmp_path, squares, name):
    content = {"model": {"a": Evil(str(tmp_path / "marker"))}, "__author__": "x"}
    if name.endswith("pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(CheckpointError, match=name):
        start(tiny_config(squares, tmp_path, MODEL__WEIGHTS=tmp_path / name))
    assert not (tmp_path / "marker").exists()


def test_an_exported_file_knows_its_preprocessing(tmp_path, squares):
    cfg = tiny_config(squares, tmp_path)
    export(build_model(cfg), tmp_path / "model_final.pth", cfg)
    load_weights(build_model(cfg), str(tmp_path / "model_final.pth"), cfg)
    other = tiny_config(squares, tmp_path, INPUT__FORMAT="BGR")
    with pytest.raises(WeightsError, match=r"model_final.pth was trained with INPUT.FORMAT 'RGB' \(here 'BGR'\)"):
        load_weights(build_model(other), str(tmp_path / "model_final.pth"), other)


def test_a_config_takes_over_what_an_exported_file_was_trained_for(tmp_path, squares):
    """custom.yaml says coco (BGR); its teacher is evaluated with MODEL.WEIGHTS model_final.pth. Explicit keys win."""
    trained = tiny_config(squares, tmp_path, INPUT__FORMAT="BGR", MODEL__ANCHOR_GENERATOR__ASPECT_RATIOS="[[2.0]]")
    path = tmp_path / "model_final.pth"
    export(build_model(trained), path, trained)
    cfg = tiny_config(squares, tmp_path, MODEL__WEIGHTS=path)
    assert cfg.INPUT.FORMAT == "BGR"
    assert cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS == [[1.0]]  # as digits.yaml says
    load_weights(build_model(cfg), str(path), cfg)
    explicit = tiny_config(squares, tmp_path, MODEL__WEIGHTS=path, INPUT__FORMAT="RGB")
    assert explicit.INPUT.FORMAT == "RGB"
    with pytest.raises(WeightsError, match=r"INPUT.FORMAT 'BGR' \(here 'RGB'\)"):
        load_weights(build_model(explicit), str(path), explicit)


def test_stock_detectron2_loads_an_exported_file(tmp_path, squares, caplog):
    """With the config that a run leaves: no key missing, none unexpected, the same detections."""
    cfg = tiny_config(
        squares, tmp_path, MODEL__BACKBONE__NAME="build_resnet_fpn_backbone", MODEL__RESNETS__DEPTH=18,
        MODEL__RPN__IN_FEATURES="['p2', 'p3', 'p4', 'p5', 'p6']", MODEL__RESNETS__NORM="BN",
        MODEL__ANCHOR_GENERATOR__SIZES="[[8], [16], [32], [64], [128]]",
    )  # fmt: skip
    torch.manual_seed(3)
    detector = build_model(cfg).eval()
    export(detector, tmp_path / "model_final.pth", cfg)
    (tmp_path / "detectron2.yaml").write_text(stock_config(cfg, str(tmp_path / "model_final.pth")).dump())
    stock_cfg = get_cfg()
    stock_cfg.merge_from_file(str(tmp_path / "detectron2.yaml"))
    stock = build_model(stock_cfg).eval()
    assert type(stock).__name__ == "GeneralizedRCNN"
    incompatible = []
    checkpointer = DetectionCheckpointer(stock)
    checkpointer._log_incompatible_keys = incompatible.append
    checkpointer.load(stock_cfg.MODEL.WEIGHTS)
    assert not any(incompatible[0])
    image = {"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)}
    with torch.no_grad():
        ours, theirs = detector([image])[0]["instances"], stock([image])[0]["instances"]
    assert len(ours) > 0
    assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
    assert torch.equal(ours.scores, theirs.scores)


def test_resuming_from_something_else_is_refused(tmp_path, squares):
    cfg = tiny_config(squares, tmp_path)
    stock_weights(cfg, tmp_path / "checkpoint_0000004.pth")
    with pytest.raises(CheckpointError, match=r"checkpoint_0000004.pth: not a checkpoint of this run's model"):
        make_trainer(cfg).resume_or_load(resume=True)


def test_a_write_that_dies_leaves_the_last_checkpoint_whole(tmp_path, squares, monkeypatch):
    trainer = make_trainer(tiny_config(squares, tmp_path, DATASETS__TEST="()"))
    trainer.checkpointer.save("checkpoint_0000001", iteration=0)
    before = (tmp_path / "checkpoint_0000001.pth").read_bytes()

    def half(content, stream):
        stream.write(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    for name in ("checkpoint_0000001", "checkpoint_0000002"):
        with pytest.raises(OSError, match="disk full"):
            trainer.checkpointer.save(name, iteration=1)
    assert (tmp_path / "checkpoint_0000001.pth").read_bytes() == before
    assert trainer.checkpointer.get_checkpoint_file() == str(tmp_path / "checkpoint_0000001.pth")
    assert (tmp_path / "last_checkpoint").read_text() == "checkpoint_0000001.pth"


def test_a_damaged_checkpoint_is_named(tmp_path, squares):
    cfg = tiny_config(squares, tmp_path)
    save_atomic({"x": torch.zeros(100)}, tmp_path / "checkpoint_0000004.pth")
    content = (tmp_path / "checkpoint_0000004.pth").read_bytes()
    (tmp_path / "checkpoint_0000004.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"checkpoint_0000004.pth: cannot be read"):
        make_trainer(cfg).resume_or_load(resume=True)


def test_imagenet_for_resnet_18_is_torchvisions_feature_by_feature(monkeypatch):
    """Detectron2 has no file for this depth: torchvision's is taken, and every stage gives what torchvision's does."""
    from torchvision.models import WeightsEnum, resnet18
    from torchvision.models._utils import IntermediateLayerGetter

    source = resnet18(weights=None).eval()
    for module in source.modules():  # running statistics that are not 0 and 1
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, *a, **k: source.state_dict())
    cfg = load_config(Path(__file__).parents[2] / "configs/retinanet_r18.yaml", ["MODEL.DEVICE", "cpu"])
    detector = build_model(cfg)
    load_weights(detector, cfg.MODEL.WEIGHTS, cfg, whole=False)
    pixels = torch.rand(1, 3, 96, 64, dtype=torch.float64)
    body = IntermediateLayerGetter(source.double(), {f"layer{i}": f"res{i + 1}" for i in (2, 3, 4)})
    with torch.no_grad():
        ours, theirs = detector.double().eval().backbone.bottom_up(pixels), body(pixels)
    assert list(ours) == list(theirs) == ["res3", "res4", "res5"]
    for name, value in theirs.items():
        assert value.std() > 0.01
        torch.testing.assert_close(ours[name], value)
    with pytest.raises(WeightsError, match="a backbone alone"):
        load_weights(detector, "imagenet", cfg)
