"""Which detectors `ssod export` writes, and how far onnxruntime and the model are apart: the table of docs/export.md.

    python -m tests.tools.bench_export

Random weights; three random images of any size, or of one size where the first does not go.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from sed.core.structures import Images
from sed.detectors import build_detector
from sed.detectors.onnx_file import ExportError, save_onnx
from tests.reference.detectors import SPECS
from tests.reference.transformers_case import FAMILY, TransformersCase

LITE0 = dataclasses.replace(SPECS["timm_rcnn"], backbone="timm:tf_efficientnet_lite0")
MADE = {
    **SPECS,
    "resnet50_rcnn": dataclasses.replace(SPECS["resnet_rcnn"], depth=50),
    "lite0_rcnn": LITE0,
    "lite0_retinanet": dataclasses.replace(LITE0, architecture="retinanet", freeze_at=0),
}
NAMES = ("small_rcnn", "resnet_rcnn", "resnet50_rcnn", "lite0_rcnn", "resnet_retinanet", "lite0_retinanet", *FAMILY)


def make(name):
    """A detector of this name with random weights whose scores are not all the same."""
    torch.manual_seed(0)
    if name not in MADE:
        return TransformersCase(name).make().eval()
    detector = build_detector(MADE[name]).eval()
    if "retinanet" in name:
        spread_scores(detector)
    return detector


def spread_scores(detector):
    """RetinaNet's convolutions begin with 0.01 and its scores are all 0.01: give its outputs a deviation of 1."""
    head = detector.model.head
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    with torch.no_grad():
        maps = detector.encode(Images.from_list([noise((128, 128)).permute(2, 0, 1)])).maps
        found = head(list(maps.values()))
        head.classification_head.cls_logits.weight /= found["cls_logits"].std()
        head.regression_head.bbox_reg.weight /= found["bbox_regression"].std() / 0.3


def noise(size, seed=5):
    return torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def measure(names=NAMES, side=320):
    """Print a row for each detector; `side` of the images, pixels."""
    print("| detector | image sizes | boxes, pixels | scores |\n| --- | --- | --- | --- |")
    for name in names:
        detector, row = make(name), "no | | |"
        for size in (None, (side, side)):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    found = save_onnx(detector, Path(folder) / "model.onnx", "abc", "none", 0.05, size, side)
                except ExportError as error:
                    print(error, file=sys.stderr)
                    continue
            row = f"{'--size' if size else 'any'} | {found.pixels:.1e} | {found.scores:.1e} |"
            break
        print(f"| {name} | {row}", flush=True)


if __name__ == "__main__":
    measure()
