"""Evaluate finished weights at several input sizes: AP of each, of their ensemble, and the distance between scales.

    python tools/evaluate_scales.py --config-file F --weights model_final.pth --sizes 64 128 192 --all --output out.json

writes {"sizes": {"64": {"AP": ..., "AP50": ..., ...}, ...}, "seconds": {"64": ..., ...}} of DATASETS.TEST. A size is
the short side of the images, and INPUT.MAX_SIZE_TEST changes with it in proportion; 480x1333 says both, short side
and long limit (Tab. 7: 480x1333 800x1333 1200x1400). Seconds are those of an image from batch to detections, without
reading it; those of the ensemble are of all sizes and of its NMS. With --all also "ensemble", the metrics of the
detections of all sizes together and "gain", its AP less that at INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST, which
must be one of the sizes; and "score_distance" between that size and half of it. What these are:
sed/evaluation/scales.py. Words at the end are KEY VALUE overrides of the config (not right after --sizes).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from fvcore.common.config import CfgNode
from tqdm import tqdm

from sed.cli.engines import USER_ERRORS, pick_trained
from sed.config import ConfigError
from sed.data.files import save_text
from sed.data.loaders import test_loader
from sed.detectors.base import Detector
from sed.evaluation.coco import detect_all, format_table, score
from sed.evaluation.scales import ensemble, format_distances, read_size, score_distance
from sed.runtime.checkpoint_files import CheckpointError, read

STUDENTS = ("student.", "method.student.")  # names of its weights in the full checkpoints of either engine


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="of the training run")
    add("--weights", required=True, metavar="FILE", help="model_final.pth, a full checkpoint, ...; or coco")
    add("--which", choices=("teacher", "student"), default="teacher", help="of a full checkpoint (default teacher)")
    add("--sizes", required=True, nargs="+", metavar="PIXELS", help="short sides, or 480x1333: with the long limit")
    add("--all", action="store_true", help="also the ensemble of all sizes and the score distance")
    add("--output", required=True, type=Path, metavar="JSON")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Load once, evaluate every size, write and print."""
    args = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        driver, cfg, weights = pick_trained(args.config_file, args.opts, args.weights)
        sizes = read_sizes(args.sizes, (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST), args.all)
        detector = load(driver, cfg, weights, args.which)
        results = measure(driver, cfg, detector, sizes, args.all)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_text(json.dumps(results, indent=1), args.output)
    rows = {f"{size} px": row | {"seconds": results["seconds"][size]} for size, row in results["sizes"].items()}
    if args.all:
        rows["ensemble"] = results["ensemble"] | {"seconds": results["seconds"]["ensemble"]}
    print(format_table(rows))
    if args.all:
        print(f"gain of the ensemble: {results['ensemble']['gain']:+.1f} AP")
        print(format_distances(results["score_distance"]))


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


def load(driver: ModuleType, cfg: CfgNode, weights: str, which: str) -> Detector:
    """The trained detector. A student is in full checkpoints only: other files hold one model, mostly the teacher.

    Raises:
        CheckpointError: a file that cannot be read, does not fit, or holds no student; or WeightsError.
    """
    if which == "student":
        content = read(weights) if Path(weights).is_file() else {}
        if not any(n.startswith(STUDENTS) for n in content.get("method") or content.get("model") or {}):
            raise CheckpointError(f"{weights}: holds no student; name a full checkpoint of the run, checkpoint_*.pth")
    return driver.load_detector(cfg, weights, which)


def measure(
    driver: ModuleType, cfg: CfgNode, detector: Detector, sizes: dict[str, tuple[int, int]], everything: bool
) -> dict[str, Any]:
    """What the module's docstring describes.

    Raises:
        ConfigError: for a size that the detector cannot work at.
        DataError: where DATASETS.TEST cannot be used.
    """
    test, device = driver.test_set(cfg), next(detector.parameters()).device
    usual = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    seconds: dict[str, float] = {}
    with tqdm(total=len(test) * (len(sizes) + everything), unit="image", disable=None) as bar:

        def batches(size: tuple[int, int], size_divisibility: int, name: str = "") -> Iterator:
            at = cfg.clone()
            at.defrost()
            at.INPUT.MIN_SIZE_TEST, at.INPUT.MAX_SIZE_TEST = size
            mapper, workers = driver.test_mapper(at), cfg.DATALOADER.NUM_WORKERS
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
    except USER_ERRORS:
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


if __name__ == "__main__":
    main()
