"""ScaleConsistentDETR: the adapter of both engines with Detectron2's inputs, outputs, configs and weights."""

import pytest

pytest.importorskip("detectron2", reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)")

import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import Boxes, Instances
from transformers import AutoModelForObjectDetection

from sed import config as native_config
from sed.config import ConfigError
from sed.core.structures import Images, LabeledBatch
from sed.d2 import ScaleConsistentDETR, SemiSupervisedTrainer, add_sed_config, load_config
from sed.d2.checkpoint import PREFIXES, export, load_weights
from sed.d2.data import read_data
from sed.data.errors import DataError
from sed.detectors.detr import NotADetrError, QueryDetector
from sed.detectors.export import save_stock
from sed.detectors.weights import WeightsError
from sed.engine import build as native
from sed.engine import checkpoint as native_checkpoint
from sed.methods.build import method_from_config
from tests.reference.detectors import make_labeled, make_unlabeled
from tests.reference.detectron2_run import tiny_config
from tests.reference.training import same

NAMES = ["detr", "rt_detr"]  # a softmax and a sigmoid head
MEAN, STD = [100.0, 110.0, 130.0], [50.0, 60.0, 70.0]  # RGB; no two alike
SIZES = {"detr": ((64, 96), (80, 64)), "rt_detr": ((64, 96), (64, 96))}  # the second does not look at the mask
FORMATS = {
    "RGB": {"INPUT__FORMAT": "RGB", "MODEL__PIXEL_MEAN": MEAN, "MODEL__PIXEL_STD": STD},
    "BGR": {"INPUT__FORMAT": "BGR", "MODEL__PIXEL_MEAN": MEAN[::-1], "MODEL__PIXEL_STD": STD[::-1]},
}


@pytest.fixture
def config(family, tmp_path):
    """A config of a tiny member of the family."""

    def make(name="detr", data=(), **keys):
        return tiny_config(dict(data), tmp_path / "run", **{**family(name), **keys})

    return make


def make_detector(cfg, seed=0):
    torch.manual_seed(seed)
    return build_model(cfg).eval()


def photos(*sizes):
    """RGB images [3, h, w]."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


# ------------------------------------------------------------------------------------------ inputs and outputs
@pytest.mark.parametrize("order", FORMATS)
@pytest.mark.parametrize("name", NAMES)
def test_detections_are_the_adapters_in_the_size_that_the_dict_names(config, name, order):
    detector = make_detector(config(name, **FORMATS[order]))
    assert (type(detector), detector.num_classes) == (META_ARCH_REGISTRY.get("ScaleConsistentDETR"), 2)
    images = photos(*SIZES[name])
    adapter = QueryDetector(detector.model, MEAN, STD)
    wanted = adapter.detect(Images.from_list(images))
    rows = [{"image": image if order == "RGB" else image.flip(0)} for image in images]
    rows[0] |= {"height": 128, "width": 288}  # twice as high, three times as wide
    found = [row["instances"] for row in detector(rows)]
    assert [instances.image_size for instances in found] == [(128, 288), SIZES[name][1]]
    assert len(found[0]) > 0
    for instances, want, scale in zip(found, wanted, ([3, 2, 3, 2], [1, 1, 1, 1]), strict=True):
        solid = (want.boxes[:, 2:] > want.boxes[:, :2]).all(1)  # Detectron2 drops boxes without size
        assert len(instances) == solid.sum()
        torch.testing.assert_close(instances.pred_boxes.tensor, want.boxes[solid] * torch.tensor(scale))
        torch.testing.assert_close(instances.scores, want.scores[solid])
        assert torch.equal(instances.pred_classes, want.classes[solid])


@pytest.mark.parametrize("order", FORMATS)
@pytest.mark.parametrize("name", NAMES)
def test_training_losses_are_the_librarys_own(config, name, order):
    detector = make_detector(config(name, **FORMATS[order])).train()
    image = photos((64, 64))[0]
    truth = Instances((64, 64), gt_boxes=Boxes([[8, 16, 40, 48.0]]), gt_classes=torch.tensor([1]))
    torch.manual_seed(5)  # dropout, denoising
    losses = detector([{"image": image if order == "RGB" else image.flip(0), "instances": truth}])
    pixels = (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    label = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.375, 0.5, 0.5, 0.5]])}
    torch.manual_seed(5)
    wanted = detector.model(pixel_values=pixels[None], labels=[label]).loss
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    torch.testing.assert_close(sum(losses.values()), wanted, rtol=1e-5, atol=1e-5)
    assert min(losses.values()) > 0
    sum(losses.values()).backward()
    assert any(p.grad is not None and p.grad.any() for p in detector.model.model.backbone.parameters())


def test_training_without_truth_is_told_as_detectron2_tells_it(config):
    with pytest.raises(AssertionError, match="Instance annotations are missing in training"):
        make_detector(config()).train()([{"image": photos((64, 64))[0]}])


def test_a_ready_built_model_needs_no_config(config):
    model = make_detector(config()).model
    detector = ScaleConsistentDETR(model=model, pixel_mean=MEAN[::-1], pixel_std=STD[::-1], input_format="BGR")
    assert detector.eval().device == torch.device("cpu")
    image = photos((64, 64))[0]
    want = QueryDetector(model, MEAN, STD).detect(Images.from_list([image]))[0]
    assert torch.equal(detector([{"image": image.flip(0)}])[0]["instances"].scores, want.scores)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", ["student", "teacher"])
def test_both_engines_compute_the_same_losses_of_sed(config, family, name, target):
    """Same weights, batch and seed, each engine's own way from the config to the method."""
    keys = {"SED__SCALE_TARGET": target, **FORMATS["BGR"]}
    cfg = config(name, **keys)
    words = {"ENGINE": "torchvision", "MODEL.PIXEL_MEAN": MEAN, "MODEL.PIXEL_STD": STD, "SED.SCALE_TARGET": target}
    words |= {key.replace("__", "."): value for key, value in family(name).items()}
    other = native_config.load_config(None, [str(word) for pair in words.items() for word in pair])
    other.SEMI.BURN_IN = cfg.SEMI.BURN_IN
    torch.manual_seed(3)
    theirs = native.build_student(other, "")
    mine = make_detector(cfg, seed=3).train()
    assert same(dict(mine.state_dict()), dict(theirs.state_dict())) is None  # the seed alone makes them equal
    labeled, unlabeled = make_labeled(), make_unlabeled()
    labeled = LabeledBatch(labeled.images, tuple(type(t)(t.boxes, t.classes.clamp(max=1)) for t in labeled.targets))
    sums = []
    for detector, own in ((mine, cfg), (theirs, other)):
        method = method_from_config(own, detector).train()
        torch.manual_seed(7)
        sums.append(method(labeled, unlabeled, cfg.SEMI.BURN_IN))
    assert sums[0].keys() == sums[1].keys()
    assert {"sup/query_cls", "sup/query_box", "scale/query_cls", "distill/query_box"} <= sums[0].keys()
    for part, loss in sums[0].items():
        assert loss.item() == pytest.approx(sums[1][part].item(), rel=1e-6), part


# ------------------------------------------------------------------------------------------ config
def test_the_config_of_the_model_is_read_and_its_errors_are_told(config, family):
    cfg = config("rt_detr", MODEL__WEIGHTS="coco", TEST__DETECTIONS_PER_IMAGE=3)
    assert (cfg.MODEL.WEIGHTS, cfg.INPUT.FORMAT) == ("coco", "RGB")  # a name that only this family has
    cfg.MODEL.DETR.NUM_CLASSES = 5
    detector = build_model(cfg)
    assert (detector.num_classes, detector.num_queries, detector.detections) == (5, 8, 3)
    for keys, message in (
        ({"MODEL__DETR__CONFIG": ""}, "MODEL.DETR.CONFIG is empty"),
        ({"MODEL__DETR__CONFIG": "nowhere.json"}, "nowhere.json: no such file"),
        ({"INPUT__FORMAT": "L"}, "INPUT.FORMAT is 'L'; ScaleConsistentDETR takes RGB or BGR"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_model(config(**keys))


def test_a_model_that_is_no_detector_is_a_config_error_in_training(config, monkeypatch):
    monkeypatch.setattr("sed.d2.detr.transformers_model", lambda *_: torch.nn.Linear(2, 2))
    with pytest.raises(NotADetrError, match="Linear"):
        build_model(config())
    with pytest.raises(ConfigError, match=r"MODEL\.DETR\.CONFIG .*\.json: Linear .*pixel_values"):
        SemiSupervisedTrainer.build_model(config())


@META_ARCH_REGISTRY.register()
class OfAUser(ScaleConsistentDETR):
    """Registered under its own name."""


@pytest.mark.parametrize("name", ["ScaleConsistentDETR", "OfAUser"])
def test_the_number_of_classes_is_that_of_the_family(config, squares, name):
    cfg = config(data=squares, MODEL__META_ARCHITECTURE=name)
    assert read_data(cfg).labeled.classes == ("red", "blue")
    cfg.MODEL.DETR.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3, 2
    with pytest.raises(DataError, match=r"MODEL\.DETR\.NUM_CLASSES is 3"):
        read_data(cfg)


def test_a_config_of_detectron2_s_own_takes_it_too(family):
    """`add_sed_config`: BGR and its mean are Detectron2's defaults, and are kept apart from the model's RGB."""
    cfg = get_cfg()
    add_sed_config(cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE = "cpu", "ScaleConsistentDETR"
    cfg.MODEL.DETR.CONFIG = str(family("detr")["MODEL__DETR__CONFIG"])
    detector = build_model(cfg)
    assert (detector.input_format, detector.num_classes) == ("BGR", 80)
    assert detector.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])


@pytest.mark.parametrize(("weights", "order"), [("", "BGR"), ("imagenet", "RGB")])
def test_a_config_may_start_from_the_model_zoo(tmp_path, weights, order):
    """Then with Detectron2's defaults; torchvision's weights bring their preprocessing, as for the others."""
    path = tmp_path / "zoo.yaml"
    path.write_text("_BASE_: model_zoo://COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml\nMODEL: {DEVICE: cpu}\n")
    words = ["MODEL.META_ARCHITECTURE", "ScaleConsistentDETR", "MODEL.WEIGHTS", weights]
    cfg = load_config(path, words)
    assert (cfg.MODEL.WEIGHTS, cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_STD == [1.0] * 3) == (weights, order, order == "BGR")


# ------------------------------------------------------------------------------------------ weights
@pytest.mark.parametrize("name", NAMES)
def test_an_exported_file_is_everybodys(config, name, tmp_path):
    """transformers, stock Detectron2's DefaultPredictor, the native engine and this one; all find the same."""
    cfg = config(name)
    detector, path = make_detector(cfg), tmp_path / "model_final.pth"
    export(detector, path, cfg)
    state = torch.load(path, weights_only=True)["model"]
    stock = AutoModelForObjectDetection.from_config(detector.model.config)
    assert stock.load_state_dict(state, strict=True)
    image = photos((64, 64))[0]
    want = detector([{"image": image}])[0]["instances"]

    mine = make_detector(cfg, seed=1)
    load_weights(mine, str(path), cfg)
    assert same(dict(mine.state_dict()), dict(detector.state_dict())) is None
    cfg.MODEL.WEIGHTS = str(path)
    predicted = DefaultPredictor(cfg)(image.flip(0).permute(1, 2, 0).numpy())["instances"]  # reads BGR
    assert torch.equal(predicted.scores, want.scores)
    assert torch.equal(predicted.pred_boxes.tensor, want.pred_boxes.tensor)
    other = QueryDetector(stock)
    torch.nn.init.ones_(next(other.parameters()))
    native_checkpoint.load_weights(other, path)
    assert same(dict(other.state_dict()), dict(detector.state_dict())) is None

    native_checkpoint.save_atomic(native_checkpoint.plain_weights(detector), tmp_path / "native.pth")
    mine = make_detector(cfg, seed=1)
    load_weights(mine, str(tmp_path / "native.pth"), cfg)
    assert same(dict(mine.state_dict()), dict(detector.state_dict())) is None


def test_a_full_checkpoint_holds_both(config, tmp_path):
    cfg = config()
    both = {"student": make_detector(cfg, 1), "teacher": make_detector(cfg, 2)}
    full = {PREFIXES[which] + n: v for which, one in both.items() for n, v in one.state_dict().items()}
    torch.save({"model": full, "iteration": 9}, tmp_path / "checkpoint_0000010.pth")
    for which, wanted in both.items():
        detector = make_detector(cfg)
        load_weights(detector, str(tmp_path / "checkpoint_0000010.pth"), cfg, which)
        assert same(dict(detector.state_dict()), dict(wanted.state_dict())) is None


def test_other_classes_start_fresh_and_what_does_not_fit_is_refused(config, tmp_path):
    cfg, path = config(), str(tmp_path / "model_final.pth")
    trained = make_detector(config(MODEL__DETR__NUM_CLASSES=4), 1)
    export(trained, tmp_path / "model_final.pth", cfg)
    detector = make_detector(cfg)
    load_weights(detector, path, cfg, whole=False)
    own, theirs = detector.state_dict(), trained.state_dict()
    fresh = {name for name in own if own[name].shape != theirs[name].shape or not torch.equal(own[name], theirs[name])}
    assert fresh == {f"model.class_labels_classifier.{kind}" for kind in ("weight", "bias")}
    with pytest.raises(WeightsError, match=r"2 of \d+ tensors are missing or of another shape"):  # not to evaluate
        load_weights(detector, path, cfg)
    torch.save({"model": {"roi_heads.weight": torch.zeros(3)}}, path)
    with pytest.raises(WeightsError, match=r"does not fit this ScaleConsistentDETR.*holds roi_heads.weight"):
        load_weights(detector, path, cfg, whole=False)


def test_a_file_knows_its_pixels_and_nothing_that_the_family_lacks(config, tmp_path):
    cfg, path = config(), str(tmp_path / "model_final.pth")
    export(make_detector(cfg), tmp_path / "model_final.pth", cfg)
    assert set(torch.load(path, weights_only=True)["trained_for"]) == {
        "INPUT.FORMAT",
        "MODEL.PIXEL_MEAN",
        "MODEL.PIXEL_STD",
    }
    other = config(MODEL__PIXEL_STD="[255.0, 255.0, 255.0]", MODEL__RESNETS__STRIDE_IN_1X1=True)
    with pytest.raises(WeightsError, match=r"trained with MODEL.PIXEL_STD \[58.395, .*\(here \[255.0, "):
        load_weights(make_detector(other), path, other)
    bgr = config(**FORMATS["BGR"])
    export(make_detector(bgr), tmp_path / "bgr.pth", bgr)
    adopted = config(MODEL__WEIGHTS=tmp_path / "bgr.pth")  # where the config does not say them
    assert (adopted.INPUT.FORMAT, adopted.MODEL.PIXEL_MEAN) == ("BGR", MEAN[::-1])


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_transformers_is_weights_too(config, name, tmp_path):
    detector = make_detector(config(name), 1)
    assert save_stock(detector, tmp_path / "folder", ("red", "blue"), (64, 128))
    for weights, source in ((str(tmp_path / "folder"), None), ("coco", str(tmp_path / "folder"))):
        cfg = config(name)
        cfg.MODEL.DETR.CONFIG = source or cfg.MODEL.DETR.CONFIG
        mine = make_detector(cfg)
        load_weights(mine, weights, cfg)
        assert same(dict(mine.state_dict()), dict(detector.state_dict())) is None


def test_named_weights_that_the_model_has_not_are_told(config):
    cfg = config()
    detector = make_detector(cfg)
    load_weights(detector, "", cfg)
    with pytest.raises(WeightsError, match=r"MODEL.WEIGHTS coco: .* is a config alone"):
        load_weights(detector, "coco", cfg)
    with pytest.raises(WeightsError, match=r"MODEL.WEIGHTS imagenet: .* has no ResNet-18 or -50"):
        load_weights(detector, "imagenet", cfg, whole=False)
    with pytest.raises(WeightsError, match=r"imagenet: a backbone alone"):  # to evaluate
        load_weights(detector, "imagenet", cfg)
