"""A trained teacher with a timm backbone in plain torchvision and timm: nothing of this project is imported.

    python examples/load_timm.py output/custom_small photo.jpg

The folder is that of a run with ENGINE torchvision of configs/custom_small.yaml, or of any Faster R-CNN with a
MODEL.BACKBONE.NAME timm:...; it has model_final.pth and config.yaml. Prints a line a detection: class number from 0,
score, box in pixels.
"""

import argparse
from collections import OrderedDict
from pathlib import Path

import timm
import torch
import yaml
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_image
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool


class TimmFPN(nn.Module):
    """timm's maps of strides 4 to 32 under torchvision's pyramid."""

    def __init__(self, name: str, frozen_norm: bool, channels: int, norm: bool) -> None:
        super().__init__()
        reductions = timm.create_model(name, features_only=True).feature_info.reduction()
        indices = [reductions.index(stride) for stride in (4, 8, 16, 32)]
        self.body = timm.create_model(name, features_only=True, out_indices=indices)
        if frozen_norm:
            self.body = timm.layers.freeze_batch_norm_2d(self.body)
        groups = (lambda c: nn.GroupNorm(8 if c < 64 else 32, c)) if norm else None
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), channels, LastLevelMaxPool(), groups)
        self.out_channels = channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Pixels -> the pyramid."""
        return self.fpn(OrderedDict((str(i), m) for i, m in enumerate(self.body(x))))


def build(cfg: dict) -> FasterRCNN:
    """The model that a run's config.yaml describes, with fresh weights."""
    m, test = cfg["MODEL"], cfg["INPUT"]
    ratios, head = m["ANCHOR_GENERATOR"]["ASPECT_RATIOS"], m["ROI_BOX_HEAD"]
    sizes = tuple(map(tuple, m["ANCHOR_GENERATOR"]["SIZES"]))
    channels, side = m["FPN"]["OUT_CHANNELS"], head["POOLER_RESOLUTION"]
    name, frozen = m["BACKBONE"]["NAME"].removeprefix("timm:"), m["RESNETS"]["NORM"] == "FrozenBN"
    return FasterRCNN(
        TimmFPN(name, frozen, channels, bool(m["FPN"]["NORM"])),
        min_size=test["MIN_SIZE_TEST"],
        max_size=test["MAX_SIZE_TEST"],
        image_mean=[v / 255 for v in m["PIXEL_MEAN"]],
        image_std=[v / 255 for v in m["PIXEL_STD"]],
        rpn_anchor_generator=AnchorGenerator(sizes, tuple(map(tuple, ratios if len(ratios) > 1 else ratios * 5))),
        rpn_nms_thresh=m["RPN"]["NMS_THRESH"],
        rpn_pre_nms_top_n_test=m["RPN"]["PRE_NMS_TOPK_TEST"],
        rpn_post_nms_top_n_test=m["RPN"]["POST_NMS_TOPK_TEST"],
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], side, head["POOLER_SAMPLING_RATIO"]),
        box_head=TwoMLPHead(channels * side**2, head["FC_DIM"]),
        box_predictor=FastRCNNPredictor(head["FC_DIM"], m["ROI_HEADS"]["NUM_CLASSES"] + 1),
        box_score_thresh=m["ROI_HEADS"]["SCORE_THRESH_TEST"],
        box_nms_thresh=m["ROI_HEADS"]["NMS_THRESH_TEST"],
        box_detections_per_img=cfg["TEST"]["DETECTIONS_PER_IMAGE"],
    )


def main() -> None:
    """Load the teacher and print what it finds in an image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="OUTPUT_DIR of the run")
    parser.add_argument("image", type=Path)
    args = parser.parse_args()
    model = build(yaml.safe_load((args.folder / "config.yaml").read_text())).eval()
    weights = torch.load(args.folder / "model_final.pth", weights_only=True)
    if "model" in weights:
        raise SystemExit(
            f"{args.folder}: a run of Detectron2, whose names are not torchvision's; train with ENGINE torchvision"
        )
    model.load_state_dict(weights)
    with torch.no_grad():
        found = model([decode_image(str(args.image), ImageReadMode.RGB) / 255])[0]
    for label, score, box in zip(found["labels"], found["scores"], found["boxes"], strict=True):
        print(f"{int(label) - 1} {score:.3f} {[round(v, 1) for v in box.tolist()]}")


if __name__ == "__main__":
    main()
