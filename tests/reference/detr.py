"""Tiny members of the DETR family as config.json files: what MODEL.DETR.CONFIG names in tests."""

from __future__ import annotations

import json
from pathlib import Path

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}
WIDTHS = {
    "num_queries": 8,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
CONFIGS = {
    "detr": {  # softmax, reads pixel_mask, frozen batch norm, dropout
        "model_type": "detr",
        "backbone_config": {"model_type": "resnet", "out_features": ["stage4"], **RESNET},
        "use_timm_backbone": False,
        "backbone": None,
        "auxiliary_loss": True,
        **WIDTHS,
    },
    "deformable_detr": {  # sigmoid, reads pixel_mask, frozen batch norm
        "model_type": "deformable_detr",
        "backbone_config": {"model_type": "resnet", "out_features": ["stage2", "stage3", "stage4"], **RESNET},
        "use_timm_backbone": False,
        "backbone": None,
        "num_feature_levels": 4,
        **WIDTHS,
    },
    "rt_detr": {  # sigmoid, ignores pixel_mask, batch norm that learns, denoising queries
        "model_type": "rt_detr",
        "backbone_config": {
            "model_type": "rt_detr_resnet",
            "out_features": ["stage2", "stage3", "stage4"],
            **RESNET,
        },
        "freeze_backbone_batch_norms": False,
        "encoder_in_channels": [16, 24, 32],
        "encoder_hidden_dim": 32,
        "decoder_in_channels": [32, 32, 32],
        "num_denoising": 8,
        **WIDTHS,
    },
}


def write_config(folder: Path, name: str, **changed: object) -> Path:
    """`CONFIGS[name]` as <folder>/<name>.json."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(CONFIGS[name] | changed))
    return path
