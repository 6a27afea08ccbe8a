"""What a run leaves in its output folder when it is done, and which of its weights are evaluated."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sed.data.errors import DataError
from sed.data.files import save_text
from sed.data.loaders import test_loader
from sed.data.records import Dataset
from sed.detectors.base import Detector
from sed.detectors.export import save_stock
from sed.evaluation.coco import detect_all
from sed.evaluation.files import TestMapper
from sed.evaluation.pictures import Painter, draw_found, draw_truth, paint_boxes
from sed.evaluation.visualize import contact_sheet, write_png
from sed.runtime.checkpoint_files import CheckpointError, checkpoints

log = logging.getLogger(__name__)
PICTURES, PICTURE_SIDE = 6, 320  # images of predictions.png; pixels


def trained_weights(folder: str | Path) -> str:
    """The weights that a run left in its output folder: model_best.pth, or model_final.pth where there is none.

    Raises:
        DataError: where there is neither.
    """
    names = ("model_best.pth", "model_final.pth")
    found = [str(Path(folder) / name) for name in names if (Path(folder) / name).is_file()]
    if not found:
        raise DataError(f"no weights: {folder} holds no {' or '.join(names)}; train first, or give --weights")
    return found[0]


def evaluated_weights(folder: str | Path, weights: str, resume: bool, *, own: bool, whole: bool) -> str:
    """The weights that --eval-only takes: MODEL.WEIGHTS where it is the user's file, else the run's last checkpoint.

    Args:
        folder: OUTPUT_DIR.
        weights: MODEL.WEIGHTS.
        resume: take the last checkpoint even where MODEL.WEIGHTS is a file.
        own: MODEL.WEIGHTS is a file, no name of weights that training starts from.
        whole: where there is no checkpoint, MODEL.WEIGHTS makes a detector that can be evaluated.

    Raises:
        CheckpointError: where there is nothing to evaluate.
    """
    saved = checkpoints(folder)
    if saved and (resume or not own):
        return str(saved[-1])
    if not whole:
        raise CheckpointError(f"{folder} holds no checkpoint; set MODEL.WEIGHTS to the file to evaluate")
    return weights


def write_evaluation(folder: str | Path, which: str, weights: str, results: Mapping[str, Any]) -> None:
    """Write evaluation_<which>.json: the weights' file and the metrics."""
    path = Path(folder) / f"evaluation_{which}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_text(json.dumps({"weights": weights, **results}, indent=1), path)


def leave_stock_folder(folder: Path, teacher: Detector, classes: Sequence[str], config: Mapping[str, Any]) -> None:
    """Write `folder`/model_final, which transformers loads, where the detector has such a format."""
    size = (config["INPUT"]["MIN_SIZE_TEST"], config["INPUT"]["MAX_SIZE_TEST"])
    if save_stock(teacher, folder / "model_final", classes, size):
        log.info("for transformers: from_pretrained(%r)", str(folder / "model_final"))


def draw_predictions(
    path: Path, teacher: Detector, test: Dataset, mapper: TestMapper, batch_size: int, paint: Painter = paint_boxes
) -> None:
    """A contact sheet of the first test images: ground truth above, detections with a score of at least 0.5 below.

    Args:
        path: of the PNG.
        teacher: trained.
        test: the set.
        mapper: reads and resizes its images.
        batch_size: images at a time.
        paint: who draws.
    """
    few, side = test.records[:PICTURES], PICTURE_SIDE
    batches = test_loader(few, mapper, batch_size, multiple=teacher.size_divisibility)
    found = detect_all(teacher, batches, next(teacher.parameters()).device)
    truth = [(draw_truth(r, test.classes, side, paint), f"truth {r['image_id']}") for r in few]
    guess = [(draw_found(r, found, test.classes, 0.5, side, paint), "teacher, score >= 0.5") for r in few]
    write_png(str(path), contact_sheet([truth, guess], cell=side))
