"""Builds detectors of the DETR family from a config of `transformers`, and loads their pretrained weights.

The config is a config.json file, a folder that holds one, or a name on the Hugging Face hub. The model's class follows
from its `model_type`, so that every member of the family can be built.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sed.data.torch_files import finite
from sed.detectors.detr import QueryDetector
from sed.detectors.timm_backbone import frozen_weights
from sed.detectors.weights import (
    WeightsError,
    check_complete,
    imagenet_resnet,
    imagenet_timm,
    load_body,
    no_progress_bars,
    read_state_dict,
)
from sed.options.model import Backbone
from sed.options.solver import Test

log = logging.getLogger(__name__)
CONFIG_KEY = "MODEL.DETR.CONFIG"
# transformers' `resnet` by (layer_type, depths) -> depth of the equal ResNet of torchvision; and how its names map
RESNETS = {("bottleneck", (3, 4, 6, 3)): 50, ("basic", (2, 2, 2, 2)): 18}
TORCHVISION_NAMES = (
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"^layer(\d)\.(\d+)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}."),
    (r"\.conv(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.convolution."),
    (r"\.bn(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.normalization."),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
)


def build_detr(
    source: str,
    num_classes: int,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    detections: int = Test.detections_per_image,
    freeze_at: int = Backbone.freeze_at,
) -> QueryDetector:
    """A `QueryDetector` with fresh weights, of the model that `source` describes.

    Args:
        source: see `build_model`, as `num_classes` and `freeze_at`.
        num_classes: K.
        pixel_mean: RGB, 0..255.
        pixel_std: RGB, 0..255.
        detections: kept an image.
        freeze_at: of a ResNet or a network of timm.

    Raises:
        ValueError: as `build_model`.
        NotADetrError: for a model that lacks what the adapter needs.
    """
    return QueryDetector(build_model(source, num_classes, freeze_at), pixel_mean, pixel_std, detections)


def build_model(source: str, num_classes: int, freeze_at: int = Backbone.freeze_at) -> nn.Module:
    """The `transformers` model that `source` describes, with fresh weights.

    Args:
        source: a config.json, a folder with one, or a name on the hub.
        num_classes: K; it replaces the number of the config.
        freeze_at: of a ResNet (model_type resnet) or a network of timm (model_type timm_backbone): 0 freezes nothing, 1
            the stem, 2 the stem and the first stage, ... Other backbones keep what transformers freezes.

    Raises:
        ValueError: for a source that cannot be read, or is not the config of a detector.
    """
    config = read_config(source)
    from transformers import AutoModelForObjectDetection

    if config.num_labels != num_classes:
        config.num_labels = num_classes
    for name, value in (("anchor_image_size", None), ("use_pretrained_backbone", False)):
        if getattr(config, name, None):  # RT-DETR: anchors for one input size only; no download of backbone weights
            setattr(config, name, value)
    try:
        model = AutoModelForObjectDetection.from_config(config)
    except Exception as error:  # another kind of model, a backbone whose package is missing, sizes that cannot be
        raise ValueError(f"{CONFIG_KEY} {source}: {_line(error)}") from None
    _freeze(model, freeze_at)
    return model


def _freeze(model: nn.Module, freeze_at: int) -> None:
    """Freeze the stem and stages of a ResNet or a network of timm up to `freeze_at`, and train the others.

    transformers 4.57 to 5.23 freezes all stages where it is meant to leave three trainable: it looks for "stage.1" in
    names that contain "stages.1", and for "layer2" in any network of timm.
    """
    for backbone in _resnets(model):
        for name, parameter in backbone.named_parameters():
            stage = re.match(r"encoder\.stages\.(\d)", name)
            parameter.requires_grad_((int(stage[1]) + 2 if stage else 1) > freeze_at)
    for name, body in _timm_networks(model):
        body.requires_grad_(True)
        for parameter in frozen_weights(body, name, freeze_at):
            parameter.requires_grad_(False)


def _resnets(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__ == "ResNetBackbone"]


def _timm_networks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Timm's name of each network of timm, and the network."""
    named = getattr(model.config, "backbone_config", None) or model.config
    bodies = [m for m in model.modules() if hasattr(getattr(m, "feature_info", None), "reduction")]
    return [(str(named.backbone), body) for body in bodies]


def read_config(source: str) -> Any:
    """The `transformers` config of a file, a folder or a name on the hub.

    Raises:
        ValueError: for a missing or unreadable config, an unknown name, offline one that is not in the cache; without
            transformers.
    """
    if find_spec("transformers") is None:
        raise ValueError(
            f"{CONFIG_KEY}: detectors of the DETR family are those of transformers: pip install 'ssod[detr]'"
        )
    from transformers import AutoConfig

    expected = "a transformers config.json, a folder with one, or a name on the Hugging Face hub"
    if not source:
        raise ValueError(f"{CONFIG_KEY} is empty; ScaleConsistentDETR needs {expected}")
    if source.endswith(".json"):
        try:
            values = json.loads(Path(source).read_text())
            return AutoConfig.for_model(values.pop("model_type"), **values)
        except FileNotFoundError:
            raise ValueError(f"{CONFIG_KEY} {source}: no such file in {Path.cwd()}; expected {expected}") from None
        except KeyError:
            raise ValueError(f"{CONFIG_KEY} {source}: has no model_type; expected {expected}") from None
        except Exception as error:  # of json and of whatever class the file names
            raise ValueError(f"{CONFIG_KEY} {source}: not a config of transformers: {_line(error)}") from None
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise ValueError(f"{CONFIG_KEY} {source}: cannot be read ({_line(error)}); expected {expected}") from None


def _line(error: Exception) -> str:
    """An error of transformers, often a page, as one line."""
    kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())[:300]


# ---------------------------------------------------------------------------------------------- weights
def load_detr_weights(detector: QueryDetector, weights: str, source: str) -> None:
    """Load the weights that MODEL.WEIGHTS names into `detector`, in place.

    Args:
        detector: built by `build_detr` from `source`.
        weights: "" (none), "imagenet" (into a ResNet torchvision's, into a network of timm its own), "coco" (the
            weights that `source` itself holds), a folder of transformers, or a file as `plain_state_dict` names it.
        source: MODEL.DETR.CONFIG.

    Raises:
        WeightsError: for weights that cannot be loaded, do not fit, or were trained with other mean and std of pixels.
    """
    if not weights:
        return
    if weights == "imagenet":
        _load_imagenet(detector)
    elif weights == "coco" or Path(weights).is_dir():
        _load_folder(detector, source if weights == "coco" else weights)
    else:
        _load_file(detector, weights)


def _load_imagenet(detector: QueryDetector) -> None:
    for module in _resnets(detector.model):
        depth = RESNETS.get((module.config.layer_type, tuple(module.config.depths)))
        if depth is not None:
            state = imagenet_resnet(depth, TORCHVISION_NAMES)
            check_complete(module.state_dict(), state, "MODEL.WEIGHTS imagenet", "backbone")
            module.load_state_dict(state, strict=False)
            log.info("backbone: %d tensors from torchvision's ResNet-%d", len(module.state_dict()), depth)
            return
    for name, body in _timm_networks(detector.model):
        load_body(body, *imagenet_timm(name, detector.pixel_mean, detector.pixel_std))
        return
    raise WeightsError(
        f"MODEL.WEIGHTS imagenet: {type(detector.model).__name__} has no ResNet-18 or -50 (model_type resnet) and no "
        "network of timm (timm_backbone) as its backbone; set MODEL.WEIGHTS to coco (those of MODEL.DETR.CONFIG), a "
        "folder, a file or '' (from scratch)"
    )


def _load_folder(detector: QueryDetector, source: str) -> None:
    from transformers import AutoModelForObjectDetection

    if source.endswith(".json"):
        raise WeightsError(
            f"MODEL.WEIGHTS coco: {CONFIG_KEY} {source} is a config alone, without weights; name a folder or a model "
            "of the hub, or set MODEL.WEIGHTS to imagenet, a folder, a file or '' (from scratch)"
        )
    try:
        with no_progress_bars():
            model, found = AutoModelForObjectDetection.from_pretrained(
                source,
                config=detector.model.config,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                trust_remote_code=False,
            )
    except Exception as error:  # the readers raise whatever a strange file leads them to
        raise WeightsError(f"MODEL.WEIGHTS: the weights of {source} cannot be loaded: {_line(error)}") from None
    if bad := next((name for name, value in model.state_dict().items() if not finite(value)), None):
        raise WeightsError(f"{source}: {bad} holds NaN or infinite values; such a model finds nothing")
    fresh = {str(row[0]) for row in found["mismatched_keys"]}
    missing = sorted(set(found["missing_keys"]) - fresh)
    if missing:
        raise WeightsError(f"{source}: {len(missing)} tensors of {type(model).__name__} are missing: {missing[:3]}")
    _compare_pixels(detector, source)
    detector.model.load_state_dict(model.state_dict())
    log.info(
        "detector: the weights of %s; %d tensors start fresh (other classes) %s", source, len(fresh), sorted(fresh)
    )


def _compare_pixels(detector: QueryDetector, source: str) -> None:
    """Raise WeightsError where the image processor of `source` has another mean and std of pixels."""
    from transformers import AutoImageProcessor

    try:
        own = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError):  # it has no processor
        return
    scale = 255.0 if own.do_rescale else 1.0
    mean = [v * scale for v in own.image_mean] if own.do_normalize else [0.0] * 3
    std = [v * scale for v in own.image_std] if own.do_normalize else [scale] * 3
    here = torch.cat([detector.pixel_mean.flatten(), detector.pixel_std.flatten()]).cpu()
    if not torch.allclose(here, torch.tensor(mean + std), atol=0.01):
        raise WeightsError(
            f"{source} was trained with another mean and std of pixels; set MODEL.PIXEL_MEAN "
            f"{[round(v, 3) for v in mean]} MODEL.PIXEL_STD {[round(v, 3) for v in std]}"
        )


def _load_file(detector: QueryDetector, path: str) -> None:
    state, own = read_state_dict(path), detector.plain_state_dict()
    fresh = [n for n in own if n in state and state[n].shape != own[n].shape and state[n].shape[1:] == own[n].shape[1:]]
    fresh = [n for n in fresh if own[n].shape[0] in (detector.num_classes, detector.num_classes + 1)]
    check_complete(own, state | {name: own[name] for name in fresh}, path, "detector")  # other classes start fresh
    detector.model.load_state_dict({n: v for n, v in state.items() if n not in fresh}, strict=False)
    log.info("detector: %d tensors from %s, %d start fresh %s", len(own) - len(fresh), path, len(fresh), fresh)
