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
from pathlib import Path

from fvcore.common.config import CfgNode

from sed.cli.engines import USER_ERRORS, pick_trained
from sed.cli.last_resort import last_resort
from sed.data.files import save_text, try_file
from sed.detectors.base import Detector
from sed.evaluation.coco import format_table
from sed.evaluation.scales import format_distances
from sed.runtime.checkpoint_files import CheckpointError, read
from sed.runtime.engine import Engine
from sed.studies.scale_evaluation import measure, read_sizes

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
        engine, cfg, weights = pick_trained(args.config_file, args.opts, args.weights)
        sizes = read_sizes(args.sizes, (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST), args.all)
        detector = load(engine, cfg, weights, args.which)
        try_file(args.output, "--output")
        results = measure(engine, cfg, detector, sizes, args.all)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    save_text(json.dumps(results, indent=1), args.output)
    rows = {f"{size} px": row | {"seconds": results["seconds"][size]} for size, row in results["sizes"].items()}
    if args.all:
        rows["ensemble"] = results["ensemble"] | {"seconds": results["seconds"]["ensemble"]}
    print(format_table(rows))
    if args.all:
        print(f"gain of the ensemble: {results['ensemble']['gain']:+.1f} AP")
        print(format_distances(results["score_distance"]))


def load(engine: Engine, cfg: CfgNode, weights: str, which: str) -> Detector:
    """The trained detector. A student is in full checkpoints only: other files hold one model, mostly the teacher.

    Raises:
        CheckpointError: a file that cannot be read, does not fit, or holds no student; or WeightsError.
    """
    if which == "student":
        content = read(weights) if Path(weights).is_file() else {}
        tensors = content.get("method") or content.get("model")
        if not isinstance(tensors, dict) or not any(str(name).startswith(STUDENTS) for name in tensors):
            raise CheckpointError(f"{weights}: holds no student; name a full checkpoint of the run, checkpoint_*.pth")
    return engine.load_detector(cfg, weights, which)


if __name__ == "__main__":
    with last_resort():
        main()
