"""Overrides that make any config of `configs/` small enough for a test, and the engines that a test can run on."""

from importlib.util import find_spec

import pytest

# No ResNet-50, no weights, few pixels
SMALL = (
    "MODEL.WEIGHTS '' MODEL.BACKBONE.FREEZE_AT 0 MODEL.RESNETS.NORM GN MODEL.RESNETS.DEPTH 18 "
    "MODEL.ROI_HEADS.NUM_CLASSES 5 MODEL.FPN.OUT_CHANNELS 32 MODEL.ROI_BOX_HEAD.FC_DIM 32 "
    "INPUT.MIN_SIZE_TRAIN (96,128) INPUT.MIN_SIZE_TEST 128 DATALOADER.NUM_WORKERS 0 SED.REGIONS_PER_VIEW 16 "
    "SEMI.IMS_PER_BATCH_LABELED 2 SEMI.IMS_PER_BATCH_UNLABELED 2"
)

NEEDS_DETECTRON2 = pytest.mark.skipif(
    find_spec("detectron2") is None,
    reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)",
)
ENGINES = ["torchvision", pytest.param("detectron2", marks=NEEDS_DETECTRON2)]
