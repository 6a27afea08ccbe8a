"""A tiny digits set, and a detector of each engine with fresh weights whose lowest scores count too."""

import os

import pytest

from sed.data.digits import make_digits
from tests.reference.small import ENGINES
from tests.tools.study_desk import Desk

CONFIG = "configs/quickstart.yaml"
OPTS = ["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.IMS_PER_BATCH", "2"]
OPTS += ["TEST.DETECTIONS_PER_IMAGE", "5"]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """Runs a study with scripts in place of training and evaluation; knows what they were asked."""
    return Desk(tmp_path, monkeypatch)


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


@pytest.fixture(scope="session", params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture(scope="session")
def opts(engine, data_opts):
    """Overrides for the quick start's config: a small detector of the engine, on the tiny set."""
    return [*OPTS, *data_opts, "ENGINE", engine]


@pytest.fixture(scope="session")
def weights(tmp_path_factory, engine, opts):
    """The weights that a run leaves of the quick start's detector, untrained."""
    import torch

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(engine) / "model_final.pth"
    if engine == "detectron2":
        from detectron2.modeling import build_model

        import sed.d2
        from sed.d2.checkpoint import export

        cfg = sed.d2.load_config(CONFIG, opts)
        export(build_model(cfg), path, cfg)
    else:
        from sed.config import load_config
        from sed.engine import build, checkpoint

        detector = build.build_student(load_config(CONFIG, opts), "")
        checkpoint.save_atomic(checkpoint.plain_weights(detector), path)
    return os.fspath(path)
