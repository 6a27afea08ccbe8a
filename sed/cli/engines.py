"""Which engine a command works on, by ENGINE of its config: `sed.engine` (native) or `sed.d2` (Detectron2)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from sed.config import ConfigError, read_value
from sed.data.errors import DataError
from sed.detectors.weights import WeightsError
from sed.runtime.checkpoint_files import CheckpointError
from sed.runtime.engine import Engine, EngineError, select_engine

# Errors that a user can put right: printed in one line, without a traceback
USER_ERRORS = (CheckpointError, ConfigError, DataError, EngineError, WeightsError)
_DRIVERS = {"detectron2": "sed.d2.driver", "torchvision": "sed.engine.driver"}


def pick(config_file: str | None, overrides: Sequence[str] = ()) -> Engine:
    """The engine that a config asks for; the other one is not imported.

    Raises:
        ConfigError: for a config file that cannot be read.
        EngineError: where ENGINE is detectron2 and it is not installed.
    """
    engine, _ = select_engine(str(read_value("ENGINE", config_file, overrides)))
    return import_module(_DRIVERS[engine])  # type: ignore[return-value]  # a module with the functions of the protocol


def pick_trained(config_file: str, overrides: Sequence[str], weights: str) -> tuple[Engine, Any, str]:
    """The engine, its config, and the weights to load.

    `weights` takes the place of MODEL.WEIGHTS: with "coco" the config becomes that of the engine's pretrained detector,
    and with a file that Detectron2's engine exported, the input format and anchors are that file's.

    Raises:
        ConfigError: see `pick`; also for a config that the engine refuses.
        EngineError: see `pick`.
    """
    engine = pick(config_file, overrides)
    cfg = engine.load_config(config_file, [*overrides, "MODEL.WEIGHTS", weights] if weights else overrides)
    return engine, cfg, weights and cfg.MODEL.WEIGHTS
