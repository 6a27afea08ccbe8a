"""What a network begins with: ImageNet, the COCO weights that DMT's authors begin with, or any local file.

A file is read with `weights_only=True`: a file from someone else runs no code. These names are understood: this
project's own, torchvision's ResNet, the COCO file's (`layer5.conv2d_list.0.weight`) and those of the authors' own
checkpoints (`classifier.0.convs.0.weight`).
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from dmt.models import DeepLabV2
from sed.data.torch_files import other_kinds
from sed.detectors.weights import WeightsError, check_complete, imagenet_resnet, read_state_dict
from sed.runtime.checkpoint_files import CheckpointError, read, tensors_of

log = logging.getLogger("sed.dmt")

COCO_URL = "http://vllab1.ucmerced.edu/~whung/adv-semi-seg/resnet101COCO-41f33a49.pth"
_RENAMED = (
    (r"^(conv1|bn1|layer[1-4])\.", r"backbone.\1."),
    (r"^layer5\.conv2d_list\.", "head.convs."),
    (r"^classifier\.0\.convs\.", "head.convs."),
)
_NONE = torch.empty(0, 0, 0)
_HEADS = ("head.", "classifier.")  # of DeepLabV2, of the others


def load_init(model: nn.Module, init: str) -> None:
    """Initialise `model` in place.

    Everything below the classifier must be in the file. The classifier is taken too where its shapes fit (the COCO file
    has VOC's 21 classes); else it stays fresh, which is logged.

    Args:
        model: what `build_model` made.
        init: "" (nothing), "imagenet" (torchvision's IMAGENET1K_V1, deeplab_v2 only) or a local file.

    Raises:
        WeightsError: offline and not cached; no such file; a file that does not fit.
    """
    if not init:
        return
    if init == "imagenet":
        if not isinstance(model, DeepLabV2):
            raise WeightsError(f"MODEL.INIT imagenet: there are none for {type(model).__name__}; set it to ''")
        state = imagenet_resnet(model.depth, key="MODEL.INIT")
    elif not Path(init).exists():
        raise WeightsError(
            f"{init}: no such weights file. MODEL.INIT takes '' (from scratch), imagenet, a local file, or coco: then "
            f"MODEL.INIT_FILE is the file that lies at {COCO_URL}"
        )
    else:
        state = read_state_dict(init)
    _load(model, state, init)


def load_whole(model: nn.Module, path: str | Path) -> None:
    """Fill `model` with a file that holds all of it: one that a run left, bare or under a usual key.

    Raises:
        CheckpointError: for a file that cannot be read, or another model's.
    """
    state, own = tensors_of(read(path), path), model.state_dict()
    wrong = [name for name in {**own, **state} if own.get(name, _NONE).shape != state.get(name, _NONE).shape]
    if wrong or (odd := other_kinds(own, state)):
        first = f"{len(wrong)} tensors differ, the first: {wrong[0]}" if wrong else odd
        raise CheckpointError(f"{path}: of another model ({first}); use the config it was made with")
    model.load_state_dict(state)


def _load(model: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    if isinstance(model, DeepLabV2):
        state = {_rename(name): value for name, value in state.items()}
    own = model.state_dict()
    body = {name: value for name, value in own.items() if not name.startswith(_HEADS)}
    check_complete(body, state, origin, type(model).__name__)
    head = {name: value for name, value in own.items() if name.startswith(_HEADS)}
    fits = all(name in state and state[name].shape == value.shape for name, value in head.items())
    taken = {name: value for name, value in state.items() if name in body or (fits and name in head)}
    model.load_state_dict(taken, strict=False)  # a file of 2018 has no num_batches_tracked
    log.info(
        "%s: %d tensors from %s, %d of its tensors unused; the classifier %s",
        type(model).__name__,
        len(taken),
        origin,
        len(state) - len(taken),
        "too" if fits else "starts fresh",
    )


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name
