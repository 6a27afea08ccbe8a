"""Detect objects in images and write COCO-format results.

    python tools/predict.py --config-file F --weights model_best.pth --input photos --output results.json
    python tools/predict.py --config-file F --weights model_best.pth --input photos --output pseudo.json \
        --as-annotations --score-threshold 0.7

The first form writes a COCO results list: image_id, category_id, bbox [x, y, w, h] in the pixels of the file,
score, and the file's name. The second writes a whole COCO file with images and categories, so that predictions can
be trained on (DATASETS.TRAIN pseudo.json, DATASETS.IMAGE_ROOT photos) or corrected in an annotation tool. Image ids
are those of the json where --input is a COCO json; the files' numbers where all names are numbers, as in COCO; else
1, 2, 3, ... in the order of the paths. Words at the end are KEY VALUE overrides of the config (not right after
--input, which takes any number of paths).
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from fvcore.common.config import CfgNode
from tqdm import tqdm

from sed.cli.arguments import config_parser
from sed.cli.engines import USER_ERRORS, pick_trained
from sed.data.errors import DataError
from sed.data.records import Dataset, reorder
from sed.detectors.base import Detector
from sed.evaluation.coco import detect_all, to_coco_results
from sed.evaluation.files import ImageFiles, find_numbered
from sed.evaluation.result_files import Rows, file_names, write_annotations
from sed.runtime.engine import Engine

log = logging.getLogger("predict")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = config_parser(__doc__, "of the training run")
    add = parser.add_argument
    add("--weights", default="", metavar="FILE", help="default: OUTPUT_DIR's model_best.pth; or coco")
    add("--input", required=True, nargs="+", metavar="PATH", help="folders (any depth), image files, or a COCO json")
    add("--output", required=True, type=Path, metavar="JSON")
    add("--score-threshold", type=float, default=0.05, help="leave out detections below it (default 0.05)")
    add("--as-annotations", action="store_true", help="a whole COCO file instead of a results list")
    add("--skip-unreadable", action="store_true", help="count images that cannot be read and go on")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Read, detect, write."""
    args = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        engine, cfg, weights = pick_trained(args.config_file, args.opts, args.weights)
        root, files, ids, sizes = find_numbered(args.input, cfg.DATASETS.IMAGE_ROOT)
        detector = engine.load_detector(cfg, weights)
        classes = read_classes(engine, cfg, detector)
        images = ImageFiles(files, ids, engine.test_mapper(cfg), cfg.TEST.IMS_PER_BATCH, args.skip_unreadable, sizes)
        device = next(detector.parameters()).device
        with Rows(args.output) as rows, tqdm(total=len(files), unit="image") as bar:
            for batch in images:
                found = to_coco_results(detect_all(detector, [batch], device), classes)
                names = file_names(images.records[-len(batch[1]) :], root)
                kept = [row for row in found if row["score"] >= args.score_threshold]
                rows.add({**row, "file_name": names[row["image_id"]]} for row in kept)
                bar.update(len(batch[1]))
            bar.update(len(images.skipped))
            if args.as_annotations:
                write_annotations(rows, images.records, classes, root)
            else:
                rows.finish("", "")
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    if images.skipped:
        log.warning("skipped %d unreadable images, the first: %s", len(images.skipped), images.skipped[0])
    log.info("%s: %d detections in %d images", args.output, rows.count, len(images.records))


def read_classes(engine: Engine, cfg: CfgNode, detector: Detector) -> Dataset:
    """Names and original ids of the categories: those of DATASETS.TEST, matched by name with the detector's.

    Without them the detector's own names, numbered from 1; a file that does not say its names has numbers, with a
    warning.
    """
    reason, count, names = "DATASETS.TEST is empty", detector.num_classes, detector.class_names
    if cfg.DATASETS.TEST:
        try:
            classes = engine.test_classes(cfg)
            if len(classes.classes) == count:
                return reorder(classes, names, "the detector")
            reason = f"{classes.name} has {len(classes.classes)} categories, the detector {count}"
        except DataError as error:
            reason = str(error)
    ids = tuple(range(1, count + 1))
    if names:
        log.warning("category ids are not known (%s); %s are numbered from 1", reason, ", ".join(names[:5]))
        return Dataset("", [], names, ids)
    log.warning("category names are not known (%s); they are called 1 to %d", reason, count)
    return Dataset("", [], tuple(map(str, ids)), ids)
