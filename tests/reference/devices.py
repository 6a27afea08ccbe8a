"""The same computation on two devices: no dropout, nothing sampled, random numbers of the CPU's generator on both."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

# aten's ops that draw random numbers, but for dropout and attention, which `without_chance` keeps from drawing
DRAWING = ("rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "multinomial")
DRAWING_INTO = ("bernoulli_", "uniform_", "normal_", "random_")
ALL = 1_000_000  # more anchors and proposals than there are


def without_chance(detector: nn.Module) -> nn.Module:
    """Set all dropout to 0, and let losses take all anchors and proposals instead of a sample; returns the detector."""
    for module in detector.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):  # transformers' layers: a number for F.dropout
                setattr(module, name, 0.0)
        if isinstance(getattr(module, "batch_size_per_image", None), int):  # Detectron2
            module.batch_size_per_image = ALL
        if hasattr(module, "fg_bg_sampler"):  # torchvision
            module.fg_bg_sampler.batch_size_per_image = ALL
    return detector


class RandomOfCPU(TorchDispatchMode):
    """A context in which random numbers come from the CPU's generator, whatever the device they are for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name not in DRAWING and name not in DRAWING_INTO:
            return func(*args, **kwargs)
        there = next((a.device for a in args if isinstance(a, torch.Tensor)), kwargs.get("device"))
        own_args, own_kwargs = tree_map(_on_cpu, (args, kwargs))
        result = func(*own_args, **own_kwargs)
        if name in DRAWING_INTO:
            return args[0].copy_(result)
        return result if there is None else result.to(there)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cpu()
    return torch.device("cpu") if isinstance(value, torch.device) else value
