"""What an engine offers, and which engine runs a config: Detectron2's (`sed.d2`) or the native one (`sed.engine`).

Both take the same command line and the same YAML; neither imports the other. This file only looks whether Detectron2 is
there; it imports nothing of it. `sed.cli.engines.pick` gives the engine of a config.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from sed.core.structures import LabeledBatch
from sed.data.records import Dataset
from sed.detectors.base import Detector
from sed.evaluation.files import TestMapper
from sed.evaluation.pictures import Painter

INSTALL_PAGE = "https://detectron2.readthedocs.io/tutorials/install.html"


class EngineError(RuntimeError):
    """The engine that the config asks for cannot run here."""


class Engine(Protocol):
    """All that the command line asks of an engine; the modules `sed.engine.driver` and `sed.d2.driver` are two.

    `cfg` is what the engine's own `load_config` returned.
    """

    def load_config(self, path: str | Path | None = None, overrides: Sequence[str] = ()) -> Any:
        """A config file (None: the defaults) with KEY VALUE overrides, checked."""

    def train(self, cfg: Any, resume: bool = False) -> Any:
        """Train what `cfg` describes into its OUTPUT_DIR."""

    def evaluate_only(self, cfg: Any, resume: bool = False, which: str = "teacher") -> dict[str, Any]:
        """The metrics of trained weights on DATASETS.TEST; `which` of a full checkpoint, "teacher" or "student"."""

    def load_detector(self, cfg: Any, weights: str, which: str = "teacher") -> Detector:
        """The detector with trained weights ("": those in OUTPUT_DIR), in eval mode, on MODEL.DEVICE."""

    def load_dataset(self, source: str, image_root: str = "", labeled: bool = True) -> Dataset:
        """One data set, by its name or path."""

    def train_set(self, cfg: Any) -> Dataset:
        """All of DATASETS.TRAIN with its annotations, before any split."""

    def test_set(self, cfg: Any) -> Dataset:
        """DATASETS.TEST with its annotations; its number of classes is checked against the config."""

    def test_classes(self, cfg: Any) -> Dataset:
        """Names and category ids of the classes of DATASETS.TEST; with records or without."""

    def test_mapper(self, cfg: Any) -> TestMapper:
        """What reads and resizes a test image."""

    def view_streams(self, cfg: Any) -> tuple[Dataset, Iterator[LabeledBatch], Iterator[LabeledBatch]]:
        """The labelled set and its training batches twice, without and with strong views."""

    def painter(self, dataset: Dataset) -> Painter:
        """What draws boxes on a picture of `dataset`."""


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
