"""Detectors behind one interface. `wrap(model)` takes a ready-built torchvision model."""

from sed.detectors.base import Detector, Features
from sed.detectors.build import DetectorSpec, build_detector
from sed.detectors.torchvision_models import wrap
from sed.detectors.weights import WeightsError, load_pretrained, read_state_dict

__all__ = [
    "Detector",
    "DetectorSpec",
    "Features",
    "WeightsError",
    "build_detector",
    "load_pretrained",
    "read_state_dict",
    "wrap",
]
