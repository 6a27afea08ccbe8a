"""What the commands that train many runs share: `make_runner`."""

from __future__ import annotations

from pathlib import Path

from fvcore.common.config import CfgNode
from tqdm import tqdm

from sed.cli.engines import pick
from sed.studies.study_file import Words
from sed.studies.study_runs import Runner


def make_runner(config_file: str | Path, jobs: int, bar: tqdm) -> Runner:
    """What trains by `sed.cli.train_net` and evaluates by `sed.cli.evaluate_scales`, `jobs` runs side by side.

    Args:
        config_file: of every run.
        jobs: processes at a time.
        bar: moves on by one a run.
    """

    def load(path: str | None, words: Words) -> CfgNode:
        return pick(path, words).load_config(path, words)

    return Runner(config_file, load, "sed.cli.train_net", "sed.cli.evaluate_scales", jobs, bar)


def read_set(config_file: str | Path, words: Words, source: str, labeled: bool) -> None:
    """Read a data set as a run with these overrides of a config file would.

    Raises:
        DataError: where it cannot be used.
    """
    engine = pick(str(config_file), words)
    engine.load_dataset(source, engine.load_config(str(config_file), words).DATASETS.IMAGE_ROOT, labeled)
