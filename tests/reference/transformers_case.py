"""The contract suite's DETR family: tiny random members of it, K = 3, no network.

The properties of a member (its frame, loss weights, processor, untrained weights) are copied from the library or from
docs/method.md, not taken from the adapter.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForObjectDetection

from sed.core.structures import Detections, Images, LabeledBatch
from sed.detectors.detr import IMAGENET_MEAN, IMAGENET_STD, QueryDetector
from tests.reference.frameworks import Case

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}
LAST = {"model_type": "resnet", **RESNET, "out_features": ["stage4"]}
THREE = {**LAST, "out_features": ["stage2", "stage3", "stage4"]}
HGNET = {
    "model_type": "hgnet_v2",
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 16, 16, 24],
    "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [16, 16, 24, 32],
    "hidden_sizes": [16, 16, 24, 32],
    "stage_light_block": [False] * 4,
    "stage_kernel_size": [3] * 4,
    **dict.fromkeys(("depths", "stage_num_blocks", "stage_numb_of_layers"), [1] * 4),
    "out_features": ["stage2", "stage3", "stage4"],
}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "out_indices": [1, 2]}

DECODER = {"decoder_layers": 2, "decoder_ffn_dim": 32}
DETR = {
    "num_queries": 12,
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "auxiliary_loss": True,
    **DECODER,
}
DEFORMABLE = {**DETR, "d_model": 64, "backbone_config": THREE}  # 32 groups of 2 channels
HYBRID = {
    **DETR,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 24, 32],
    "decoder_in_channels": [32, 32, 32],
    "num_denoising": 10,
    "backbone_config": {**THREE, "model_type": "rt_detr_resnet"},
}
GROUPS = {
    "num_queries": 4,
    "d_model": 32,
    "group_detr": 3,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "class_loss_coefficient": 1.5,
    **DECODER,
}

WEIGHTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}  # DETR's, Deformable DETR's: the defaults
INSIDE = dict.fromkeys(("loss_vfl", "loss_mal", "loss_bbox", "loss_giou", "loss_fgl", "loss_ddf"), 1.0)
# The content half of a first decoder layer's queries is 0 and its values are all the same until training moves them
START = ("*.decoder.layers.0.*",)
# Encoder heads choose the queries' places, which are constants; denoising and earlier layers have losses of their own
HYBRID_ONLY = ("*.denoising_class_embed.weight", "*.enc_*", "*.decoder.class_embed.0.*", "*.decoder.bbox_embed.0.*")
FINE_ONLY = (*HYBRID_ONLY[:3], "*.decoder.lqe_layers.0.*", "*.decoder.pre_bbox_head.*")


@dataclass(frozen=True)
class Member:
    """One of the family.

    Attributes:
        model_type: of its config.json.
        config: beside num_labels.
        processor: the image processor whose post-processing is its own.
        softmax: "no object" is a logit.
        frame: what its boxes are fractions of: "image", where `pixel_mask` is read, or "padded".
        padding: more padding changes its predictions by at most this share of their change without the mask; 0: not at
            all; None: its backbone or its selection of queries uses the padding, so there is no limit.
        bounded: its boxes come out of a sigmoid.
        places: its queries are selected from the locations of its maps, of which there must be enough.
        weights: how its loss weighs the parts of loss_dict, by the parts' first letters.
        unit_pixels: its processor divides by 255 and normalises no further.
        kept: detections an image; the processors of some keep Q.
        untrained: patterns of weights that get no gradient from its own loss.
        only_labeled: patterns of weights that get no gradient from the predictions of the last layer.
        mute: patterns of weights whose gradient may be 0 before the first step.
    """

    model_type: str
    config: dict[str, Any]
    processor: str
    softmax: bool = False
    frame: str = "image"
    padding: float | None = None
    bounded: bool = True
    places: bool = False
    weights: dict[str, float] = field(default_factory=lambda: WEIGHTS)
    unit_pixels: bool = False
    kept: int = 100
    untrained: tuple[str, ...] = ()
    only_labeled: tuple[str, ...] = ()
    mute: tuple[str, ...] = ()


HYBRIDS = {
    "processor": "RTDetrImageProcessor",
    "frame": "padded",
    "places": True,
    "weights": INSIDE,
    "unit_pixels": True,
    "kept": 12,
}
GROUPED = {
    "bounded": False,
    "places": True,
    "weights": {**WEIGHTS, "loss_ce": 1.5},
    "only_labeled": ("*.enc_out*",),
}
FAMILY = {
    "detr": Member(
        "detr", {**DETR, "backbone_config": LAST}, "DetrImageProcessor", softmax=True, padding=0.0, mute=START
    ),
    "conditional_detr": Member(
        "conditional_detr", {**DETR, "backbone_config": LAST}, "ConditionalDetrImageProcessor", padding=0.0, mute=START
    ),
    "dab_detr": Member(
        "dab-detr",
        {**DETR, "hidden_size": 32, "backbone_config": LAST},
        "ConditionalDetrImageProcessor",
        padding=0.0,
        mute=START,
    ),
    "deformable_detr": Member("deformable_detr", DEFORMABLE, "DeformableDetrImageProcessor", padding=0.3),
    # The library computes no loss for the first stage of this one, so nothing ever trains it
    "deformable_detr_two_stage": Member(
        "deformable_detr",
        {**DEFORMABLE, "two_stage": True, "two_stage_num_proposals": 12, "with_box_refine": True},
        "DeformableDetrImageProcessor",
        places=True,
        untrained=("*.enc_output*", "*.decoder.class_embed.2.*", "*.decoder.bbox_embed.2.*"),
        only_labeled=("*.decoder.class_embed.0.*", "*.decoder.bbox_embed.0.*"),
    ),
    "rt_detr": Member("rt_detr", HYBRID, **HYBRIDS, only_labeled=HYBRID_ONLY),
    "rt_detr_v2": Member("rt_detr_v2", HYBRID, **HYBRIDS, only_labeled=HYBRID_ONLY),
    "d_fine": Member("d_fine", {**HYBRID, "backbone_config": HGNET}, **HYBRIDS, bounded=False, only_labeled=FINE_ONLY),
    "deimv2": Member("deimv2", {**HYBRID, "backbone_config": HGNET}, **HYBRIDS, bounded=False, only_labeled=FINE_ONLY),
    "lw_detr": Member(
        "lw_detr",
        {
            **GROUPS,
            "projector_scale_factors": [1.0],
            "backbone_config": {
                **VIT,
                "model_type": "lw_detr_vit",
                "num_windows": 4,
                "window_block_indices": [0],
                "pretrain_image_size": 64,
            },
        },
        "DeformableDetrImageProcessor",
        padding=0.3,
        **GROUPED,
    ),
    "rf_detr": Member(
        "rf_detr",
        {**GROUPS, "backbone_config": {**VIT, "model_type": "rf_detr_dinov2", "num_windows": 2, "patch_size": 14}},
        "RfDetrImageProcessor",
        kept=4,
        untrained=("*.mask_token",),
        **GROUPED,
    ),
    "yolos": Member(
        "yolos",
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "image_size": [64, 64],
            "num_detection_tokens": 7,
        },
        "YolosImageProcessor",
        softmax=True,
        frame="padded",
    ),
}


def build_member(name: str, **config: Any) -> nn.Module:
    """The stock model with fresh weights; `config` comes on top of the table."""
    values = {**FAMILY[name].config, "num_labels": 3, **config}
    if "backbone_config" in values:
        values["backbone_config"] = AutoConfig.for_model(**values["backbone_config"])
    return AutoModelForObjectDetection.from_config(AutoConfig.for_model(FAMILY[name].model_type, **values))


class TransformersCase(Case):
    """A member of `FAMILY`; its stock twin is the library's own class.

    Attributes:
        key: of `FAMILY`.
        queries: Q.
    """

    heads = frozenset({"query"})

    def __init__(self, key: str, prefix: str = "") -> None:
        super().__init__(prefix + key)
        self.key, self.member = key, FAMILY[key]
        self.untrained, self.only_labeled = self.member.untrained, self.member.only_labeled
        self.mute = self.member.mute
        names = ("two_stage_num_proposals", "num_queries", "num_detection_tokens")
        self.queries = next(self.member.config[name] for name in names if name in self.member.config)

    def make(self, seed: int = 0) -> QueryDetector:
        return copy.deepcopy(_made(self, seed))

    def build(self, **config: Any) -> QueryDetector:
        return QueryDetector(build_member(self.key, **config), *self.pixels(), detections=self.member.kept)

    def stock_losses(self, detector: Any, batch: LabeledBatch, seed: int) -> dict[str, Tensor]:
        output = self.stock_output(detector, batch, seed)
        losses = {"query_cls": torch.zeros(()), "query_box": torch.zeros(())}
        for name, part in output.loss_dict.items():
            weight = next((w for prefix, w in self.member.weights.items() if name.startswith(prefix)), None)
            if weight is not None:
                about_boxes = name.startswith(("loss_bbox", "loss_giou", "loss_fgl", "loss_ddf"))
                losses["query_box" if about_boxes else "query_cls"] += weight * part.detach()
        torch.testing.assert_close(sum(losses.values()), output.loss.detach(), atol=0, rtol=1e-6)  # the table is right
        return losses

    def stock_detections(self, detector: Any, images: Images) -> list[Detections]:
        inputs = self.inputs(detector, images)
        with torch.no_grad():
            output = self._stock(detector).eval()(**inputs)
        processor = getattr(transformers, self.member.processor)()
        rows = processor.post_process_object_detection(output, threshold=0.0, target_sizes=self.frames(images, inputs))
        found = []
        for row, (height, width) in zip(rows, images.sizes, strict=True):
            limits = torch.tensor([width, height, width, height])
            found.append(Detections(torch.minimum(row["boxes"].clamp(min=0), limits), row["scores"], row["labels"]))
        return found

    def exported(self, folder: Path) -> tuple[QueryDetector, nn.Module]:
        detector = self.make()
        torch.save(detector.plain_state_dict(), folder / "model_final.pth")
        stock = build_member(self.key)
        stock.load_state_dict(torch.load(folder / "model_final.pth", weights_only=True))
        return detector, stock

    # ------------------------------------------------------------------ only this family's
    def stock_output(self, detector: Any, batch: LabeledBatch, seed: int) -> Any:
        """What the library's model returns in train mode for images and labels in its own format."""
        model = self._stock(detector).train()
        inputs = self.inputs(detector, batch.images)
        labels = []
        for target, (height, width) in zip(batch.targets, self.frames(batch.images, inputs), strict=True):
            x0, y0, x1, y1 = target.boxes.unbind(1)
            boxes = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]
            labels.append({"class_labels": target.classes, "boxes": torch.stack(boxes, dim=1)})
        torch.manual_seed(seed)
        return model(**inputs, labels=labels)

    def inputs(self, detector: QueryDetector, images: Images) -> dict[str, Tensor]:
        """pixel_values and, where the model takes it, pixel_mask."""
        height, width = images.pad_to_multiple(detector.size_divisibility).padded_size
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in self.pixels())
        pixels, mask = torch.zeros(len(images), 3, height, width), torch.zeros(len(images), height, width).long()
        for n, (image, (h, w)) in enumerate(zip(images.tensor, images.sizes, strict=True)):
            pixels[n, :, :h, :w] = (image[:, :h, :w].float() - mean) / std
            mask[n, :h, :w] = 1
        return {"pixel_values": pixels} | ({} if self.key == "yolos" else {"pixel_mask": mask})

    def frames(self, images: Images, inputs: dict[str, Tensor]) -> Tensor:
        """(height, width) [N, 2] of what boxes are fractions of."""
        padded = tuple(inputs["pixel_values"].shape[-2:])
        return torch.tensor(images.sizes if self.member.frame == "image" else [padded] * len(images))

    def pixels(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std, RGB, 0..255."""
        return ((0.0,) * 3, (255.0,) * 3) if self.member.unit_pixels else (IMAGENET_MEAN, IMAGENET_STD)

    def _stock(self, detector: QueryDetector) -> nn.Module:
        stock = build_member(self.key)
        stock.load_state_dict(detector.plain_state_dict(), strict=True)
        return stock


@functools.cache
def _made(case: TransformersCase, seed: int) -> QueryDetector:
    torch.manual_seed(seed)
    detector = case.build()
    for name, weight in detector.named_parameters():
        if name.endswith("query_position_embeddings.weight"):  # so that queries differ
            nn.init.normal_(weight)
        elif weight.dim() > 1:  # so that predictions depend on the image: a fresh backbone's maps may fade to 1e-5
            nn.init.kaiming_normal_(weight, nonlinearity="relu" if weight.dim() == 4 else "linear")
    return detector
