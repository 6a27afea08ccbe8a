"""Query detectors of unknown classes: those with the expected inputs and outputs work, others get one clear error."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForObjectDetection,
    ConvNextConfig,
    DetrConfig,
    OwlViTConfig,
    OwlViTForObjectDetection,
    PreTrainedConfig,
    PreTrainedModel,
    RTDetrConfig,
    SwinConfig,
    ViTConfig,
    ViTForImageClassification,
)

from sed.detectors import wrap
from sed.detectors.detr import NotADetrError, QueryDetector
from sed.methods.base import Schedule
from sed.methods.build import build_method
from tests.reference.detectors import make_images, make_labeled, make_unlabeled
from tests.reference.transformers_case import DETR, HGNET, HYBRID

Q, K = 5, 3


class Network(nn.Module):
    """A box and K logits for each of Q queries, from an image's mean colours; K + 1 logits with softmax."""

    def __init__(self, channels=K):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.logits, self.boxes = nn.Linear(8, Q * channels), nn.Linear(8, Q * 4)

    def predict(self, pixels):
        x = self.body(pixels).flatten(1)
        n = len(x)
        return self.logits(x).view(n, Q, -1), self.boxes(x).sigmoid().view(n, Q, -1)

    @staticmethod
    def losses(logits, boxes, labels):
        """The target of every query is the first box of its image, if there is one."""
        wanted, found, targets = torch.zeros_like(logits), [], []
        for n, label in enumerate(labels):
            if len(label["boxes"]):
                wanted[n, :, label["class_labels"][0]] = 1
                found.append(boxes[n])
                targets.append(label["boxes"][:1].expand(Q, 4))
        apart = (torch.cat(found) - torch.cat(targets)).abs().mean() if found else boxes.sum() * 0
        return {"loss_ce": nn.functional.binary_cross_entropy_with_logits(logits, wanted), "loss_bbox": apart}


class Behaves(Network):
    """A user's own detector: no class of transformers, registered nowhere."""

    def __init__(self, channels=K):
        super().__init__(channels)
        self.config = SimpleNamespace(num_labels=K)

    def forward(self, pixel_values, labels=None):
        logits, boxes = self.predict(pixel_values)
        output = SimpleNamespace(logits=logits, pred_boxes=boxes, loss=None, loss_dict=None)
        if labels is not None:
            output.loss_dict = self.losses(logits, boxes, labels)
            output.loss = 2 * output.loss_dict["loss_ce"] + 5 * output.loss_dict["loss_bbox"]
        return output


class OwnConfig(PreTrainedConfig):
    model_type = "test_unknown_model"


class OwnPreTrained(PreTrainedModel):
    """A user's own `PreTrainedModel`, with a softmax head, unknown to AutoModelForObjectDetection."""

    config_class = OwnConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.network = Network(config.num_labels + 1)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, pixel_values, pixel_mask=None, labels=None, **kwargs):
        logits, boxes = self.network.predict(pixel_values)
        parts = loss = None
        if labels is not None:
            parts = self.network.losses(logits, boxes, labels)
            loss = sum(parts.values())
        return SimpleNamespace(logits=logits, pred_boxes=boxes, loss=loss, loss_dict=parts)


@pytest.mark.parametrize("make", [Behaves, lambda: OwnPreTrained(OwnConfig(num_labels=K))])
@pytest.mark.parametrize("kind", ["sed", "pseudo_label"])
def test_an_unregistered_class_with_the_expected_outputs_works(make, kind):
    torch.manual_seed(0)
    detector = wrap(make())
    assert (detector.num_classes, detector.num_queries, detector.size_divisibility) == (K, Q, 32)
    assert not detector.reads_mask
    method = build_method(kind, detector, Schedule(burn_in=0, max_iter=4, first_drop=4)).train()
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.01)
    for step in range(2):
        losses = method(make_labeled(), make_unlabeled(), step)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert all(weight.grad.isfinite().all() for weight in detector.parameters())
        optimizer.step()
        method.update_teacher(step)
    found = method.teacher.module.detect(make_images())
    assert len(found) == 2
    assert len(found[0].boxes) == (Q if detector.softmax else Q * K)


def test_its_loss_is_split_by_its_own_weights():
    torch.manual_seed(0)
    model = Behaves()
    detector, batch = QueryDetector(model, (0.0,) * 3, (255.0,) * 3), make_labeled(((64, 64),))
    losses = detector.eval().supervised_losses(batch)
    (target,) = batch.targets
    box = torch.tensor([[17 / 64, 20 / 64, 26 / 64, 32 / 64]])
    logits, boxes = model.predict(batch.images.tensor / 255)
    parts = model.losses(logits, boxes, [{"class_labels": target.classes, "boxes": box}])
    assert losses["query_cls"].item() == pytest.approx(2 * parts["loss_ce"].item(), rel=1e-5)
    assert losses["query_box"].item() == pytest.approx(5 * parts["loss_bbox"].item(), rel=1e-5)


# ---------------------------------------------------------------------------------------------- what is missing
class NoPixels(Behaves):
    def forward(self, x, labels=None):
        return super().forward(x, labels)


class NoLabels(Behaves):
    def forward(self, pixel_values):
        return super().forward(pixel_values)


class NoConfig(Behaves):
    def __init__(self):
        super().__init__()
        del self.config


class Spoiled(Behaves):
    """Its output without, or with other, fields."""

    def __init__(self, **spoil):
        super().__init__()
        self.spoil = spoil

    def forward(self, pixel_values, labels=None):
        output = super().forward(pixel_values, labels)
        for name, change in self.spoil.items():
            if getattr(output, name) is not None:
                setattr(output, name, change(getattr(output, name)) if change else None)
        return output


class Nothing(nn.Module):
    """Takes an image and labels, and has no output of a detector."""

    def forward(self, pixel_values, labels=None):
        return SimpleNamespace(scores=pixel_values.mean())


class Raises(Behaves):
    def forward(self, pixel_values, labels=None):
        if labels is not None:
            raise KeyError("bbox")
        return super().forward(pixel_values)


class EvalOnly(Behaves):
    def forward(self, pixel_values, labels=None):
        return super().forward(pixel_values, None if self.training else labels)


LOGITS, BOXES = r"logits \[N, Q, C\] \(found {}\)", r"pred_boxes \[N, Q, 4\] \(found {}\)"
LOSS, LOSS_DICT = "loss when labels are given", "loss_dict when labels are given"
NUM_LABELS = r"config.num_labels \(the number of classes\)"
CHANNELS = r'3 \(sigmoid\) or 4 \(softmax, "no object" last\) logits a query for its 3 classes \(found {}\)'
PARTS = r"a part of loss in loss_dict that is named loss_ce\*, .* \(found \['{}', 'loss_bbox'\]\)"
LACKING = {
    "an argument for pixels": (NoPixels, ["an argument pixel_values of forward"]),
    "an argument for labels": (NoLabels, ["an argument labels of forward"]),
    "num_labels": (NoConfig, [NUM_LABELS]),
    "logits": (lambda: Spoiled(logits=None), [LOGITS.format("none")]),
    "logits of an image": (lambda: Spoiled(logits=lambda x: x[0]), [LOGITS.format(r"\(5, 3\)")]),
    "pred_boxes": (lambda: Spoiled(pred_boxes=None), [BOXES.format("none")]),
    "pred_boxes with an angle": (
        lambda: Spoiled(pred_boxes=lambda x: torch.cat([x, x[..., :1]], -1)),
        [BOXES.format(r"\(1, 5, 5\)")],
    ),
    "a box a query": (
        lambda: Spoiled(pred_boxes=lambda x: x[:, 1:]),
        [r"a box for each query's logits \(found \(1, 4, 4\) and \(1, 5, 3\)\)"],
    ),
    "loss": (lambda: Spoiled(loss=None), [LOSS]),
    "loss in training": (EvalOnly, [LOSS, LOSS_DICT]),
    "loss_dict": (lambda: Spoiled(loss_dict=None), [LOSS_DICT]),
    "C": (lambda: Behaves(channels=7), [CHANNELS.format(7)]),
    "names of parts": (
        lambda: Spoiled(loss_dict=lambda x: {"loss_class": x["loss_ce"], "loss_bbox": x["loss_bbox"]}),
        [PARTS.format("loss_class")],
    ),
    "parts of the loss": (
        lambda: Spoiled(loss_dict=lambda x: {name: part.detach() for name, part in x.items()}),
        [PARTS.format("loss_ce")],
    ),
    "a forward with labels": (
        Raises,
        [r"a forward that takes .* and labels \[.*\] in train mode \(KeyError: 'bbox'\)"],
    ),
    "boxes and losses": (
        lambda: Spoiled(pred_boxes=None, loss=None, loss_dict=None),
        [BOXES.format("none"), LOSS, LOSS_DICT],
    ),
    "everything": (Nothing, [NUM_LABELS, LOGITS.format("none"), BOXES.format("none"), LOSS, LOSS_DICT]),
    "channels and boxes": (
        lambda: Spoiled(logits=lambda x: x.repeat(1, 1, 3), pred_boxes=lambda x: x[..., :2]),
        [CHANNELS.format(9), BOXES.format(r"\(1, 5, 2\)")],
    ),
}


@pytest.mark.parametrize("name", LACKING)
def test_one_error_names_all_that_is_missing(name):
    make, lacks = LACKING[name]
    model = make()
    start = rf"^{type(model).__name__} cannot be trained as one of the DETR family; it lacks "
    with pytest.raises(NotADetrError, match=start + "; ".join(lacks) + "$"):
        wrap(model)
    assert model.training


def test_something_that_is_no_module_is_refused():
    with pytest.raises(NotADetrError, match=r"str is no torch\.nn\.Module; expected a detector of transformers"):
        QueryDetector("facebook/detr-resnet-50")


# ---------------------------------------------------------------------------------------------- of transformers itself
STAGES = ["stage2", "stage3", "stage4"]
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def owl():
    text = {**SMALL, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**SMALL, "image_size": 64, "patch_size": 16}
    return OwlViTForObjectDetection(OwlViTConfig(text_config=text, vision_config=vision, projection_dim=16))


def layout():
    """A DETR whose code has no training loss."""
    reading = {**SMALL, "num_classes": 20}
    own = {"class_thresholds": [0.5] * 3, "class_order": [0, 1, 2], "reading_order_config": reading, "num_labels": 3}
    values = {name: value for name, value in HYBRID.items() if name != "auxiliary_loss"}
    values["backbone_config"] = AutoConfig.for_model(**HGNET)
    return AutoModelForObjectDetection.from_config(AutoConfig.for_model("pp_doclayout_v2", **values, **own))


@pytest.mark.parametrize(
    ("make", "lacks"),
    [
        (owl, r"an argument labels of forward; a forward that takes pixel_values .* \(TypeError: .*'input_ids'\)$"),
        (
            lambda: ViTForImageClassification(ViTConfig(**SMALL, image_size=384)),
            f"{LOGITS}; {BOXES}; a forward that takes .* labels".format(r"\(1, 2\)", "none"),
        ),
        (layout, r"a forward that takes .* in train mode \(ValueError: .* does not support training\)$"),
    ],
    ids=["owlvit", "vit classifier", "pp_doclayout_v2"],
)
def test_models_of_transformers_that_are_no_trainable_detr(make, lacks):
    model = make()
    with pytest.raises(NotADetrError, match=f"^{type(model).__name__} cannot be trained .*; it lacks {lacks}"):
        wrap(model)


@pytest.mark.parametrize(
    "backbone",
    [
        ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"]),
        SwinConfig(
            embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], out_features=["stage2", "stage3", "stage4"]
        ),
    ],
    ids=["convnext", "swin"],
)
def test_another_backbone_of_patches_is_a_pyramid_of_stride_32(backbone):
    """Its patch_size of 4 is where the pyramid begins; RT-DETR's encoder needs sides that all strides divide."""
    own = {"backbone_config": backbone, "encoder_in_channels": [16, 32, 64], "num_labels": 3}
    detector = wrap(AutoModelForObjectDetection.from_config(RTDetrConfig(**{**HYBRID, **own})))
    assert detector.size_divisibility == 32
    losses = detector.train().supervised_losses(make_labeled(((100, 90), (70, 96))))
    assert all(loss.isfinite() for loss in losses.values())
    detector = wrap(AutoModelForObjectDetection.from_config(DetrConfig(**{**DETR, **own})))
    assert (detector.size_divisibility, detector.any_size) == (32, True)
