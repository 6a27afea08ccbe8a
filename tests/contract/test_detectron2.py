"""What is particular to Detectron2's detectors: pixel formats, unsupported parts, and subclasses of the user."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2", reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)")

import torch
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils.events import EventStorage, get_event_storage

from sed.d2 import ScaleConsistentRCNN, add_sed_config
from sed.d2.config import load_config, stock_config
from sed.methods.base import Schedule
from sed.methods.build import build_method
from sed.options.methods import SEDOptions
from tests.reference.detectors import make_images, make_labeled, make_unlabeled
from tests.reference.detectron2_case import ALL, OVERRIDES, Detectron2Case


def build(name="d2_small_rcnn", *overrides):
    torch.manual_seed(0)
    return build_model(load_config(None, [*(ALL + OVERRIDES[name]).split(), *overrides]))


def test_rgb_and_bgr_are_the_same_picture():
    """With the mean and the first convolution turned around, the channel order changes nothing."""
    rgb = Detectron2Case("d2_small_rcnn").make().eval()
    statistics = ["MODEL.PIXEL_MEAN", "[103.53,116.28,123.675]", "MODEL.PIXEL_STD", "[57.375,57.12,58.395]"]
    bgr = build("d2_small_rcnn", "INPUT.FORMAT", "BGR", *statistics).eval()
    state = rgb.plain_state_dict()
    bgr.load_state_dict({**state, "backbone.body.stem.0.weight": state["backbone.body.stem.0.weight"].flip(1)})
    images = make_images().pad_to_multiple(rgb.size_divisibility)
    pictures, mirrored = rgb.dense(rgb.encode(images)), bgr.dense(bgr.encode(images))
    for a, b in zip(pictures.levels, mirrored.levels, strict=True):
        torch.testing.assert_close(a.logits, b.logits, atol=1e-3, rtol=1e-3)
    losses = []
    for detector in (rgb, bgr):
        torch.manual_seed(4)
        losses.append(detector.train().supervised_losses(make_labeled()))
    for name, loss in losses[0].items():
        assert loss.item() == pytest.approx(losses[1][name].item(), rel=1e-3)
    one, other = (detector.eval().detect(make_images())[0] for detector in (rgb, bgr))
    torch.testing.assert_close(one.scores[:5], other.scores[:5], atol=1e-3, rtol=1e-3)


def test_the_padding_is_what_detectron2_pads_with():
    """Our normalised batch is the stock model's own, bit by bit."""
    for name in ("d2_small_rcnn", "d2_fpn_rcnn"):
        case = Detectron2Case(name)
        detector, images = case.make(), make_images()
        stock = build_model(stock_config(case.config(), ""))
        own = stock.preprocess_image(case._inputs(images)).tensor
        assert torch.equal(detector.encode(images).images.tensor, own)


@pytest.mark.parametrize("name", ["d2_small_rcnn", "d2_c4_rcnn"])
def test_losses_are_logged_in_the_storage_that_is_there(name):
    """Inside Detectron2's trainers its scalars reach the trainer's storage; outside nothing is needed or left."""
    detector = build(name).train()
    detector.supervised_losses(make_labeled())
    with pytest.raises(AssertionError):
        get_event_storage()
    with EventStorage() as storage:
        detector.supervised_losses(make_labeled())
    assert {"rpn/num_pos_anchors", "roi_head/num_fg_samples", "fast_rcnn/cls_accuracy"} <= set(storage.latest())


SIGMOID = [("d2_fpn_rcnn", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True", "USE_SIGMOID_CE: .* softmax")]
if "USE_SIGMOID_CE" not in get_cfg().MODEL.ROI_BOX_HEAD:  # version 0.6 cannot ask for it
    SIGMOID = []


class TestParts:
    """Parts that the paper's terms cannot be computed from are refused when the model is built."""

    @pytest.mark.parametrize(
        ("name", "overrides", "message"),
        [
            ("d2_fpn_rcnn_agnostic", "MODEL.ROI_HEADS.NAME CascadeROIHeads", "CascadeROIHeads: .* one box head"),
            ("d2_fpn_rcnn", "MODEL.PROPOSAL_GENERATOR.NAME PrecomputedProposals", "PrecomputedProposals: .* an RPN"),
            *SIGMOID,
        ],
    )
    def test_a_part_that_does_not_fit_is_named(self, name, overrides, message):
        with pytest.raises(TypeError, match=message):
            build(name, *overrides.split())

    @pytest.mark.parametrize("key", ["MODEL.MASK_ON", "MODEL.KEYPOINT_ON"])
    def test_masks_and_keypoints_are_refused(self, key):
        """Our batches hold boxes only. `load_config` raises first; this check is for configs of other projects."""
        cfg = load_config(None, (ALL + OVERRIDES["d2_fpn_rcnn"]).split())
        node, leaf = cfg.MODEL, key.split(".")[1]
        node[leaf] = True
        with pytest.raises(TypeError, match=rf"{key}: .* only boxes; set it to False"):
            build_model(cfg)


@META_ARCH_REGISTRY.register()
class RCNNWithAnAuxiliaryLoss(ScaleConsistentRCNN):
    """What a user might write."""

    def forward(self, batched_inputs):
        outputs = super().forward(batched_inputs)
        return {**outputs, "loss_auxiliary": self.pixel_mean.sum() * 0 + 0.5} if self.training else outputs


def test_a_users_subclass_keeps_the_names_of_its_losses():
    detector = build("d2_small_rcnn", "MODEL.META_ARCHITECTURE", "RCNNWithAnAuxiliaryLoss").train()
    assert type(detector) is RCNNWithAnAuxiliaryLoss
    method = build_method(
        "sed", detector, Schedule(burn_in=2, max_iter=10, first_drop=8), SEDOptions(regions_per_view=8)
    ).train()
    losses = method(make_labeled(), make_unlabeled(), 5)
    assert losses["sup/loss_auxiliary"] == 0.5
    assert {"sup/dense_cls", "sup/region_box", "scale/dense_cls", "distill/region_cls"} <= set(losses)
    assert detector.eval().detect(make_images())


def test_the_meta_architectures_stand_in_a_detectron2_project():
    """`get_cfg(); add_sed_config(cfg)`, as Detectron2's projects do, without our config files."""
    cfg = get_cfg()
    add_sed_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "ScaleConsistentRCNN", "cpu"
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 16, 4  # Detectron2's default is C4
    detector = build_model(cfg).train()
    assert (detector.input_format, detector.size_divisibility, detector.num_classes) == ("BGR", 16, 80)
    losses = detector.supervised_losses(make_labeled())
    assert all(torch.isfinite(loss) for loss in losses.values())
