"""The Detectron2 extension. Importing it registers our meta-architectures and backbone with Detectron2."""

from sed.d2.backbone import build_small_fpn_backbone
from sed.d2.config import add_sed_config, load_config
from sed.d2.detr import ScaleConsistentDETR
from sed.d2.meta_arch import ScaleConsistentRCNN, ScaleConsistentRetinaNet
from sed.d2.trainer import SemiSupervisedTrainer

__all__ = [
    "ScaleConsistentDETR",
    "ScaleConsistentRCNN",
    "ScaleConsistentRetinaNet",
    "SemiSupervisedTrainer",
    "add_sed_config",
    "build_small_fpn_backbone",
    "load_config",
]
