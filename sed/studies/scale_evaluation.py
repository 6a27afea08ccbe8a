"""A trained detector at several input sizes: AP and seconds of each, of their ensemble, and the distance of scores.

What the ensemble and the distance are: `sed.evaluation.scales`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from fvcore.common.config import CfgNode
from tqdm import tqdm

from sed.config import ConfigError
from sed.data.errors import DataError
from sed.data.loaders import test_loader
from sed.data.records import reorder
from sed.detectors.base import Detector
from sed.evaluation.coco import detect_all, score
from sed.evaluation.scales import ensemble, read_size, score_distance
from sed.runtime.engine import Engine


def read_sizes(words: list[str], usual: tuple[int, int], everything: bool) -> dict[str, tuple[int, int]]:
    """The sizes by name, each (short side, long limit).

    Raises:
        ConfigError: for sizes that nothing can be measured at.
    """
    given = f"--sizes {' '.join(words)}"
    try:
        sizes = {word: read_size(word, usual) for word in words}
    except ValueError as error:
        raise ConfigError(f"{given}: {error}") from error
    if everything and usual not in sizes.values():
        name = f"{usual[0]} (or {usual[0]}x{usual[1]})"
        raise ConfigError(f"{given}: the ensemble is compared with INPUT.MIN_SIZE_TEST, {name}; add it")
    return sizes


def measure(
    engine: Engine, cfg: CfgNode, detector: Detector, sizes: dict[str, tuple[int, int]], everything: bool
) -> dict[str, Any]:
    """{"sizes": name -> metrics, "seconds": name -> seconds an image}, and where asked for ensemble and distances.

    Raises:
        ConfigError: for a size that the detector cannot work at.
        DataError: where DATASETS.TEST cannot be used.
    """
    test = reorder(engine.test_set(cfg), detector.class_names, "the detector")
    device = next(detector.parameters()).device
    usual = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    seconds: dict[str, float] = {}
    with tqdm(total=len(test) * (len(sizes) + everything), unit="image", disable=None) as bar:

        def batches(size: tuple[int, int], size_divisibility: int, name: str = "") -> Iterator:
            at = cfg.clone()
            at.defrost()
            at.INPUT.MIN_SIZE_TEST, at.INPUT.MAX_SIZE_TEST = size
            mapper, workers = engine.test_mapper(at), cfg.DATALOADER.NUM_WORKERS
            loader = test_loader(test.records, mapper, cfg.TEST.IMS_PER_BATCH, workers, multiple=size_divisibility)
            return counted(loader, bar, seconds, name)

        found = {}
        for name, size in sizes.items():
            with explained(name):
                found[name] = detect_all(detector, batches(size, detector.size_divisibility, name), device)
        results: dict[str, Any] = {"sizes": {name: score(rows, test) for name, rows in found.items()}}
        results["seconds"] = {name: seconds[name] / max(len(test), 1) for name in sizes}
        if everything:
            start = time.perf_counter()
            merged = ensemble(found.values(), cfg.TEST.DETECTIONS_PER_IMAGE)
            own = (time.perf_counter() - start) / max(len(test), 1)
            results["seconds"]["ensemble"] = sum(results["seconds"].values()) + own
            together = score(merged, test)
            single = next(name for name, size in sizes.items() if size == usual)
            together["gain"] = together["AP"] - results["sizes"][single]["AP"]
            with explained(usual[0] // 2):
                distances = score_distance(detector, batches(usual, detector.size_divisibility * 2), test, device)
            results |= {"ensemble": together, "score_distance": distances}
    return results


@contextmanager
def explained(size: str | int) -> Iterator[None]:
    """What a detector refuses, such as a view with fewer places than it has queries, is the choice of the size."""
    try:
        yield
    except (ConfigError, DataError):
        raise
    except ValueError as error:
        raise ConfigError(f"at {size} px: {error}") from error


def counted(loader: Iterable, bar: tqdm, seconds: dict[str, float], name: str) -> Iterator:
    """The same batches; counts the images and, under `name`, the seconds until each batch is done with."""
    seconds[name] = 0.0
    for batch in loader:
        start = time.perf_counter()
        yield batch  # what is done with it ends with numbers on the CPU, so a GPU has nothing left to do
        seconds[name] += time.perf_counter() - start
        bar.update(len(batch[0]))
