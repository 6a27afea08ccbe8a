"""What the entry scripts ask of the native engine; see `tools/engines.py`."""

from sed.config import load_config
from sed.engine.build import build_test_set as test_classes
from sed.engine.build import build_test_set as test_set
from sed.engine.inference import load_detector, painter, test_mapper, train_set, view_streams
from sed.engine.run import evaluate_only, train

__all__ = [
    "evaluate_only",
    "load_config",
    "load_detector",
    "painter",
    "test_classes",
    "test_mapper",
    "test_set",
    "train",
    "train_set",
    "view_streams",
]
