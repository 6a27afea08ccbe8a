"""sed: semi-supervised object detection by Scale-Equivalent Distillation (CVPR 2022)."""

__version__ = "0.1.0"
