"""sed.d2.config: our keys beside Detectron2's, our files with one meaning on both engines, and its zoo as a base."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2", reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)")

import ast
import json
import re
from pathlib import Path

import detectron2
import torch
from detectron2.config import get_cfg as detectron2_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model

from sed import config as native
from sed.config import ConfigError, leaves
from sed.core.structures import Images
from sed.d2 import ScaleConsistentRetinaNet, add_sed_config, load_config
from sed.d2.config import COCO, IMPLIED, preprocessing, stock_config, zoo_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
STOCK = [path.name for path in CONFIGS if not path.name.endswith("_detr.yaml")]  # that Detectron2 has a class for
OURS = dict(leaves(native.get_cfg()))
THEIRS = dict(leaves(detectron2_cfg()))

# Keys of both whose defaults differ on purpose
PYRAMID = "the paper's detector has a feature pyramid (Base-RCNN-FPN.yaml); Detectron2's default is C4"
RECIPE = "the paper's recipe (docs/method.md 9)"
TORCHVISION = "what torchvision's weights expect, and with them the native engine; Detectron2's are MSRA's"
DIFFERENT = {
    "SEED": "runs are reproducible unless asked otherwise; -1 draws one",
    "MODEL.META_ARCHITECTURE": "ours",
    "MODEL.DEVICE": "cuda where there is one",
    "MODEL.PIXEL_MEAN": TORCHVISION,
    "MODEL.PIXEL_STD": TORCHVISION,
    "MODEL.BACKBONE.NAME": PYRAMID,
    "MODEL.ANCHOR_GENERATOR.SIZES": PYRAMID,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": PYRAMID,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": PYRAMID,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": PYRAMID,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": PYRAMID,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": "torchvision's number of sampling points; 0 depends on the box",
    "INPUT.MIN_SIZE_TRAIN": RECIPE,
    "SOLVER.BASE_LR": RECIPE,
    "SOLVER.MAX_ITER": RECIPE,
    "SOLVER.STEPS": RECIPE,
    "TEST.EVAL_PERIOD": "training looks at itself; 0 is never",
}
# What `load_config` puts in the place of a name that both engines know: {file: {key: value on this engine}}
R50 = {"MODEL.WEIGHTS": "detectron2://ImageNetPretrained/torchvision/R-50.pkl"}
P3_TO_P7 = {"MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone"}
PAPER = ("coco_5", "coco_10", "coco_35k", "coco_100", "coco_100_270k", "voc", "voc_geometric")
TRANSLATED = {
    **{f"{name}.yaml": R50 for name in PAPER},
    **{"retinanet_r50.yaml": R50 | P3_TO_P7, "retinanet_r18.yaml": P3_TO_P7},
    "custom.yaml": {
        "MODEL.WEIGHTS": COCO["ScaleConsistentRCNN"][1],
        "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],  # those weights were trained on BGR, and hold the deviation
        "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    },
}
TINY = ["MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"]


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "config.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def zoo(name: str, more: str = "") -> str:
    return f"_BASE_: model_zoo://{name}.yaml\nMODEL:\n  DEVICE: cpu\n{more}"


class TestDefaults:
    def test_add_sed_config_adds_what_detectron2_lacks_and_changes_nothing(self):
        cfg = detectron2_cfg()
        add_sed_config(cfg)
        values = dict(leaves(cfg))
        assert {key: values[key] for key in THEIRS} == THEIRS
        added = {key: value for key, value in values.items() if key not in THEIRS}
        assert added == {key: value for key, value in OURS.items() if key not in THEIRS}
        assert {"ENGINE", "SEMI.METHOD", "SED.REWEIGHT.BINS", "DATASETS.UNLABELED", "SOLVER.AMP.DTYPE"} <= set(added)
        cfg.SED.REWEIGHT.BINS = 3
        assert native.get_cfg().SED.REWEIGHT.BINS == 10  # each call its own copy

    def test_every_shared_default_is_detectron2s_or_has_a_reason(self):
        shared = OURS.keys() & THEIRS.keys()
        differ = {key for key in shared if OURS[key] != THEIRS[key] or type(OURS[key]) is not type(THEIRS[key])}
        assert differ == set(DIFFERENT)  # no reason without a difference either

    def test_without_a_file_both_engines_have_our_defaults(self, no_gpu):
        values = dict(leaves(load_config()))
        assert {key for key, value in OURS.items() if values[key] != value} == {"MODEL.DEVICE"}
        assert {key: values[key] for key in IMPLIED} == IMPLIED

    def test_implied_keys_are_detectron2s_and_change_them(self):
        assert all(key in THEIRS and key not in OURS and THEIRS[key] != value for key, value in IMPLIED.items())

    def test_each_call_gives_its_own_copy(self, no_gpu):
        cfg = load_config()
        stock_config(cfg, "").MODEL.RPN.IN_FEATURES.append("p9")
        assert cfg.MODEL.RPN.IN_FEATURES == ["p2", "p3", "p4", "p5", "p6"]
        cfg.MODEL.RPN.IN_FEATURES.append("p9")
        load_config().MODEL.ANCHOR_GENERATOR.SIZES.append([9])
        assert load_config().MODEL.RPN.IN_FEATURES == ["p2", "p3", "p4", "p5", "p6"]
        assert len(load_config().MODEL.ANCHOR_GENERATOR.SIZES) == 5

    def test_the_pyramid_is_that_of_detectron2s_own_baseline(self, write, no_gpu):
        """Our default detector is the model zoo's Faster R-CNN R50-FPN but for the preprocessing."""
        ours = dict(leaves(load_config()))
        theirs = dict(leaves(load_config(write(zoo("COCO-Detection/faster_rcnn_R_50_FPN_1x")))))
        differ = {key for key, value in theirs.items() if key.startswith("MODEL.") and ours[key] != value}
        weights = {"MODEL.WEIGHTS", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.RESNETS.STRIDE_IN_1X1"}
        unused = {"MODEL.ROI_MASK_HEAD.NUM_CONV", "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA"}
        assert differ == weights | unused | {"MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO"}

    def test_retinanets_box_loss_is_that_of_detectron2s_own_baseline(self, write, no_gpu):
        theirs = load_config(write(zoo("COCO-Detection/retinanet_R_50_FPN_1x")))
        assert load_config().MODEL.RETINANET.SMOOTH_L1_LOSS_BETA == theirs.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA == 0.0


class TestFiles:
    @pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
    def test_every_file_of_ours_means_the_same_on_both_engines(self, path, no_gpu):
        here, there = dict(leaves(load_config(path))), dict(leaves(native.load_config(path)))
        differ = {key: here[key] for key, value in there.items() if here[key] != value}
        assert differ == {"MODEL.DEVICE": "cpu", **TRANSLATED.get(path.name, {})}

    @pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
    def test_what_a_run_writes_down_loads_again(self, path, write, no_gpu):
        again = load_config(write((cfg := load_config(path)).dump()))
        assert json.dumps(dict(leaves(again))) == json.dumps(dict(leaves(cfg)))  # tuples of tuples become lists

    def test_the_command_line_comes_last(self, write):
        path = write("SEED: 1\nSOLVER: {BASE_LR: 0.5}\nMODEL: {DEVICE: cpu}\n")
        cfg = load_config(path, ["SOLVER.BASE_LR", "1e-3", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"])
        assert (cfg.SEED, cfg.SOLVER.BASE_LR, cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG) == (1, 1e-3, True)

    def test_the_whole_batch_is_both_streams(self):
        cfg = load_config(None, ["SEMI.IMS_PER_BATCH_LABELED", "3", "SEMI.IMS_PER_BATCH_UNLABELED", "5"])
        assert cfg.SOLVER.IMS_PER_BATCH == 8

    def test_a_list_of_sizes_is_a_range_here_and_a_choice_in_the_zoo(self, write):
        cfg = load_config(None, ["INPUT.MIN_SIZE_TRAIN", "(800,700,640)"])
        assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING) == ((640, 800), "range")
        cfg = load_config(write(zoo("COCO-Detection/faster_rcnn_R_50_FPN_1x")))
        assert (len(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING) == (6, "choice")
        with pytest.raises(ConfigError, match=r"INPUT\.MIN_SIZE_TRAIN is \(\); expected one length"):
            load_config(None, ["INPUT.MIN_SIZE_TRAIN", "()"])

    @pytest.mark.parametrize(
        ("text", "wrong", "nearest"),
        [
            ("SED: {LAMDA_SCALE: 0.1}", "SED.LAMDA_SCALE", "SED.LAMBDA_SCALE"),  # ours
            ("MODEL: {ROI_BOX_HEAD: {NUM_CON: 1}}", "MODEL.ROI_BOX_HEAD.NUM_CON", "MODEL.ROI_BOX_HEAD.NUM_CONV"),
        ],
    )
    def test_an_unknown_key_names_the_nearest_of_both(self, write, text, wrong, nearest):
        path = write(text)
        with pytest.raises(ConfigError) as error:
            load_config(path)
        assert str(error.value) == f"{path}: unknown key {wrong}; the nearest known one is {nearest}"

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("SOLVER.ACCUMULATE 2", r"SOLVER\.ACCUMULATE: .* leave it 1, or set ENGINE torchvision"),
            ("MODEL.DEVICE cuda", "MODEL.DEVICE is cuda, but torch finds no GPU"),
            ("MODEL.WEIGHTS imagenet MODEL.RESNETS.DEPTH 34", "imagenet: .* for depth 18 and 50, not 34; name a file"),
            ("MODEL.WEIGHTS coco MODEL.RESNETS.DEPTH 18", "coco: there are weights for depth 50 .* not for depth 18"),
            ("MODEL.WEIGHTS coco MODEL.BACKBONE.NAME build_small_fpn_backbone", "not for .* build_small_fpn_backbone"),
            ("MODEL.META_ARCHITECTURE GeneralizedRCNN", "'GeneralizedRCNN'; it must be one of ScaleConsistentRCNN"),
            ("MODEL.META_ARCHITECTURE Nonsense", "'Nonsense'; it must be one of .* or a registered subclass"),
            ("MODEL.MASK_ON True", "MODEL.MASK_ON is True, but only boxes are learned here; set it to False"),
            ("MODEL.KEYPOINT_ON True", "MODEL.KEYPOINT_ON is True"),
            ("SEMI.METHOD nonsense", "must be one of supervised, pseudo_label, sed, sed_plus"),
            ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE nonsense", "must be one of value, norm, full_model"),
            ("SOLVER.MAX_ITER many", "SOLVER.MAX_ITER expects int"),
        ],
    )
    def test_what_cannot_be_is_one_clear_error(self, no_gpu, words, message):
        with pytest.raises(ConfigError, match=message):
            load_config(None, words.split())

    def test_what_detectron2_names_freely_is_not_limited(self):
        """Its registries are open: norms, schedulers and meta-architectures of the user's own."""
        cfg = load_config(None, "MODEL.RESNETS.NORM SyncBN SOLVER.LR_SCHEDULER_NAME Mine MODEL.DEVICE cpu".split())
        assert (cfg.MODEL.RESNETS.NORM, cfg.SOLVER.LR_SCHEDULER_NAME) == ("SyncBN", "Mine")


@META_ARCH_REGISTRY.register()
class RetinaNetOfAUser(ScaleConsistentRetinaNet):
    """Registered under its own name."""


class TestBackbones:
    @pytest.mark.parametrize("name", ["ScaleConsistentRetinaNet", "RetinaNetOfAUser"])
    def test_a_one_stage_detector_gets_its_pyramid(self, name):
        cfg = load_config(None, [*TINY, "MODEL.META_ARCHITECTURE", name, "MODEL.RESNETS.DEPTH", "18"])
        assert cfg.MODEL.BACKBONE.NAME == "build_retinanet_resnet_fpn_backbone"
        detector = build_model(cfg)
        assert (type(detector).__name__, detector.size_divisibility) == (name, 128)
        assert type(build_model(stock_config(cfg, ""))).__name__ == "RetinaNet"

    @pytest.mark.parametrize("name", ["ScaleConsistentRCNN", "ScaleConsistentRetinaNet"])
    def test_the_small_backbone_serves_both(self, name):
        words = "MODEL.BACKBONE.NAME build_small_fpn_backbone MODEL.RESNETS.NORM GN"
        sizes = ["MODEL.ANCHOR_GENERATOR.SIZES", "[[16],[32],[64],[128]]"]
        detector = build_model(load_config(None, [*TINY, *words.split(), *sizes, "MODEL.META_ARCHITECTURE", name]))
        assert detector.size_divisibility == 32
        assert list(detector.backbone.output_shape()) == ["p2", "p3", "p4", "p5"]


class TestWeights:
    @pytest.mark.parametrize(("name", "url"), COCO.values(), ids=COCO)
    def test_coco_names_are_those_of_the_model_zoo(self, name, url):
        """Read as text: Detectron2's module needs a part of setuptools that is no more."""
        source = (Path(detectron2.__file__).parent / "model_zoo" / "model_zoo.py").read_text()
        table = ast.literal_eval(re.search(r"CONFIG_PATH_TO_URL_SUFFIX = (\{.*?\n    \})", source, re.DOTALL)[1])
        stem = name.removesuffix(".yaml")
        assert url == f"detectron2://{stem}/{table[stem]}"

    def test_named_weights_bring_their_preprocessing(self, write):
        caffe = preprocessing(load_config(None, ["MODEL.WEIGHTS", "coco"]))
        assert (caffe["INPUT.FORMAT"], caffe["MODEL.RESNETS.STRIDE_IN_1X1"]) == ("BGR", True)
        torchvision = preprocessing(load_config(None, ["MODEL.WEIGHTS", "imagenet"]))
        assert (torchvision["INPUT.FORMAT"], torchvision["MODEL.RESNETS.STRIDE_IN_1X1"]) == ("RGB", False)
        path = write(zoo("COCO-Detection/faster_rcnn_R_50_FPN_1x"))
        assert preprocessing(load_config(path)) == caffe
        assert preprocessing(load_config(path, ["MODEL.WEIGHTS", "imagenet"])) == torchvision

    def test_retinanets_coco_weights_bring_its_anchors(self):
        cfg = load_config(None, "MODEL.META_ARCHITECTURE ScaleConsistentRetinaNet MODEL.WEIGHTS coco".split())
        assert cfg.MODEL.WEIGHTS == COCO["ScaleConsistentRetinaNet"][1]
        assert [len(sizes) for sizes in cfg.MODEL.ANCHOR_GENERATOR.SIZES] == [3] * 5


class TestZoo:
    """A file of ours may start from a config of Detectron2's model zoo."""

    @pytest.mark.parametrize(
        ("name", "mine", "maps", "weights"),
        [
            ("COCO-Detection/faster_rcnn_R_50_FPN_1x", "ScaleConsistentRCNN", 5, "MSRA/R-50.pkl"),
            ("COCO-Detection/faster_rcnn_R_50_C4_1x", "ScaleConsistentRCNN", 1, "MSRA/R-50.pkl"),
            ("COCO-Detection/faster_rcnn_R_50_DC5_1x", "ScaleConsistentRCNN", 1, "MSRA/R-50.pkl"),
            ("COCO-Detection/retinanet_R_50_FPN_1x", "ScaleConsistentRetinaNet", 5, "MSRA/R-50.pkl"),
            ("PascalVOC-Detection/faster_rcnn_R_50_FPN", "ScaleConsistentRCNN", 5, "MSRA/R-50.pkl"),
        ],
    )
    def test_base(self, write, name, mine, maps, weights):
        cfg = load_config(write(zoo(name, "SEMI:\n  LABELED_COUNT: 7\n")))
        values = dict(leaves(cfg))
        changed = {key for key, value in leaves(zoo_config(f"{name}.yaml")) if values[key] != value}
        assert changed == {"MODEL.META_ARCHITECTURE", "MODEL.DEVICE", "SEED"}  # all else is as it stands there
        assert (cfg.SEMI.LABELED_COUNT, cfg.SED.REWEIGHT.BINS) == (7, OURS["SED.REWEIGHT.BINS"])
        assert cfg.MODEL.WEIGHTS == f"detectron2://ImageNetPretrained/{weights}"
        detector = build_model(cfg)
        assert type(detector).__name__ == mine
        with torch.no_grad():
            features = detector.encode(Images(torch.zeros((1, 3, 128, 128)), ((128, 128),)))
            assert len(detector.dense(features).levels) == maps

    def test_a_mask_rcnn_is_trained_for_its_boxes_once_that_is_said(self, write):
        """Its zoo weights fit: the mask head's are left out."""
        name = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"
        with pytest.raises(ConfigError, match=r"MODEL\.MASK_ON is True, but only boxes are learned here"):
            load_config(write(zoo(name)))
        detector = build_model(load_config(write(zoo(name, "  MASK_ON: False\n")), TINY))
        assert type(detector).__name__ == "ScaleConsistentRCNN"
        assert not any("mask" in key for key in detector.state_dict())

    def test_a_base_of_a_base_may_be_of_the_zoo(self, write):
        write(zoo("COCO-Detection/retinanet_R_50_FPN_1x", "SEED: 4\n"), "middle.yaml")
        cfg = load_config(write("_BASE_: middle.yaml\nSEMI: {FOLD: 2}\n"))
        assert (cfg.MODEL.META_ARCHITECTURE, cfg.SEED, cfg.SEMI.FOLD) == ("ScaleConsistentRetinaNet", 4, 2)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (
                "COCO-Detection/faster_rcnn_R_51",
                r"model_zoo://COCO-Detection/faster_rcnn_R_51\.yaml: .* no such config",
            ),
            ("COCO-Detection/rpn_R_50_FPN_1x", "ProposalNetwork has no scale-consistent form; there is one of"),
            ("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x", "PanopticFPN has no scale-consistent form"),
        ],
    )
    def test_what_is_not_there_or_has_no_form_is_named(self, write, name, message):
        with pytest.raises(ConfigError, match=message):
            load_config(write(zoo(name)))

    def test_what_is_said_above_a_base_stands(self, write):
        """In our own files the backbone's name chooses the levels; here they are Detectron2's business."""
        above = "  BACKBONE: {NAME: build_resnet_fpn_backbone}\n  RETINANET: {IN_FEATURES: [p2, p3, p4, p5, p6]}\n"
        model = load_config(write(zoo("COCO-Detection/retinanet_R_50_FPN_1x", above))).MODEL
        assert model.BACKBONE.NAME == "build_resnet_fpn_backbone"
        assert model.RETINANET.IN_FEATURES == ["p2", "p3", "p4", "p5", "p6"]

    def test_an_unknown_key_above_it_names_the_nearest(self, write):
        with pytest.raises(ConfigError, match=r"unknown key SEMI\.BURNIN; the nearest known one is SEMI\.BURN_IN"):
            load_config(write(zoo("COCO-Detection/retinanet_R_50_FPN_1x", "SEMI: {BURNIN: 3}\n")))

    def test_the_native_engine_says_that_it_is_not_for_it(self, write):
        path = write(zoo("COCO-Detection/faster_rcnn_R_50_FPN_1x"))
        with pytest.raises(ConfigError, match="is a Detectron2 config, but ENGINE is not detectron2") as error:
            native.load_config(path)
        assert str(error.value).startswith(f"{path}: _BASE_ model_zoo://")


class TestStockConfig:
    """What `model_final.pth` is published with: a config for Detectron2 alone."""

    @pytest.mark.parametrize("name", [*STOCK, "retinanet", "c4"])
    def test_plain_detectron2_reads_it_and_builds_its_own_class(self, write, name, tmp_path):
        if name.endswith(".yaml"):
            path = ROOT / "configs" / name
        else:
            base = {"retinanet": "retinanet_R_50_FPN_1x", "c4": "faster_rcnn_R_50_C4_1x"}[name]
            path = write(zoo(f"COCO-Detection/{base}"))
        cfg = load_config(path, TINY)
        (tmp_path / "stock.yaml").write_text(stock_config(cfg, "model_final.pth").dump())
        (stock := detectron2_cfg()).merge_from_file(str(tmp_path / "stock.yaml"))
        values, own = dict(leaves(stock)), dict(leaves(cfg))
        assert stock.MODEL.WEIGHTS == "model_final.pth"
        changed = {key for key in THEIRS if json.dumps(values[key]) != json.dumps(own[key])}  # YAML has no tuples
        assert changed == {"MODEL.META_ARCHITECTURE", "MODEL.WEIGHTS"}
        model = build_model(stock)
        assert type(model).__name__ == ("RetinaNet" if name.startswith("retinanet") else "GeneralizedRCNN")
        assert {k: v.shape for k, v in model.state_dict().items()} == {
            k: v.shape for k, v in build_model(cfg).plain_state_dict().items()
        }

    def test_there_is_none_for_the_detr_family(self, no_gpu):
        with pytest.raises(ConfigError, match="Detectron2 alone has no such detector"):
            stock_config(load_config(ROOT / "configs" / "voc_detr.yaml"), "")
