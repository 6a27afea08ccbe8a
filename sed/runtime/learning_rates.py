"""Which weights learn at which rate: one rule for both engines."""

from __future__ import annotations

PYRAMID = ("fpn", "top_block")  # beginnings of names, torchvision's and Detectron2's


def in_backbone(name: str) -> bool:
    """Whether SOLVER.BACKBONE_MULTIPLIER is of this weight: below a module `backbone`, but not in its feature pyramid.

    What the factor is for is features that are trained already; a pyramid starts as fresh as the heads.

    Args:
        name: dotted, as `named_parameters` has it.
    """
    parts = name.split(".")
    return "backbone" in parts and not any(part.startswith(PYRAMID) for part in parts)
