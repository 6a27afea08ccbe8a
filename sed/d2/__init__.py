"""The Detectron2 extension. Importing it registers our meta-architectures and backbone with Detectron2."""

from sed.d2 import backbone as _backbone  # registers it
from sed.d2.config import add_sed_config, load_config
from sed.d2.meta_arch import ScaleConsistentRCNN, ScaleConsistentRetinaNet


__all__ = [
    "ScaleConsistentRCNN",
    "ScaleConsistentRetinaNet",

    "add_sed_config",
    "load_config",
]
