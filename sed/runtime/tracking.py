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
        folder: OUTPUT_DIR; the last two names of its path are the run's, all of it is the run's identity.
        config: dotted key -> value.

    Raises:
        EngineError: where it is not installed.
    """

    def __init__(self, kind: str, folder: Path, config: Mapping[str, Any]) -> None:
        if find_spec(kind) is None:
            raise EngineError(f"TRACKER is {kind}, which is not installed: pip install {kind}, or TRACKER ''")
        self._module = import_module(kind)
        identity = hashlib.sha1(str(folder.resolve()).encode(), usedforsecurity=False).hexdigest()[:12]
        more = {"id": identity, "dir": str(folder)} if kind == "wandb" else {}
        name = f"{folder.resolve().parent.name}/{folder.name}"
        name = name if more else f"{name}-{identity[:6]}"  # trackio goes on by the name
        self._module.init(project="ssod", name=name, config=dict(config), resume="allow", **more)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send the scalars of the state after `step` steps; what is not finite is left out."""
        self._module.log({name: value for name, value in scalars.items() if math.isfinite(value)}, step=step)

    def close(self) -> None:
        """Send what waits."""
        self._module.finish()
