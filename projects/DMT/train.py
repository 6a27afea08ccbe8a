"""Train by DMT, DST-CBC or one of their baselines: every round of a config, in one output folder.

    python projects/DMT/train.py --config-file projects/DMT/configs/voc_1_20.yaml
    python projects/DMT/train.py --config-file projects/DMT/configs/voc_1_20.yaml --resume
    python projects/DMT/train.py --config-file projects/DST-CBC/configs/voc_1_20.yaml --num-gpus 8
    python projects/DMT/train.py --config-file FILE --eval-only --weights output/dmt/model_final.pth

Words after the flags are KEY VALUE pairs that override the config; projects/DMT/dmt/config.py lists every key.
"""

from __future__ import annotations

import argparse
import sys

from dmt.config import load
from dmt.run import Run, evaluate_only
from dmt.training import DivergedError
from sed.cli.last_resort import last_resort
from sed.config import ConfigError
from sed.data.errors import DataError
from sed.detectors.weights import WeightsError
from sed.runtime.checkpoint_files import CheckpointError
from sed.runtime.launch import LaunchError, launch_main, make_parser, rank
from sed.runtime.output import OutputError, room_needed

USER_ERRORS = (ConfigError, DataError, CheckpointError, WeightsError, OutputError, LaunchError, DivergedError)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--weights", default=None, metavar="FILE", help="default: OUTPUT_DIR/model_final.pth")
    parser.add_argument("--model", choices=("A", "B"), default=None, help="whose pixels --weights expects")
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    """One process of the run."""
    try:
        cfg = load(args.config_file, args.opts)
        if not args.eval_only:
            with room_needed(cfg.OUTPUT_DIR):
                Run(cfg, args.resume).run()
            return
        scores = evaluate_only(cfg, args.weights, args.model)
        if rank() == 0:
            print("\n".join(f"{name:24} {value:6.2f}" for name, value in scores.items() if name != "score"))
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    with last_resort():
        launch_main(main, parse())
