"""Which engine runs a config: Detectron2's, or the native one on torchvision.

`sed/d2` (the Detectron2 extension) and `sed/engine` (native) take the same command line and the same YAML;
neither imports the other. This file only looks whether the first is there; it imports nothing of it.
"""

from __future__ import annotations

from importlib.util import find_spec

INSTALL_PAGE = "https://detectron2.readthedocs.io/tutorials/install.html"


class EngineError(RuntimeError):
    """The engine that the config asks for cannot run here."""


def select_engine(wanted: str) -> tuple[str, str]:
    """The engine that runs, and why, in words for the first log line.

    Args:
        wanted: ENGINE of the config: "auto", "detectron2" or "torchvision".

    Raises:
        EngineError: for "detectron2" where Detectron2 or `sed.d2` is missing.
    """
    if wanted == "torchvision":
        return "torchvision", "ENGINE names it"
    missing = _missing()
    if wanted == "detectron2":
        if missing:
            raise EngineError(
                f"ENGINE is detectron2, but {missing}. Install Detectron2 ({INSTALL_PAGE}) or set ENGINE to torchvision"
            )
        return "detectron2", "ENGINE names it"
    if missing:
        return "torchvision", f"ENGINE is auto and {missing}"
    return "detectron2", "ENGINE is auto and Detectron2 is installed"


def _missing() -> str:
    if find_spec("detectron2") is None:
        return "Detectron2 is not installed"
    if find_spec("sed.d2") is None:
        return "this version of sed has no Detectron2 extension (sed.d2)"
    return ""
