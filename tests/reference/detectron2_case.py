"""The contract suite's Detectron2 detectors; import it only where Detectron2 is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from sed.core.structures import Detections, Images, LabeledBatch
from sed.d2.config import load_config, stock_config
from sed.d2.detr import ScaleConsistentDETR
from sed.detectors.base import Detector, Features
from tests.reference.frameworks import AnchorCase, results_of
from tests.reference.transformers_case import TransformersCase, build_member

ALL = (
    "MODEL.DEVICE cpu MODEL.ROI_HEADS.NUM_CLASSES 3 MODEL.RETINANET.NUM_CLASSES 3 MODEL.FPN.OUT_CHANNELS 16 "
    "MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.RPN.PRE_NMS_TOPK_TRAIN 100 MODEL.RPN.PRE_NMS_TOPK_TEST 100 "
    "MODEL.RPN.POST_NMS_TOPK_TRAIN 50 MODEL.RPN.POST_NMS_TOPK_TEST 50 MODEL.RPN.BATCH_SIZE_PER_IMAGE 32 "
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 32 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 "
    "MODEL.RETINANET.SCORE_THRESH_TEST 0.0 "
)
# As Detectron2's own weights want it: BGR, and the first convolution holds the standard deviation
CAFFE = "INPUT.FORMAT BGR MODEL.PIXEL_MEAN [103.53,116.28,123.675] MODEL.PIXEL_STD [1.0,1.0,1.0] "
R18 = "MODEL.RESNETS.DEPTH 18 "
TIMM = "MODEL.BACKBONE.NAME timm:test_efficientnet "
OVERRIDES = {
    "d2_small_rcnn": "MODEL.BACKBONE.NAME build_small_fpn_backbone MODEL.RESNETS.NORM GN MODEL.BACKBONE.FREEZE_AT 0 "
    "MODEL.ANCHOR_GENERATOR.SIZES [[12,16],[24,32],[48,64],[96,128]] MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS [[1.0]] "
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 4",
    "d2_fpn_rcnn": CAFFE + R18,
    "d2_fpn_rcnn_agnostic": CAFFE + R18 + "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True",
    "d2_c4_rcnn": CAFFE + "MODEL.BACKBONE.NAME build_resnet_backbone MODEL.ROI_HEADS.NAME Res5ROIHeads "
    "MODEL.RESNETS.OUT_FEATURES ['res4'] MODEL.RPN.IN_FEATURES ['res4'] MODEL.ROI_HEADS.IN_FEATURES ['res4'] "
    "MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16 MODEL.RESNETS.WIDTH_PER_GROUP 4 "
    "MODEL.ANCHOR_GENERATOR.SIZES [[16,32,64]]",
    "d2_retinanet": "MODEL.META_ARCHITECTURE ScaleConsistentRetinaNet " + CAFFE + R18,
    "d2_timm_rcnn": TIMM + "MODEL.FPN.NORM GN MODEL.BACKBONE.FREEZE_AT 1",
    "d2_timm_retinanet": "MODEL.META_ARCHITECTURE ScaleConsistentRetinaNet MODEL.RESNETS.NORM BN "
    "MODEL.BACKBONE.FREEZE_AT 0 " + TIMM,
}


LOSSES = {  # two-stage or not: Detectron2's names -> ours
    True: {
        "loss_rpn_cls": "dense_cls",
        "loss_rpn_loc": "dense_box",
        "loss_cls": "region_cls",
        "loss_box_reg": "region_box",
    },
    False: {"loss_cls": "dense_cls", "loss_box_reg": "dense_box"},
}


class Detectron2Case(AnchorCase):
    """A config of `OVERRIDES`; its stock twin is Detectron2's own class, built from `stock_config`."""

    anchor_error = 1e-3

    def __init__(self, name: str) -> None:
        super().__init__(name, two_stage="rcnn" in name)
        self.box_rows = 1 if "agnostic" in name else 3

    def config(self) -> Any:
        return load_config(None, (ALL + OVERRIDES[self.name]).split())

    def build(self) -> Detector:
        cfg = self.config()
        detector = build_model(cfg)
        if cfg.MODEL.PIXEL_STD[0] == 1.0:
            with torch.no_grad():
                stem = [p for name, p in detector.named_parameters() if name.endswith("stem.conv1.weight")]
                stem[0].div_(57.0)
        return detector

    def anchors(self, detector: Any, features: Features) -> Tensor:
        owner, names = self._dense_head(detector)
        return Boxes.cat(owner.anchor_generator([features.maps[name] for name in names])).tensor

    def own_boxes(self, detector: Any, features: Features) -> Tensor:
        stock = self._stock(detector).eval()
        if self.two_stage:
            with results_of(stock.proposal_generator, "_decode_proposals") as decoded:
                self._first_stage(stock, features)
            return torch.cat(decoded[0], dim=1)
        predictions = stock.head([features.maps[name] for name in stock.head_in_features])
        deltas = torch.cat(stock._transpose_dense_predictions(predictions, [stock.num_classes, 4])[1], dim=1)
        anchors = self.anchors(detector, features)
        return torch.stack([stock.box2box_transform.apply_deltas(d, anchors) for d in deltas])

    def own_proposals(self, detector: Any, features: Features) -> list[Tensor]:
        return [p.proposal_boxes.tensor for p in self._first_stage(self._stock(detector).eval(), features)]

    def own_regions(self, detector: Any, features: Features, proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        stock = self._stock(detector).eval()
        rows = [
            Instances(size, proposal_boxes=Boxes(p)) for size, p in zip(features.images.sizes, proposals, strict=True)
        ]
        with results_of(stock.roi_heads.box_predictor, "forward") as outputs:
            stock.roi_heads(self._image_list(features), features.maps, rows)
        scores, deltas = outputs[0]
        return scores.softmax(1), deltas.view(len(deltas), -1, 4)

    def stock_losses(self, detector: Any, batch: LabeledBatch, seed: int) -> dict[str, Tensor]:
        rows = self._inputs(batch.images)
        for row, t in zip(rows, batch.targets, strict=True):
            row["instances"] = Instances((row["height"], row["width"]))
            row["instances"].gt_boxes, row["instances"].gt_classes = Boxes(t.boxes.clone()), t.classes.clone()
        stock = self._stock(detector).train()
        torch.manual_seed(seed)
        with EventStorage():
            losses = stock(rows)
        return {LOSSES[self.two_stage][name]: loss for name, loss in losses.items()}

    def stock_detections(self, detector: Any, images: Images) -> list[Detections]:
        with torch.no_grad():
            rows = [row["instances"] for row in self._stock(detector).eval()(self._inputs(images))]
        return [Detections(r.pred_boxes.tensor, r.scores, r.pred_classes) for r in rows]

    def exported(self, folder: Path) -> tuple[Detector, nn.Module]:
        detector = self.make()
        torch.save({"model": detector.plain_state_dict()}, folder / "model_final.pth")
        (folder / "config.yaml").write_text(stock_config(self.config(), str(folder / "model_final.pth")).dump())
        cfg = get_cfg()
        cfg.merge_from_file(str(folder / "config.yaml"))  # as demo.py does
        stock = build_model(cfg)
        missing = DetectionCheckpointer(stock).load(cfg.MODEL.WEIGHTS)
        assert "__unmatched" not in missing
        return detector, stock

    def _stock(self, detector: Detector) -> nn.Module:
        stock = build_model(stock_config(self.config(), ""))
        assert type(stock).__name__ == ("GeneralizedRCNN" if self.two_stage else "RetinaNet")
        stock.load_state_dict(detector.plain_state_dict(), strict=True)
        return stock

    def _first_stage(self, stock: Any, features: Features) -> list[Instances]:
        return stock.proposal_generator(self._image_list(features), features.maps, None)[0]

    def _dense_head(self, detector: Any) -> tuple[Any, list[str]]:
        if self.two_stage:
            return detector.proposal_generator, detector.proposal_generator.in_features
        return detector, detector.head_in_features

    def _inputs(self, images: Images) -> list[dict[str, Any]]:
        """Detectron2's list of dicts, in the channel order of the config."""
        order = [0, 1, 2] if self.config().INPUT.FORMAT == "RGB" else [2, 1, 0]
        rows = zip(images.tensor, images.sizes, strict=True)
        return [{"image": image[order, :h, :w], "height": h, "width": w} for image, (h, w) in rows]

    def _image_list(self, features: Features) -> ImageList:
        return ImageList(features.images.tensor, list(features.images.sizes))


class Detectron2QueryCase(TransformersCase):
    """A member of the DETR family as Detectron2's meta-architecture, its config in BGR."""

    def build(self, **config: Any) -> Detector:
        mean, std = (values[::-1] for values in self.pixels())
        return ScaleConsistentDETR(
            model=build_member(self.key, **config),
            pixel_mean=mean,
            pixel_std=std,
            input_format="BGR",
            detections=self.member.kept,
        )
