"""What the entry scripts ask of the Detectron2 engine; see `tools/engines.py`."""

from sed.d2.config import load_config
from sed.d2.inference import load_detector, painter, test_classes, test_mapper, test_set, train_set, view_streams
from sed.d2.run import evaluate_only, train

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
