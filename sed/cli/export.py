"""Write a trained detector as an ONNX file, compared with the model on random images before it is left.

    ssod export --run ssod_run --output model.onnx
    ssod export --run ssod_run --output model.onnx --size 480 640
    ssod export --config-file F --weights model_best.pth --output model.onnx

--run is the folder of `ssod train`, or the OUTPUT_DIR of another training. The file takes one RGB image [height, width,
3] of uint8, already resized as its metadata says, and gives boxes [D, 4] (x0, y0, x1, y1 in pixels of that image),
labels [D] (index of the class) and scores [D]. --size is for runtimes that want fixed sizes, and for detectors that can
be exported in no other way. Words at the end are KEY VALUE overrides of the config.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from fvcore.common.config import CfgNode

from sed.cli.engines import USER_ERRORS, find_run, pick_trained, read_classes
from sed.data.files import try_file
from sed.detectors.onnx_file import OPSET, ExportError, require_onnx, save_onnx

COMPARED_SIDE = 320  # pixels: the comparison takes images of the short side of test images, but of no more than this
log = logging.getLogger("export")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    trained = parser.add_mutually_exclusive_group(required=True)
    trained.add_argument("--run", type=Path, metavar="DIR", help="folder of a training")
    trained.add_argument("--config-file", metavar="FILE", help="of a training")
    add("--weights", default="", metavar="FILE", help="default: the run's model.pth or model_best.pth; or coco")
    add("--format", choices=("onnx",), default="onnx", help="default: onnx")
    add("--output", required=True, type=Path, metavar="FILE", help="such as model.onnx")
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="take images of this size alone (default: of any)")
    add("--score-threshold", type=float, default=0.05, help="leave out detections below it (default 0.05)")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args(arguments)
    if args.size and min(args.size) < 1:
        parser.error(f"--size is {args.size[0]} {args.size[1]}; expected a height and a width in pixels")
    if not 0 <= args.score_threshold < 1:
        parser.error(f"--score-threshold is {args.score_threshold}; expected 0 or more, below 1")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Load, export, compare."""
    args = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        require_onnx()
        if args.run:
            find_run(args)
        engine, cfg, weights = pick_trained(args.config_file, args.opts, args.weights)
        path = try_file(args.output, "--output")
        detector = engine.load_detector(cfg, weights)
        classes = detector.class_names or read_classes(engine, cfg, detector, args.run).classes
        found = save_onnx(
            detector,
            path,
            classes,
            resize_rule(cfg, args.size),
            args.score_threshold,
            tuple(args.size) if args.size else None,
            min(cfg.INPUT.MIN_SIZE_TEST, COMPARED_SIDE),
        )
    except (*USER_ERRORS, ExportError) as error:
        sys.exit(f"error: {error}")
    log.info("%s: ONNX, opset %d; onnxruntime and the model differ by at most %s", path, OPSET, found)


def resize_rule(cfg: CfgNode, size: list[int] | None) -> str:
    """What to do with an image before, for people and programs that have the file only."""
    if size:
        return f"stretch to height {size[0]}, width {size[1]} (shrink by area, else bilinear)"
    short, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    return f"short side to {short}, longer side at most {longest}, keep the ratio (shrink by area, else bilinear)"
