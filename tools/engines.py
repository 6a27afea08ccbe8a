"""Which engine an entry script works on: `sed.engine` (native) or `sed.d2` (Detectron2), by ENGINE of the config.

A driver is a module that offers, for its engine:

    load_config(path, overrides) -> cfg          the whole config
    train(cfg, resume)                           a run
    evaluate_only(cfg, resume, which)            the metrics of what it has trained, "teacher" or "student"
    load_detector(cfg, weights) -> Detector      trained, in eval mode, on MODEL.DEVICE
    train_set(cfg), test_set(cfg) -> Dataset     DATASETS.TRAIN and DATASETS.TEST with their annotations
    test_classes(cfg) -> Dataset                 names and ids of the classes of DATASETS.TEST; records or none
    test_mapper(cfg) -> TestMapper               reads and resizes an image (sed.evaluation.files)
    view_streams(cfg) -> Dataset, weak, strong   training batches, the same ones without and with strong views
    painter(dataset) -> Painter                  draws boxes on a picture (sed.evaluation.pictures)
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from sed.config import ConfigError, read_value
from sed.data.errors import DataError
from sed.detectors.weights import WeightsError
from sed.runtime.checkpoint_files import CheckpointError
from sed.runtime.select import EngineError, select_engine

# What a user can put right while predicting and drawing: told in one line, without a traceback
USER_ERRORS = (CheckpointError, ConfigError, DataError, EngineError, WeightsError)
_DRIVERS = {"detectron2": "sed.d2.driver", "torchvision": "sed.engine.driver"}


def pick(config_file: str | None, overrides: Sequence[str] = ()) -> ModuleType:
    """The driver of the engine that a config asks for; the other engine is not imported.

    Raises:
        ConfigError: for a config file that cannot be read.
        EngineError: where ENGINE is detectron2 and it is not installed.
    """
    engine, _ = select_engine(str(read_value("ENGINE", config_file, overrides)))
    return import_module(_DRIVERS[engine])


def pick_trained(config_file: str, overrides: Sequence[str], weights: str) -> tuple[ModuleType, object, str]:
    """The driver, its config, and the weights to load.

    `weights` takes the place of MODEL.WEIGHTS: with "coco" the config becomes that of the engine's pretrained detector,
    and with a file that Detectron2's engine exported, the input format and anchors are that file's.

    Raises:
        ConfigError: see `pick`; also for a config that the engine refuses.
        EngineError: see `pick`.
    """
    driver = pick(config_file, overrides)
    cfg = driver.load_config(config_file, [*overrides, "MODEL.WEIGHTS", weights] if weights else overrides)
    return driver, cfg, weights and cfg.MODEL.WEIGHTS
