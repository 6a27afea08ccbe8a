"""The native engine as the command line sees it: the functions of `sed.runtime.engine.Engine`."""

from sed.config import load_config
from sed.data.catalog import load_dataset
from sed.engine.build import build_test_set as test_classes
from sed.engine.build import build_test_set as test_set
from sed.engine.build import test_mapper
from sed.engine.inference import load_detector, painter, train_set, view_streams
from sed.engine.run import evaluate_only, train

__all__ = ["evaluate_only", "load_config", "load_dataset", "load_detector", "painter", "test_classes"]
__all__ += ["test_mapper", "test_set", "train", "train_set", "view_streams"]
