"""Which engine a command works on, by ENGINE of its config: `sed.engine` (native) or `sed.d2` (Detectron2)."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from sed.config import ConfigError, read_value
from sed.data.errors import DataError
from sed.data.own_sets import CLASSES
from sed.data.records import Dataset, reorder
from sed.detectors.base import Detector
from sed.detectors.weights import WeightsError
from sed.runtime.checkpoint_files import CheckpointError
from sed.runtime.engine import Engine, EngineError, select_engine

# Errors that a user can put right: printed in one line, without a traceback
USER_ERRORS = (CheckpointError, ConfigError, DataError, EngineError, WeightsError)
log = logging.getLogger(__name__)
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


def find_run(args: argparse.Namespace) -> None:
    """Set --config-file, and --weights where they are not given, from --run.

    Raises:
        ConfigError: for no such folder.
    """
    args.config_file = str(args.run / "config.yaml")
    if not Path(args.config_file).is_file():
        raise ConfigError(f"--run {args.run}: no config.yaml in it; expected the folder of a training")
    best = [args.run / name for name in ("model.pth", "model_best.pth", "model_final.pth")]
    args.weights = args.weights or next((str(path) for path in best if path.is_file()), "")
    if not args.weights:
        raise ConfigError(f"--run {args.run}: no model.pth in it; the training has not ended (give its command again)")


def read_classes(engine: Engine, cfg: CfgNode, detector: Detector, run: Path | None = None) -> Dataset:
    """Names and original ids of the categories, matched by name with the detector's.

    They are those that `ssod train` wrote into the folder `run`, else those of DATASETS.TEST. Without them they are the
    detector's own names, numbered from 1; a file that does not say its names has numbers, with a warning.
    """
    reason, count, names = "DATASETS.TEST is empty", detector.num_classes, detector.class_names
    written = run / "sets" / CLASSES if run else Path()
    if written.is_file():
        rows = json.loads(written.read_text())
        found = Dataset(str(run), [], tuple(row["name"] for row in rows), tuple(row["id"] for row in rows))
        return reorder(found, names, "the detector")
    if cfg.DATASETS.TEST:
        try:
            classes = engine.test_classes(cfg)
            if len(classes.classes) == count:
                return reorder(classes, names, "the detector")
            reason = f"{classes.name} has {len(classes.classes)} categories, the detector {count}"
        except DataError as error:
            reason = str(error)
    ids = tuple(range(1, count + 1))
    if names:
        log.warning("category ids are not known (%s); %s are numbered from 1", reason, ", ".join(names[:5]))
        return Dataset("", [], names, ids)
    log.warning("category names are not known (%s); they are called 1 to %d", reason, count)
    return Dataset("", [], tuple(map(str, ids)), ids)
