"""Data sets and weights in the published layouts, small; and a ResNet that is as small."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import WeightsEnum, resnet

from dmt.models import build_model
from tests.reference.dmt_folders import make_cifar10, make_cityscapes, make_voc
from tests.reference.dmt_models import coco_names


def narrow_resnet(weights: None = None, **options) -> resnet.ResNet:
    """A ResNet with one block a stage, an eighth as wide inside, and ResNet-101's 2048 channels at the end."""
    return resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], width_per_group=8, **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Data of all kinds in one root, and a COCO file."""
    root = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "resnet101", narrow_resnet)
        make_voc(root)
        make_cityscapes(root)
        make_cifar10(root, patch, per_batch=20, test=10)
        torch.manual_seed(0)
        torch.save(coco_names(build_model("deeplab_v2", 21)), root / "coco.pth")
        imagenet = narrow_resnet().state_dict()
        patch.setattr(WeightsEnum, "get_state_dict", lambda self, *args, **kwargs: imagenet)
        yield root
