"""What tests/dmt/test_dmt_processes.py runs in one process and in two: a training, a labelling, an evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

import dmt.build
from dmt.augmentation import SegmentationTest, SegmentationTrain
from dmt.config import load
from dmt.inference import Inference
from dmt.label_store import LabelStore
from dmt.loading import Source, StoredLabels, Stream
from dmt.run import Run
from dmt.training import Recipe, Training
from sed.engine.solver import Precision
from sed.runtime.launch import rank, world_size
from tests.reference.dmt_sets import Squares, squares

CPU = torch.device("cpu")


def network() -> nn.Module:
    """Without batch norm, whose statistics are each process's own."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))


def everything(folder: str) -> None:
    """Train, label, evaluate; each process writes what it has to rank<r>.pth."""
    torch.set_num_threads(1)
    own = Path(folder)
    own.mkdir(exist_ok=True)
    train, precision = Squares("train", 10, 0), Precision(False, "bfloat16", CPU)
    test = Inference(SegmentationTest(normalization="half"), precision, CPU, batch_size=3)
    store = LabelStore(own / "labels")
    ranking = test.label(network(), train, range(4, 10), store)
    labels = StoredLabels(store, train.keys, ranking.thresholds(0.4))
    view = SegmentationTrain((16, 16), normalization="half")
    sources = [Source(train, range(4, 10), 3, view, labels, pseudo=True), Source(train, range(4), 1, view)]
    states = {}
    for name, options in {
        "dynamic": {"gamma1": 2.0, "gamma2": 2.0},
        "online": {"online": True, "threshold": 0.4},
    }.items():
        (own / name).mkdir(exist_ok=True)
        recipe = Recipe(steps=6, lr=0.2, checkpoint_period=3, **options)
        stream = Stream(sources, 0, 0, rank(), world_size())
        training = Training(network(), stream, recipe, precision, CPU, own / name)
        training.run()
        states[name] = training.model.state_dict()
    scores = test.evaluate(training.model, Squares("test", 7, 1), range(7))
    counts = torch.from_numpy(np.stack([ranking.thresholds(0.4), ranking.kept(ranking.thresholds(0.4))]))
    torch.save({"states": states, "scores": scores, "counts": counts}, own / f"rank{rank()}.pth")


def whole_run(folder: str, words: list[str], resume: bool) -> None:
    """A run on tiny squares."""
    torch.set_num_threads(1)
    dmt.build.load_sets = lambda name, root: squares()
    Run(load(None, [*words, "OUTPUT_DIR", folder]), resume).run()
