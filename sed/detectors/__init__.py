"""Detectors behind one interface, `Detector`; `wrap(model)` makes one of a torchvision or transformers model.

Names are imported on first use, so that a framework need not be installed unless it is used.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Detector": "base",
    "Features": "base",
    "DetectorSpec": "build",
    "build_detector": "build",
    "wrap": "build",
    "QueryDetector": "detr",
    "build_detr": "detr_build",
    "WeightsError": "weights",
    "load_pretrained": "weights",
    "read_state_dict": "weights",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"sed.detectors.{_HOME[name]}"), name)
    raise AttributeError(f"module 'sed.detectors' has no attribute {name!r}")
