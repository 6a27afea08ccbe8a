"""The DETR family of Hugging Face `transformers` behind the `Detector` interface: one adapter for all members.

The network and the supervised loss with its own matching are the model's; this file only converts to and from the
convention of `sed.core.structures`. The model may be of any class that takes the inputs and gives the outputs of a
`*ForObjectDetection` of transformers; `QueryDetector` checks that when it is made.

| sed.core.structures     | transformers                                                            |
| ---                     | ---                                                                     |
| boxes xyxy, pixels      | (cx, cy, w, h) as fractions of the frame                                |
| the frame               | the image where the model reads `pixel_mask`, else the padded tensor    |
| classes 0..K-1          | `class_labels` 0..K-1                                                   |
| softmax, K + 1 logits   | "no object" last (DETR, Table Transformer, YOLOS)                       |
| sigmoid, K logits       | no such class (Conditional, Deformable, RT-DETR, D-FINE, LW-, RF-DETR)  |

Shape shorthand: see `sed.core.structures`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sed.core.boxes import clip_boxes, corners
from sed.core.structures import Detections, Images, LabeledBatch, QueryPrediction, Size, Targets
from sed.detectors.base import Detector, Features, check_sides, normalize, valid_pixels
from sed.options.solver import Test

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)
PROBE = 384  # side of the test image, pixels; at stride 16 it has 576 places, enough for the usual 300 queries
CLASSIFICATION = ("loss_ce", "loss_vfl", "loss_mal", "loss_focal", "loss_bce")  # of transformers; the rest: boxes


class NotADetrError(TypeError):
    """A model without the inputs and outputs of the detectors of `transformers`; the message names what it lacks."""


@dataclass(frozen=True)
class QueryFeatures(Features):
    """The result of one pass of the whole network over one view: the family has no common cut behind the backbone."""

    prediction: QueryPrediction


class QueryDetector(Detector):
    """A ready-built `transformers` detection model as a `Detector` with the head "query".

    Args:
        model: of any class; it holds all weights.
        pixel_mean: RGB, 0..255; RT-DETR and its descendants use (0, 0, 0).
        pixel_std: RGB, 0..255; RT-DETR and its descendants use (255, 255, 255).
        detections: the number kept of an image; this family has no NMS.

    Attributes:
        num_queries: Q, in eval mode. Group DETR has more in training; its predictions are those of the first Q.
        reads_mask: whether the model uses `pixel_mask`. Without it the model takes padding for black pixels, and its
            boxes are fractions of the padded tensor: use images of one size. With it boxes are fractions of the image.
            Padding then changes nothing behind a convolutional backbone; it does with a ViT, and where queries are
            selected from the encoder's locations (two-stage Deformable DETR, RF-DETR).
        any_size: whether the model takes images of any size, neither padded to a multiple nor stretched to squares.

    Raises:
        NotADetrError: for a model that lacks an input or an output; the message names all that it lacks.
    """

    heads = frozenset({"query"})

    def __init__(
        self,
        model: nn.Module,
        pixel_mean: Sequence[float] = IMAGENET_MEAN,
        pixel_std: Sequence[float] = IMAGENET_STD,
        detections: int = Test.detections_per_image,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise NotADetrError(f"{type(model).__name__} is no torch.nn.Module; expected a detector of transformers")
        device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
        self.model = model
        self.detections = detections
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values, device=device).view(1, 3, 1, 1), persistent=False)
        self.size_divisibility, strict = _size_divisibility(getattr(model, "config", None))
        traits = _probe(model, self.size_divisibility, device)
        self.num_classes, self.num_queries = traits.num_classes, traits.num_queries
        self.softmax, self.reads_mask = traits.softmax, traits.reads_mask
        self.any_size = self.reads_mask and not strict

    def encode(self, images: Images) -> QueryFeatures:
        """See `Detector.encode`. Pixels are normalised here and padding becomes exactly 0."""
        check_sides(images, self.size_divisibility)
        pixels, output = self._run(images)
        first = slice(self.num_queries)
        prediction = QueryPrediction(output.logits[:, first], output.pred_boxes[:, first], self.softmax)
        return QueryFeatures({}, Images(pixels, images.sizes), prediction)

    def queries(self, features: Features) -> QueryPrediction:
        """See `Detector.queries`."""
        assert isinstance(features, QueryFeatures)
        return features.prediction

    def supervised_losses(self, batch: LabeledBatch) -> dict[str, Tensor]:
        """See `Detector.supervised_losses`; the sum is the library's own loss. Gradients must be enabled.

        The library weights the parts of its loss internally; the weight of a part is the derivative of the loss with
        respect to it.
        """
        images = batch.images.pad_to_multiple(self.size_divisibility)
        _, output = self._run(images, self._labels(batch.targets, images))
        classes = _class_loss(output)
        if classes is None:  # no part of it has a gradient
            classes = output.loss.new_zeros(())
        return {"query_cls": classes, "query_box": output.loss - classes}

    @torch.no_grad()
    def detect(self, images: Images) -> list[Detections]:
        """See `Detector.detect`: the best `detections` of all queries, as in the library's own post-processing.

        Softmax: a query is one detection, of its best class. Sigmoid: each class of a query is one.
        """
        images = images.pad_to_multiple(self.size_divisibility)
        prediction = self.encode(images).prediction
        logits = prediction.logits.float()
        if self.softmax:
            scores, classes = logits.softmax(-1)[..., :-1].max(-1)  # [N, Q]
            scores, query = scores.sort(descending=True)
            classes = classes.gather(1, query)
        else:
            scores, flat = logits.sigmoid().flatten(1).sort(descending=True)  # [N, Q K]
            query, classes = flat // self.num_classes, flat % self.num_classes
        keep = slice(self.detections)
        scores, classes, query = scores[:, keep], classes[:, keep], query[:, keep]
        boxes = prediction.boxes.float().gather(1, query[..., None].expand(-1, -1, 4))
        boxes = corners(boxes) * self._frames(images, boxes.device)[:, None]
        return [
            Detections(clip_boxes(b, size), s, c)
            for b, s, c, size in zip(boxes, scores, classes, images.sizes, strict=True)
        ]

    def plain_state_dict(self) -> dict[str, Tensor]:
        """See `Detector`; the names are those of the wrapped model."""
        return self.model.state_dict()

    def _run(self, images: Images, labels: list[dict[str, Tensor]] | None = None) -> tuple[Tensor, Any]:
        """The normalised pixels [N, 3, H, W] and the model's output for them."""
        inside = valid_pixels(images)  # [N, 1, H, W]
        pixels = normalize(images, self.pixel_mean, self.pixel_std, inside)
        try:
            return pixels, call_model(self.model, pixels, inside.squeeze(1).long(), labels)
        except RuntimeError as error:
            if "out of range" not in str(error):  # torch.topk
                raise
            height, width = images.padded_size
            raise ValueError(
                f"{type(self.model).__name__}: a view of {height} x {width} pixels has fewer places than the model's "
                f"{self.num_queries} queries; use larger images (INPUT.MIN_SIZE_*) or a model with fewer queries"
            ) from error

    def _frames(self, images: Images, device: torch.device) -> Tensor:
        """(width, height, width, height) [N, 4], in pixels, of the frame that box coordinates are fractions of."""
        sizes: Sequence[Size] = images.sizes if self.reads_mask else [images.padded_size] * len(images)
        return torch.tensor([(w, h, w, h) for h, w in sizes], dtype=torch.float32).to(device, non_blocking=True)

    def _labels(self, targets: Sequence[Targets], images: Images) -> list[dict[str, Tensor]]:
        frames = self._frames(images, images.tensor.device)
        rows = []
        for target, frame in zip(targets, frames, strict=True):
            low, high = target.boxes[:, :2], target.boxes[:, 2:]
            boxes = torch.cat(((low + high) / 2, high - low), dim=1) / frame
            rows.append({"class_labels": target.classes, "boxes": boxes})
        return rows


@dataclass(frozen=True)
class Traits:
    """Properties of a model, found by running it."""

    num_classes: int
    num_queries: int
    softmax: bool
    reads_mask: bool


def call_model(model: nn.Module, pixels: Tensor, mask: Tensor, labels: list[dict[str, Tensor]] | None = None) -> Any:
    """The model's own output.

    Args:
        model: of transformers.
        pixels: [N, 3, H, W], normalised.
        mask: [N, H, W] int64, 1 on the image; a model that takes no `pixel_mask` does not get it.
        labels: of N images, for the loss.
    """
    inputs: dict[str, Any] = {"pixel_values": pixels}
    if "pixel_mask" in inspect.signature(model.forward).parameters:
        inputs["pixel_mask"] = mask
    if labels is not None:
        inputs["labels"] = labels
    return model(**inputs)


def _class_loss(output: Any) -> Tensor | None:
    """The classification part of `output.loss`; None where `loss_dict` has no such part with a gradient."""
    parts = [
        value
        for name, value in output.loss_dict.items()
        if name.startswith(CLASSIFICATION) and isinstance(value, Tensor) and value.requires_grad
    ]
    weights = torch.autograd.grad(output.loss, parts, retain_graph=True, allow_unused=True) if parts else ()
    shares = [weight * part for weight, part in zip(weights, parts, strict=True) if weight is not None]
    return sum(shares[1:], shares[0]) if shares else None


def _probe(model: nn.Module, size_divisibility: int, device: torch.device) -> Traits:
    """Find the properties of `model` by running it on a test image: whole, half masked, and in train mode with a box.

    Raises:
        NotADetrError: where an input or an output is missing; the message names all that are.
    """
    known = inspect.signature(model.forward).parameters
    lacks = [f"an argument {name} of forward" for name in ("pixel_values", "labels") if name not in known]
    num_labels = getattr(getattr(model, "config", None), "num_labels", None)
    if num_labels is None:
        lacks.append("config.num_labels (the number of classes)")
    side = math.ceil(PROBE / size_divisibility) * size_divisibility
    wave = torch.arange(side, dtype=torch.float32, device=device) / 17
    pixels = (wave.sin()[:, None] * wave.cos()[None, :]).expand(1, 3, side, side).contiguous()
    mask = torch.ones((1, side, side), dtype=torch.long, device=device)
    half = mask.clone()
    half[:, :, side // 2 :] = 0
    box = torch.tensor([[0.5, 0.5, 0.25, 0.25]], device=device)
    labels = [{"class_labels": torch.zeros(1, dtype=torch.long, device=device), "boxes": box}]
    whole = part = cause = None
    inputs = f"pixel_values [1, 3, {side}, {side}]"
    try:
        with _untouched(model, device):
            if "pixel_values" in known:
                with torch.no_grad():
                    whole, part = call_model(model.eval(), pixels, mask), call_model(model, pixels, half)
                lacks += _missing_predictions(whole, num_labels)
            if {"pixel_values", "labels"} <= known.keys():
                inputs += " and labels [{class_labels [G], boxes [G, 4]}] in train mode"
                with torch.enable_grad():
                    lacks += _missing_losses(call_model(model.train(), pixels, mask, labels))
    except Exception as error:  # the forward of any class may raise anything
        cause = error
        lacks.append(f"a forward that takes {inputs} ({type(error).__name__}: {error})")
    if lacks:
        raise NotADetrError(
            f"{type(model).__name__} cannot be trained as one of the DETR family; it lacks {'; '.join(lacks)}"
        ) from cause
    _, queries, channels = whole.logits.shape
    reads = not (torch.equal(whole.logits, part.logits) and torch.equal(whole.pred_boxes, part.pred_boxes))
    return Traits(num_labels, queries, channels == num_labels + 1, reads)


@contextmanager
def _untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """A context after which the training flags and buffers of `model` and the random state are as before."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for buffer, value in buffers:
                buffer.copy_(value)


def _missing_predictions(output: Any, num_labels: int | None) -> list[str]:
    found = {name: getattr(output, name, None) for name in ("logits", "pred_boxes")}
    shapes = {name: tuple(value.shape) if isinstance(value, Tensor) else None for name, value in found.items()}
    lacks = []
    for name, last in (("logits", "C"), ("pred_boxes", "4")):
        shape = shapes[name]
        if shape is None or len(shape) != 3 or (last == "4" and shape[-1] != 4):
            lacks.append(f"{name} [N, Q, {last}] (found {shape or 'none'})")
        elif last == "C" and num_labels is not None and shape[-1] not in (num_labels, num_labels + 1):
            lacks.append(
                f'{num_labels} (sigmoid) or {num_labels + 1} (softmax, "no object" last) logits a query for its '
                f"{num_labels} classes (found {shape[-1]})"
            )
    if not lacks and shapes["logits"][:2] != shapes["pred_boxes"][:2]:
        lacks.append(f"a box for each query's logits (found {shapes['pred_boxes']} and {shapes['logits']})")
    return lacks


def _missing_losses(output: Any) -> list[str]:
    loss, parts = getattr(output, "loss", None), getattr(output, "loss_dict", None)
    lacks = [] if isinstance(loss, Tensor) else ["loss when labels are given"]
    if not isinstance(parts, dict):
        lacks.append("loss_dict when labels are given")
    elif not lacks and loss.requires_grad and _class_loss(output) is None:
        lacks.append(f"a part of loss in loss_dict that is named {'*, '.join(CLASSIFICATION)}* (found {[*parts]})")
    return lacks


def _size_divisibility(config: Any) -> tuple[int, bool]:
    """The number that must divide the sides of images, and whether the model itself fails otherwise.

    A plain ViT: patch size times windows a side, and it fails otherwise. Else 32, the stride of the published
    backbones.
    """
    vit = getattr(config, "backbone_config", None) or config
    patch = getattr(vit, "patch_size", None)
    if not isinstance(patch, int) or hasattr(vit, "depths"):  # the patches of Swin and ConvNeXt begin a pyramid
        return 32, False
    step = patch * getattr(vit, "num_windows_side", getattr(vit, "num_windows", 1))
    return 32 if 32 % step == 0 else step, True
