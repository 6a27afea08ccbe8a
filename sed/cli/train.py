"""Train a detector on your own images: a few with boxes, many without; the report says whether the latter helped.

    ssod train --data my/train.json --unlabeled my/photos
    ssod train --data my/voc --val my/val.json --unlabeled clip.mp4 my/photos --time 30m
    ssod train --data my/data.yaml --unlabeled my/photos --steps 800 --output my_run SEED 3

--data and --val take a COCO json, or a folder or data.yaml of YOLO, Pascal VOC, Roboflow, CVAT, Label Studio or
FiftyOne. Without --val the validation split of --data is evaluated on, and where there is none a fifth of its images.
Looks at the data and stops where they have errors; chooses image size, network and steps, and writes them with reasons
to OUTPUT/config.yaml; trains a supervised baseline and a method from the same beginning; evaluates both; leaves
report.html and model.pth, the better of the two. Stopped or killed anywhere, the same command goes on. KEY VALUE words
at the end override the config.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from fvcore.common.config import CfgNode

from sed.cli.arguments import duration, stoppable
from sed.cli.engines import USER_ERRORS, pick
from sed.cli.train_config import SETS, prepare, side_by_side
from sed.config import ConfigError
from sed.data.files import save_text, try_folder
from sed.data.own_sets import FRAMES
from sed.defaults import ROWS
from sed.runtime.output import OutputError, only_run
from sed.studies.own_config import LEAST_STEPS
from sed.studies.own_run import CONFIG, REPORT, SUPERVISED, compare_pair, train_pair

ASKED = "asked.json"
LEFT = ("run.lock", "check.html", "trial.log", FRAMES)  # of a call that found an error in the data
OWN = ("ENGINE", "OUTPUT_DIR", "DATASETS.TRAIN", "DATASETS.UNLABELED", "DATASETS.TEST", "SEMI.METHOD")
CORRECTED = ("time", "steps", "method", "baseline", "words")  # may change until a training has saved something
METHODS = ("sed_plus", "pseudo_label", "sed", SUPERVISED)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; KEY VALUE words may also follow --unlabeled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, metavar="DATA", help="labelled images")
    add("--unlabeled", nargs="+", default=[], metavar="PHOTOS", help="folders, videos, jsons, lists of paths (.txt)")
    add("--val", default="", metavar="DATA", help="labelled images to evaluate on")
    add("--output", type=Path, default=Path("ssod_run"), metavar="DIR", help="folder of the run (default ssod_run)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--time", type=duration, metavar="30m", help="about how long all trainings take (s, m or h)")
    length.add_argument("--steps", type=int, metavar="N", help="of each training")
    add("--method", choices=METHODS, default=METHODS[0], help=f"how unlabelled images are used (default {METHODS[0]})")
    add("--no-baseline", action="store_true", help="train no baseline: nothing will tell whether they helped")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args(arguments)
    keys = [i for i, word in enumerate(args.unlabeled) if word in ROWS]
    if keys:
        args.unlabeled, args.opts = args.unlabeled[: keys[0]], [*args.unlabeled[keys[0] :], *args.opts]
    if not args.unlabeled and args.method != SUPERVISED:
        parser.error("--unlabeled PHOTOS is missing; without such images there is --method supervised")
    if own := [word for word in args.opts[::2] if word in OWN]:
        parser.error(f"{own[0]} is chosen by ssod train itself; tools/train_net.py and a config leave it to you")
    if args.steps is not None and args.steps < LEAST_STEPS:
        parser.error(f"--steps is {args.steps}; expected {LEAST_STEPS} or more")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """All stages, each of which is left out where it is finished."""
    args = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        output = try_folder(args.output, "--output").resolve()
        with only_run(output), stoppable():
            claim(args, output)
            if not (output / CONFIG).exists():
                try:
                    prepare(args, output, command())
                except (*USER_ERRORS, SystemExit):  # to be put right: pages and frames of it stay
                    shutil.rmtree(output / SETS, ignore_errors=True)
                    (output / ASKED).unlink()
                    raise
            train(args, output)
    except (*USER_ERRORS, OutputError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stop:
        print("stopped; give the command again to go on", file=sys.stderr)
        sys.exit(getattr(stop, "code", 130))


def claim(args: argparse.Namespace, output: Path) -> None:
    """Make sure that the folder is new or holds this very run.

    Raises:
        ConfigError: with what differs.
    """
    asked = {
        "data": absolute(args.data),
        "val": absolute(args.val),
        "unlabeled": [absolute(name) for name in args.unlabeled],
        "time": args.time,
        "steps": args.steps,
        "method": args.method,
        "baseline": not args.no_baseline,
        "words": args.opts,
    }
    path = output / ASKED
    if path.exists():
        there = json.loads(path.read_text())
        changed = [key for key in asked if there.get(key) != asked[key]]
        begun = [*output.glob("*/checkpoint_*.pth"), *output.glob("*/model_final.pth")]
        if changed and (begun or not set(changed) <= set(CORRECTED)):
            told = "; ".join(f"{key} {there.get(key)!r}, now {asked[key]!r}" for key in changed)
            raise ConfigError(
                f"{output} holds a run that was asked for with {told}: choose another --output, or delete the folder"
            )
        if changed:  # before the first checkpoint: the data stay as they were read, the rest is chosen anew
            (output / CONFIG).unlink(missing_ok=True)
            for name in (*METHODS, "trial"):
                shutil.rmtree(output / name, ignore_errors=True)
            save_text(json.dumps(asked, indent=1), path)
        if (output / SETS).exists():
            print(f"going on with the data as they were read; another --output reads {args.data} anew")
        return
    others = [p.name for p in output.iterdir() if p.name not in LEFT and not p.name.startswith(".")]
    if others:
        raise ConfigError(f"{output} holds something else than such a run ({others[0]}); choose another --output")
    save_text(json.dumps(asked, indent=1), path)


def absolute(name: str) -> str:
    """A path that means the same from another folder; of what is no path, a name of the catalog, itself."""
    place, colon, split = name.partition(":")
    return os.path.abspath(place) + colon + split if name and Path(place).exists() else name


def command() -> str:
    """The command line, for the config's head and the report."""
    return shlex.join([*sys.argv[0].split(), *sys.argv[1:]])


def train(args: argparse.Namespace, output: Path) -> None:
    """Train, evaluate, report."""

    def load(path: str | None, words: Sequence[str]) -> CfgNode:
        return pick(path, words).load_config(path, words)

    cfg = load(str(output / CONFIG), ())
    names = train_pair(output, cfg, load, not args.no_baseline, *side_by_side(args))
    compare_pair(output, cfg, names, [command()], print)
    if (output / REPORT).exists():
        print(f"Report: {output / REPORT}")
    print(f"Use it: ssod predict --run {shlex.quote(os.path.relpath(output))} --input PHOTOS --output found.json")
