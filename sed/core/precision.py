"""Precision of the losses: float32 or more, also where autocast (AMP) made the predictions half precision."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """`values` in float32 where they are fp16 or bf16 (AMP), unchanged otherwise."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
