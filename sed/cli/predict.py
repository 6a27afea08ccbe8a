"""Detect objects in images or in a video.

    ssod predict --run ssod_run --input photos --output found.json --draw pictures
    ssod predict --run ssod_run --input clip.mp4 --output found.json --draw pictures
    ssod predict --run ssod_run --input photos --output labels --format yolo
    ssod predict --run ssod_run --input photos --output tasks.json --format label-studio --least-certain 50
    python tools/predict.py --config-file F --weights model_best.pth --input photos --output results.json

--run is the folder of `ssod train`, or the OUTPUT_DIR of another training. Formats:

    results         a COCO results list: image_id, category_id, bbox [x, y, w, h] in the pixels of the file, score, and
                    the file's name; of a video image_id is the number of the frame
    annotations     a whole COCO file with images and categories, to be trained on (DATASETS.TRAIN pseudo.json,
                    DATASETS.IMAGE_ROOT photos) or corrected
    yolo            --output is a folder: labels/*.txt with scores, classes.txt, and detections.json, the results list
    label-studio    tasks with pre-annotations; their images are paths below the input's folder

Image ids are those of the json where --input is a COCO json; the files' numbers where all names are numbers, as in
COCO; else 1, 2, 3, ... in the order of the paths. --least-certain N names the N images whose labels would tell most, in
least_certain.txt and on a sheet beside the output. Words at the end are KEY VALUE overrides of the config (not right
after --input, which takes any number of paths).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from fvcore.common.config import CfgNode
from tqdm import tqdm

from sed.cli.engines import USER_ERRORS, find_run, pick_trained, read_classes
from sed.data.errors import DataError
from sed.data.files import save_text, try_folder
from sed.data.records import Dataset, Record
from sed.data.video import SUFFIXES as VIDEO_SUFFIXES
from sed.evaluation.coco import detect_all, to_coco_results
from sed.evaluation.files import ImageFiles, find_numbered
from sed.evaluation.pictures import draw_found, draw_on
from sed.evaluation.prediction_formats import label_studio, least_certain, write_yolo
from sed.evaluation.result_files import Rows, file_names, write_annotations
from sed.evaluation.video import AnnotatedVideo, VideoFrames
from sed.evaluation.visualize import contact_sheet, write_png
from sed.runtime.engine import Engine

FORMATS = ("results", "annotations", "yolo", "label-studio")
DRAWN, CELL, COLUMNS = 0.5, 320, 4  # least score of what is drawn; side of a picture, and pictures a row, on the sheet
log = logging.getLogger("predict")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    trained = parser.add_mutually_exclusive_group(required=True)
    trained.add_argument("--run", type=Path, metavar="DIR", help="folder of a training")
    trained.add_argument("--config-file", metavar="FILE", help="of a training")
    add("--weights", default="", metavar="FILE", help="default: the run's model.pth or model_best.pth; or coco")
    add("--input", required=True, nargs="+", metavar="PATH", help="folders, image files, a COCO json, or a video")
    add("--output", required=True, type=Path, metavar="JSON", help="with --format yolo a folder")
    add("--format", choices=FORMATS, default=FORMATS[0], help="default: results")
    add("--as-annotations", dest="format", action="store_const", const="annotations", help="--format annotations")
    add("--score-threshold", type=float, default=0.05, help="leave out detections below it (default 0.05)")
    add("--draw", type=Path, metavar="DIR", help=f"pictures, or the video, with what has a score of {DRAWN} or more")
    add("--least-certain", type=int, default=0, metavar="N", help="the images to label next")
    add("--skip-unreadable", action="store_true", help="count images that cannot be read and go on")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args(arguments)
    if args.least_certain < 0:
        parser.error(f"--least-certain is {args.least_certain}; expected 1 or more")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Read, detect, write."""
    args = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if args.run:
            find_run(args)
        engine, cfg, weights = pick_trained(args.config_file, args.opts, args.weights)
        if args.draw:
            try_folder(args.draw, "--draw")
        if args.format == "yolo":
            args.output = yolo_folder(args.output) / "detections.json"
        videos = [name for name in args.input if Path(name).suffix.lower() in VIDEO_SUFFIXES]
        if videos:
            of_video(args, engine, cfg, weights, videos)
        else:
            of_images(args, engine, cfg, weights)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")


def of_images(args: argparse.Namespace, engine: Engine, cfg: CfgNode, weights: str) -> None:
    """Predictions of image files."""
    root, files, ids, sizes = find_numbered(args.input, cfg.DATASETS.IMAGE_ROOT)
    detector = engine.load_detector(cfg, weights)
    classes = read_classes(engine, cfg, detector, args.run)
    images = ImageFiles(files, ids, engine.test_mapper(cfg), cfg.TEST.IMS_PER_BATCH, args.skip_unreadable, sizes)
    device = next(detector.parameters()).device
    with Rows(args.output) as rows, tqdm(total=len(files), unit="image") as bar:
        for batch in images:
            found = detect_all(detector, [batch], device)
            records = images.records[-len(batch[1]) :]
            names = file_names(records, root)
            for record in records if args.draw else ():
                save_picture(args.draw / names[record["image_id"]], draw_found(record, found, classes.classes, DRAWN))
            kept = [row for row in to_coco_results(found, classes) if row["score"] >= args.score_threshold]
            rows.add({**row, "file_name": names[row["image_id"]]} for row in kept)
            bar.update(len(batch[1]))
        bar.update(len(images.skipped))
        write(args, rows, images.records, classes, root)
    if images.skipped:
        log.warning("skipped %d unreadable images, the first: %s", len(images.skipped), images.skipped[0])
    log.info("%s: %d detections in %d images", args.output, rows.count, len(images.records))


def yolo_folder(folder: Path) -> Path:
    """The folder of --format yolo, made.

    Raises:
        DataError: where it holds labels that are no predictions: they would be lost.
    """
    if (folder / "labels").exists() and not (folder / "detections.json").exists():
        raise DataError(f"--output {folder}: its labels/ are no predictions of this command; choose another folder")
    return try_folder(folder, "--output")


def write(args: argparse.Namespace, rows: Rows, records: list[Record], classes: Dataset, root: Path) -> None:
    """Write what was found, in the format that is asked for."""
    names = file_names(records, root)
    if args.least_certain:
        write_least_certain(args, rows, records, classes)
    if args.format == "annotations":
        write_annotations(rows, records, classes, root)
    elif args.format == "label-studio":
        rows.finish_with(json.dumps(label_studio(rows.read(), records, names, classes), indent=1))
    else:
        if args.format == "yolo":
            write_yolo(args.output.parent, rows.read(), records, names, classes)
        rows.finish("", "")


def write_least_certain(args: argparse.Namespace, rows: Rows, records: list[Record], classes: Dataset) -> None:
    """least_certain.txt, a path a line, and least_certain.png beside the output."""
    of = {record["image_id"]: record for record in records}
    chosen = least_certain(rows.read(), list(of), args.least_certain)
    save_text("".join(f"{of[i]['file_name']}\n" for i, _ in chosen), args.output.with_name("least_certain.txt"))
    number = {c: k for k, c in enumerate(classes.category_ids)}
    shown = {i for i, _ in chosen[: COLUMNS * COLUMNS]}
    found = [{**row, "category": number[row["category_id"]]} for row in rows.read() if row["image_id"] in shown]
    cells = [
        (draw_found(of[i], found, classes.classes, 0.2, CELL), f"{Path(of[i]['file_name']).name}, doubt {doubt:.2f}")
        for i, doubt in chosen[: COLUMNS * COLUMNS]
    ]
    if cells:
        lines = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
        write_png(str(args.output.with_name("least_certain.png")), contact_sheet(lines, CELL))


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Write an annotated picture as PNG below the folder of --draw."""
    path = path.with_name(f"{path.name}.png")
    try_folder(path.parent, "--draw")
    write_png(str(path), picture)


# ------------------------------------------------------------------------------------------------- a video
def of_video(args: argparse.Namespace, engine: Engine, cfg: CfgNode, weights: str, videos: list[str]) -> None:
    """Predictions of all frames of a video.

    Raises:
        DataError: for more than a video, a format or a choice that videos do not have, and what cannot be read.
    """
    if len(args.input) > 1 or args.format != "results" or args.least_certain:
        raise DataError(f"{videos[0]}: a video is given alone, with --format results and without --least-certain")
    path = Path(videos[0])
    frames = VideoFrames(path, engine.test_mapper(cfg), cfg.TEST.IMS_PER_BATCH)
    detector = engine.load_detector(cfg, weights)
    classes = read_classes(engine, cfg, detector, args.run)
    device = next(detector.parameters()).device
    drawn = AnnotatedVideo(args.draw / f"{path.stem}_found.mp4", frames.rate) if args.draw else None
    with Rows(args.output) as rows, tqdm(unit="frame") as bar, drawn or nullcontext():
        for batch, pictures in frames:
            found = detect_all(detector, [batch], device)
            kept = [row for row in to_coco_results(found, classes) if row["score"] >= args.score_threshold]
            rows.add({**row, "file_name": path.name} for row in kept)
            for info, picture in zip(batch[1], pictures, strict=True) if drawn else ():
                drawn.add(draw_on(picture, found, info.image_id, classes.classes, DRAWN))
            bar.update(len(pictures))
        rows.finish("", "")
    log.info("%s: %d detections in %d frames", args.output, rows.count, frames.count)
