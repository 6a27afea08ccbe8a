"""Draw what a config trains on, what a step sees, or what a detector finds: PNG files and one contact sheet.

    python tools/visualize.py --config-file F --mode ground_truth        DATASETS.TRAIN as it is annotated
    python tools/visualize.py --config-file F --mode views               weak, strong and half-size training views
    python tools/visualize.py --config-file F --mode predictions --weights W      DATASETS.TEST, truth beside it

Words after the flags are KEY VALUE overrides of the config, as in train_net.py. Boxes are drawn by OpenCV, and on the
Detectron2 engine by Detectron2's `Visualizer` with the set's own names and colours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from fvcore.common.config import CfgNode

from sed.cli.arguments import config_parser, output_folder
from sed.cli.engines import USER_ERRORS, pick_trained
from sed.config import ConfigError
from sed.core.boxes import scale_boxes
from sed.core.structures import Targets
from sed.core.views import downscale, draw_scale
from sed.data.loaders import test_loader
from sed.data.records import Dataset, reorder
from sed.evaluation.coco import detect_all
from sed.evaluation.pictures import draw_found, draw_truth, draw_view
from sed.evaluation.visualize import contact_sheet, write_png
from sed.runtime.engine import Engine

Cell = tuple[np.ndarray, str]  # picture [H, W, 3] uint8 RGB, caption
CELL = 320  # side of a picture on the contact sheet


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = config_parser(__doc__)
    add = parser.add_argument
    add("--mode", required=True, choices=("predictions", "ground_truth", "views"))
    add("--weights", default="", metavar="FILE", help="predictions; default: OUTPUT_DIR's model_best.pth; or coco")
    add("--count", type=int, default=16, help="images (default 16)")
    add("--score-threshold", type=float, default=0.5, help="predictions: leave out those below it (default 0.5)")
    add("--output", type=Path, default=None, metavar="DIR", help="default: OUTPUT_DIR/visualize/<mode>")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Draw and write."""
    args = parse(arguments)
    try:
        if args.count < 1:
            raise ConfigError(f"--count is {args.count}; it must be at least 1")
        engine, cfg, weights = pick_trained(args.config_file, args.opts, args.weights)
        folder = output_folder(args.output, cfg.OUTPUT_DIR, "visualize", args.mode)
        modes = {"ground_truth": ground_truth, "views": views}
        if args.mode == "predictions":
            rows = list(predictions(engine, cfg, args.count, weights, args.score_threshold))
        else:
            rows = list(modes[args.mode](engine, cfg, args.count))
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    for number, row in enumerate(rows):
        for picture, caption in row:
            kind = caption.split(",")[0].replace(" ", "_")
            write_png(str(folder / f"{number:04d}_{kind}.png"), picture)
    if len(rows[0]) == 1:  # single pictures: a square sheet
        side = int(np.ceil(np.sqrt(len(rows))))
        flat = [row[0] for row in rows]
        rows = [flat[i : i + side] for i in range(0, len(flat), side)]
    write_png(str(folder / "contact_sheet.png"), contact_sheet(rows, CELL))
    print(f"{folder}/contact_sheet.png and {sum(map(len, rows))} pictures")


def ground_truth(engine: Engine, cfg: CfgNode, count: int) -> Iterator[list[Cell]]:
    """Labelled training images, spread evenly over DATASETS.TRAIN, with their boxes."""
    train = engine.train_set(cfg)
    paint = engine.painter(train)
    for record in spread(train, count).records:
        yield [(draw_truth(record, train.classes, CELL, paint), f"truth, {record['image_id']}")]


def predictions(engine: Engine, cfg: CfgNode, count: int, weights: str, threshold: float) -> Iterator[list[Cell]]:
    """Test images, spread evenly over DATASETS.TEST: ground truth and detections side by side."""
    detector = engine.load_detector(cfg, weights)
    test = spread(reorder(engine.test_set(cfg), detector.class_names, "the detector"), count)
    mapper, paint = engine.test_mapper(cfg), engine.painter(test)
    workers = cfg.DATALOADER.NUM_WORKERS
    batches = test_loader(test.records, mapper, cfg.TEST.IMS_PER_BATCH, workers, multiple=detector.size_divisibility)
    found = detect_all(detector, batches, next(detector.parameters()).device)
    for record in test.records:
        yield [
            (draw_truth(record, test.classes, CELL, paint), f"truth, {record['image_id']}"),
            (draw_found(record, found, test.classes, threshold, CELL, paint), f"prediction, score >= {threshold}"),
        ]


def views(engine: Engine, cfg: CfgNode, count: int) -> Iterator[list[Cell]]:
    """Weak, strong and half-size views of labelled images as training makes them; their boxes show that they fit.

    Unlabelled images go through the same code; their boxes are not known to it.
    """
    dataset, weak_views, strong_views = engine.view_streams(cfg)
    classes, paint = dataset.classes, engine.painter(dataset)
    step = shown = 0
    while shown < count:
        weak, strong = next(weak_views), next(strong_views)
        s = draw_scale(step, cfg.SED.MAX_SCALE, cfg.SEED)
        small = downscale(weak.images, s)
        for i, targets in enumerate(weak.targets):
            position = step * cfg.SEMI.IMS_PER_BATCH_LABELED + i
            if position % 2 and shown < count:  # every second one has a strong view
                halved = Targets(scale_boxes(targets.boxes, 1 / 2**s), targets.classes)
                frame = weak.images.sizes[i]
                yield [
                    (draw_view(weak.images, i, targets, classes, CELL, paint=paint), "weak view"),
                    (draw_view(strong.images, i, strong.targets[i], classes, CELL, paint=paint), "strong view"),
                    (draw_view(small, i, halved, classes, CELL, frame, paint), f"small view, 1 / {2**s}"),
                ]
                shown += 1
        step += 1


def spread(dataset: Dataset, count: int) -> Dataset:
    """At most `count` records, evenly spaced, in order."""
    every = max(1, len(dataset) // count)
    return replace(dataset, records=dataset.records[::every][:count])
