"""Metrics in an experiment tracker beside the run's own files: Weights & Biases or trackio, which has its interface."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sed.runtime.engine import EngineError


class Tracker:
    """A run in a tracker; a resumed one goes on where the tracker can.

    Args:
        kind: "wandb" or "trackio", the value of TRACKER.
        folder: OUTPUT_DIR; its name is the run's, its path the run's identity.
        config: dotted key -> value.

    Raises:
        EngineError: where it is not installed.
    """

    def __init__(self, kind: str, folder: Path, config: Mapping[str, Any]) -> None:
        if find_spec(kind) is None:
            raise EngineError(f"TRACKER is {kind}, which is not installed: pip install {kind}, or TRACKER ''")
        self._module = import_module(kind)
        more = {}
        if kind == "wandb":
            identity = hashlib.sha1(str(folder.resolve()).encode(), usedforsecurity=False).hexdigest()[:12]
            more = {"id": identity, "dir": str(folder)}
        self._module.init(project="ssod", name=folder.name, config=dict(config), resume="allow", **more)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send the scalars of the state after `step` steps; what is not finite is left out."""
        self._module.log({name: value for name, value in scalars.items() if math.isfinite(value)}, step=step)

    def close(self) -> None:
        """Send what waits."""
        self._module.finish()
