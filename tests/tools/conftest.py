"""A tiny digits set, and a detector with fresh weights whose lowest scores count too."""

import os

import pytest

from sed.config import load_config
from sed.data.digits import make_digits

CONFIG = "configs/quickstart.yaml"
OPTS = ["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.IMS_PER_BATCH", "2"]
OPTS += ["TEST.DETECTIONS_PER_IMAGE", "5"]


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return make_digits(tmp_path_factory.mktemp("tools"), counts=(12, 6, 5))


@pytest.fixture(scope="session")
def data_opts(digits):
    """Overrides that train and test on the tiny set."""
    return [
        *("DATASETS.TRAIN", str(digits / "train.json"), "DATASETS.TEST", str(digits / "tune.json")),
        *("SEMI.LABELED_COUNT", "4"),
    ]


@pytest.fixture(scope="session")
def weights(tmp_path_factory, data_opts):
    """A plain weights file of the quick start's detector, untrained."""
    import torch

    from sed.engine import build, checkpoint

    torch.manual_seed(0)
    detector = build.build_student(load_config(CONFIG, [*OPTS, *data_opts]), "")
    path = tmp_path_factory.mktemp("weights") / "model_final.pth"
    checkpoint.save_atomic(checkpoint.plain_weights(detector), path)
    return os.fspath(path)
