"""Train or evaluate a detector; the same flags as Detectron2's own script, and --eval-model.

    python tools/train_net.py --config-file configs/quickstart.yaml
    python tools/train_net.py --config-file configs/quickstart.yaml SEMI.METHOD supervised
    python tools/train_net.py --config-file configs/quickstart.yaml --resume
    python tools/train_net.py --config-file configs/quickstart.yaml --eval-only --eval-model student
    python tools/train_net.py --config-file FILE --eval-only MODEL.WEIGHTS output/custom/model_best.pth
    python tools/train_net.py --config-file configs/coco_10.yaml --num-gpus 8
    torchrun --nproc-per-node 8 tools/train_net.py --config-file configs/coco_10.yaml

Arguments after the flags are KEY VALUE pairs that override the config; docs/options.md lists every key. The step is
in sed/methods/, the loop in sed/engine/trainer.py or, with ENGINE detectron2, in sed/d2/trainer.py.
"""

from __future__ import annotations

import argparse
import sys

from sed.cli.engines import USER_ERRORS, pick
from sed.cli.last_resort import last_resort
from sed.runtime.guards import TrainingError
from sed.runtime.launch import LaunchError, launch_main, make_parser
from sed.runtime.output import OutputError


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--eval-model", choices=("teacher", "student"), default="teacher", help="with --eval-only")
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    """Train or evaluate, in one process of the run."""
    try:
        engine = pick(args.config_file, args.opts)
        cfg = engine.load_config(args.config_file, args.opts)
        if args.eval_only:
            engine.evaluate_only(cfg, args.resume, args.eval_model)
        else:
            engine.train(cfg, args.resume)
    except (*USER_ERRORS, LaunchError, OutputError, TrainingError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    with last_resort():
        launch_main(main, parse())
