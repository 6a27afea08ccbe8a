"""The Detectron2 engine as the command line sees it: the functions of `sed.runtime.engine.Engine`."""

from sed.d2.catalog import dataset_of as load_dataset
from sed.d2.config import load_config
from sed.d2.inference import load_detector, painter, test_classes, test_mapper, test_set, train_set, view_streams
from sed.d2.run import evaluate_only, train

__all__ = ["evaluate_only", "load_config", "load_dataset", "load_detector", "painter", "test_classes"]
__all__ += ["test_mapper", "test_set", "train", "train_set", "view_streams"]
