"""sed.cli.engines: the engine of a config, and that both engines offer what the protocol `Engine` says."""

import inspect
import subprocess
import sys

import pytest

from sed.cli import engines
from sed.config import ConfigError
from sed.runtime import engine as selection
from sed.runtime.engine import Engine

CONFIG = "configs/quickstart.yaml"


def test_the_config_names_the_engine(engine):
    driver = engines.pick(CONFIG, ["ENGINE", engine])
    assert driver.__name__ == {"torchvision": "sed.engine.driver", "detectron2": "sed.d2.driver"}[engine]
    promised = {name: f for name, f in vars(Engine).items() if not name.startswith("_") and inspect.isfunction(f)}
    assert len(promised) == 11
    assert set(promised) == set(driver.__all__)
    for name, function in promised.items():
        _, *wanted = inspect.signature(function).parameters.values()  # without self
        offered = list(inspect.signature(getattr(driver, name)).parameters.values())
        assert [(p.name, p.default) for p in offered[: len(wanted)]] == [(p.name, p.default) for p in wanted], name
        assert all(p.default is not p.empty for p in offered[len(wanted) :]), name


def test_the_other_engine_is_not_imported():
    code = f"import sys; from sed.cli.engines import pick; pick({CONFIG!r}); "
    code += "print('detectron2' in sys.modules, 'sed.d2' in sys.modules)"
    path = {"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_without_detectron2_auto_is_native_and_asking_for_it_is_told(monkeypatch):
    monkeypatch.setattr(selection, "find_spec", lambda name: None)
    assert engines.pick("configs/digits.yaml").__name__ == "sed.engine.driver"
    with pytest.raises(engines.EngineError, match="tutorials/install"):
        engines.pick("configs/digits.yaml", ["ENGINE", "detectron2"])


def test_a_wrong_name_is_refused_by_the_config():
    with pytest.raises(ConfigError, match="ENGINE is 'detectron'"):
        engines.pick_trained(CONFIG, ["ENGINE", "detectron"], "")


def test_pretrained_weights_come_by_name(engine):
    _, cfg, weights = engines.pick_trained("configs/coco_10.yaml", ["ENGINE", engine, "MODEL.DEVICE", "cpu"], "coco")
    if engine == "torchvision":
        assert weights == "coco"
    else:  # and the preprocessing they were trained with
        assert weights.startswith("detectron2://COCO-Detection/faster_rcnn_R_50_FPN_3x/")
        assert cfg.INPUT.FORMAT == "BGR"
    assert engines.pick_trained(CONFIG, ["ENGINE", engine], "x.pth")[2] == "x.pth"
