"""All options together: the root of the config."""

from __future__ import annotations

from dataclasses import dataclass

from sed.options.data import DataLoader, Datasets, Input
from sed.options.methods import PseudoLabelOptions, SEDOptions, SEDPlusOptions, SemiOptions
from sed.options.model import ModelOptions
from sed.options.option import option, section
from sed.options.solver import Solver, Test


@dataclass(frozen=True)
class Options:
    """Every key of a config."""

    version: int = option(2, "format version, as in Detectron2", choices=(2,))
    engine: str = option(
        "auto", "auto: Detectron2 where it is installed", choices=("auto", "detectron2", "torchvision")
    )
    output_dir: str = option("./output", "folder of what a run writes")
    tracker: str = option("", "also send metrics to it: Weights & Biases or trackio", choices=("", "wandb", "trackio"))
    seed: int = option(0, "seed of weights, data order, augmentation and drawn scales", low=0)
    model: ModelOptions = section(ModelOptions)
    datasets: Datasets = section(Datasets)
    dataloader: DataLoader = section(DataLoader)
    input: Input = section(Input)
    solver: Solver = section(Solver)
    test: Test = section(Test)
    semi: SemiOptions = section(SemiOptions)
    sed: SEDOptions = section(SEDOptions)
    sed_plus: SEDPlusOptions = section(SEDPlusOptions)
    pseudo_label: PseudoLabelOptions = section(PseudoLabelOptions)
