"""Evaluate finished weights at several input sizes: AP of each, of their ensemble, and the distance between scales.

    python tools/evaluate_scales.py --config-file F --weights model_final.pth --sizes 64 128 192 --all --output out.json

writes {"sizes": {"64": {"AP": ..., "AP50": ..., ...}, ...}} of DATASETS.TEST; a size is the short side of the images,
and INPUT.MAX_SIZE_TEST changes with it in proportion. With --all also "ensemble", the metrics of the detections of all
sizes together and "gain", its AP less that at INPUT.MIN_SIZE_TEST, which must be one of the sizes; and
"score_distance" between INPUT.MIN_SIZE_TEST and half of it. What these are: sed/evaluation/scales.py. Words at the end
are KEY VALUE overrides of the config (not right after --sizes).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
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
from sed.evaluation.scales import ensemble, format_distances, scaled_size, score_distance
from sed.runtime.checkpoint_files import CheckpointError, read

STUDENTS = ("student.", "method.student.")  # names of its weights in the full checkpoints of either engine


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="of the training run")
    add("--weights", required=True, metavar="FILE", help="model_final.pth, a full checkpoint, ...; or coco")
    add("--which", choices=("teacher", "student"), default="teacher", help="of a full checkpoint (default teacher)")
    add("--sizes", required=True, nargs="+", type=int, metavar="PIXELS", help="short sides of the test images")
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
        check_sizes(args.sizes, cfg.INPUT.MIN_SIZE_TEST, args.all)
        detector = load(driver, cfg, weights, args.which)
        results = measure(driver, cfg, detector, list(dict.fromkeys(args.sizes)), args.all)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_text(json.dumps(results, indent=1), args.output)
    rows = {f"{size} px": row for size, row in results["sizes"].items()}
    print(format_table(rows | ({"ensemble": results["ensemble"]} if args.all else {})))
    if args.all:
        print(f"gain of the ensemble: {results['ensemble']['gain']:+.1f} AP")
        print(format_distances(results["score_distance"]))


def check_sizes(sizes: list[int], usual: int, everything: bool) -> None:
    """Raise ConfigError for sizes that nothing can be measured at."""
    given = f"--sizes {' '.join(map(str, sizes))}"
    if min(sizes) < 1:
        raise ConfigError(f"{given}: expected lengths in pixels, at least 1")
    if everything and usual not in sizes:
        raise ConfigError(f"{given}: the ensemble is compared with INPUT.MIN_SIZE_TEST, {usual}; add it")


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


def measure(driver: ModuleType, cfg: CfgNode, detector: Detector, sizes: list[int], everything: bool) -> dict[str, Any]:
    """What the module's docstring describes.

    Raises:
        ConfigError: for a size that the detector cannot work at.
        DataError: where DATASETS.TEST cannot be used.
    """
    test, device = driver.test_set(cfg), next(detector.parameters()).device
    usual = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    with tqdm(total=len(test) * (len(sizes) + everything), unit="image", disable=None) as bar:

        def batches(size: int, size_divisibility: int) -> Iterator:
            at = cfg.clone()
            at.defrost()
            at.INPUT.MIN_SIZE_TEST, at.INPUT.MAX_SIZE_TEST = scaled_size(size, usual)
            mapper, workers = driver.test_mapper(at), cfg.DATALOADER.NUM_WORKERS
            return counted(
                test_loader(test.records, mapper, cfg.TEST.IMS_PER_BATCH, workers, multiple=size_divisibility),
                bar,
            )

        found = {}
        for size in sizes:
            with explained(size):
                found[size] = detect_all(detector, batches(size, detector.size_divisibility), device)
        results: dict[str, Any] = {"sizes": {str(size): score(rows, test) for size, rows in found.items()}}
        if everything:
            together = score(ensemble(found.values(), cfg.TEST.DETECTIONS_PER_IMAGE), test)
            together["gain"] = together["AP"] - results["sizes"][str(usual[0])]["AP"]
            with explained(usual[0] // 2):
                distances = score_distance(detector, batches(usual[0], detector.size_divisibility * 2), test, device)
            results |= {"ensemble": together, "score_distance": distances}
    return results


@contextmanager
def explained(size: int) -> Iterator[None]:
    """What a detector refuses, such as a view with fewer places than it has queries, is the choice of the size."""
    try:
        yield
    except USER_ERRORS:
        raise
    except ValueError as error:
        raise ConfigError(f"at {size} px: {error}") from error


def counted(loader: Iterable, bar: tqdm) -> Iterator:
    """The same batches; the bar moves on by the images of each when it is done with."""
    for batch in loader:
        yield batch
        bar.update(len(batch[0]))


if __name__ == "__main__":
    main()
