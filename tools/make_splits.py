"""Divide COCO json files into labelled and unlabelled ones, by this project's rule or by another's.

    python tools/make_splits.py --annotations train.json --percent 10 --output splits/10
    python tools/make_splits.py --annotations train.json --per-class 10 --output splits/10_per_class
    python tools/make_splits.py --annotations instances_train2017.json --percent 10 --like soft_teacher --fold 1 \
        --output splits/soft_teacher_10_1

Writes labeled.json, unlabeled.json (without annotations) and manifest.json (ids, counts per class, hashes, how they
were chosen); several percents or folds go to folders of their own. datasets/README.md has a command for every protocol
of the papers, `sed.data.protocols` says what each convention does. A run needs no files for this project's own rule:
SEMI.LABELED_PERCENT and SEMI.FOLD label the same images.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path

from sed.cli.last_resort import last_resort
from sed.data import protocols
from sed.data.errors import DataError
from sed.data.protocols import Choice, Content
from sed.data.split_files import FOLDERS, read_content, write_split
from sed.data.splits import file_hash, read_manifest


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--annotations", required=True, type=Path, metavar="JSON", help="COCO json of the images to divide")
    add("--output", required=True, type=Path, metavar="FOLDER")
    add("--protocol", choices=("standard", "full", "coco_35k"), default="standard")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--percent", type=float, nargs="+", metavar="P", help="share of labelled images, rounded down")
    size.add_argument("--count", type=int, metavar="N", help="number of labelled images")
    size.add_argument("--per-class", type=int, metavar="K", help="at least K labelled images of every class")
    add("--fold", type=int, nargs="+", metavar="F", help="which split (default 0); with --like its seed (default 1)")
    add("--like", choices=protocols.LIKE, help="sample as this project does")
    add("--index-file", type=Path, metavar="TXT", help="unbiased_teacher: its dataseed/COCO_supervision.txt")
    add("--seed-offset", type=int, metavar="N", help="soft_teacher: its script's option of this name (default 0)")
    add("--unlabeled", type=Path, metavar="JSON", help="full, coco_35k: the file of the unlabelled images")
    add("--minival", type=Path, metavar="JSON", help="coco_35k: instances_val2017.json or instances_minival2014.json")
    args = parser.parse_args(arguments)
    sizes = [size for size in (*(args.percent or ()), args.count, args.per_class) if size is not None]
    for wrong, message in (
        (args.protocol == "standard" and not sizes, "one of --percent, --count and --per-class is needed"),
        (args.protocol != "standard" and (sizes or args.fold or args.like), "the protocol leaves no choice to make"),
        (any(not size > 0 for size in sizes), "--percent, --count and --per-class are greater than 0"),
        (bool(args.unlabeled) == (args.protocol == "standard"), "--unlabeled goes with --protocol full and coco_35k"),
        (bool(args.minival) != (args.protocol == "coco_35k"), "--minival goes with --protocol coco_35k"),
        (args.like and not args.percent, "--like goes with --percent"),
        (args.index_file and args.like != "unbiased_teacher", "--index-file goes with --like unbiased_teacher"),
        (args.seed_offset is not None and args.like != "soft_teacher", "--seed-offset goes with --like soft_teacher"),
    ):
        if wrong:
            parser.error(message)
    args.fold = args.fold or [1 if args.like else 0]
    return args


def main(arguments: list[str] | None = None) -> None:
    """Read, choose, write the files, print what was made."""
    args = parse(arguments)
    files = [path for path in (args.annotations, args.unlabeled, args.minival, args.index_file) if path]
    runs = list(product(args.percent or [0.0], args.fold))
    try:
        sources = {str(path): file_hash(path) for path in files}
        labeled = read_content(args.annotations)
        other = read_content(args.unlabeled, labeled=False) if args.unlabeled else labeled
        for percent, fold in runs:
            folder = args.output / f"percent_{percent:g}_fold_{fold}" if len(runs) > 1 else args.output
            choice = choose(args, labeled, other, percent, fold)
            count = args.count or args.per_class or 0
            write_split(folder, choice, labeled, other, sources, percent=percent, count=count, fold=fold)
            print_words(folder, args.annotations, labeled["images"][0]["file_name"])
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")


def choose(args: argparse.Namespace, labeled: Content, other: Content, percent: float, fold: int) -> Choice:
    """What the command line asks for."""
    if args.protocol == "full":
        return protocols.choose_full(labeled, other)
    if args.protocol == "coco_35k":
        return protocols.choose_35k(labeled, other, read_content(args.minival, labeled=False))
    if args.per_class:
        return protocols.choose_per_class(labeled, args.per_class, fold)
    if args.like == "unbiased_teacher":
        return protocols.choose_unbiased_teacher(labeled, percent, fold, args.index_file)
    ids = [image["id"] for image in labeled["images"]]  # no annotation goes any further
    if args.like == "soft_teacher":
        return protocols.choose_soft_teacher(ids, percent, fold, args.seed_offset or 0)
    if args.like == "stac":
        return protocols.choose_stac(ids, percent, fold)
    return protocols.choose_sed(ids, percent, args.count or 0, fold)


def print_words(folder: Path, annotations: Path, name: str) -> None:
    """Print what was written and the keys of a run on it; `name` is the file name of an image of the source."""
    made = read_manifest(folder / "manifest.json")
    print(f"{folder}: {made['convention']}, {made['labeled']} labelled and {made['unlabeled']} unlabelled images")
    for note in made["notes"]:
        print(f"  note: {note}")
    here, above = annotations.parent, annotations.parent.parent
    near = [here, here / "images", here / annotations.stem]
    near += [above / annotations.stem.rpartition("_")[2]]  # coco/train2017 of coco/annotations/instances_train2017.json
    root = next((place for place in near if (place / name).is_file()), Path("FOLDER_OF_THE_IMAGES"))
    root = above if made["convention"] in FOLDERS else root  # several folders, named in the files
    test = f" DATASETS.TEST {folder / 'test.json'}" if "test" in made else ""
    print(
        f"  DATASETS.TRAIN {folder / 'labeled.json'} DATASETS.UNLABELED {folder / 'unlabeled.json'}{test} "
        f"DATASETS.IMAGE_ROOT {root} SEMI.LABELED_PERCENT 0 SEMI.LABELED_COUNT 0"
    )


if __name__ == "__main__":
    with last_resort():
        main()
