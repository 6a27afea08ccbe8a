"""Exports a trained detector of the DETR family as a folder that `transformers` loads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sed.detectors.base import Detector
from sed.detectors.detr import QueryDetector
from sed.detectors.weights import no_progress_bars


def save_stock(detector: Detector, folder: Path, classes: Sequence[str], size: tuple[int, int]) -> bool:
    """Write a folder from which the detector's own framework builds and loads it, where it has such a format.

    Args:
        detector: the teacher.
        folder: replaced where it exists.
        classes: K names.
        size: (short side, longest side) of test images, pixels.

    Returns:
        Whether a folder was written: yes for the DETR family (`from_pretrained` and `pipeline("object-detection")` of
        transformers load it); torchvision and Detectron2 load `Detector.plain_state_dict` as it is.
    """
    if not isinstance(detector, QueryDetector):
        return False
    save_pretrained(detector, folder, classes, size)
    return True


def save_pretrained(detector: QueryDetector, folder: Path, classes: Sequence[str], size: tuple[int, int]) -> None:
    """Write the folder that `from_pretrained` and `pipeline("object-detection")` of transformers load.

    Args:
        detector: the teacher.
        folder: replaced where it exists, but only once the new one is complete.
        classes: K names.
        size: (short side, longest side) of test images, pixels. A model without `any_size` gets squares.
    """
    model, fresh = detector.model, folder.with_name(folder.name + ".new")
    model.config.id2label = dict(enumerate(classes))
    model.config.label2id = {name: index for index, name in enumerate(classes)}
    square = -(-size[0] // detector.size_divisibility) * detector.size_divisibility
    free = {"shortest_edge": size[0], "longest_edge": size[1]}
    mean, std = (values.flatten().cpu() / 255 for values in (detector.pixel_mean, detector.pixel_std))
    processor = _processor_class(detector)(
        do_normalize=True,
        image_mean=mean.tolist(),
        image_std=std.tolist(),
        size=free if detector.any_size else {"height": square, "width": square},
    )
    shutil.rmtree(fresh, ignore_errors=True)
    with no_progress_bars():
        model.save_pretrained(fresh)
    processor.save_pretrained(fresh)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)


def _processor_class(detector: QueryDetector) -> Any:
    """The image processor that transformers has for the model's kind, or that of DETR or RT-DETR where it has none."""
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    kind = type(getattr(detector.model, "config", None))
    if kind not in IMAGE_PROCESSOR_MAPPING:  # RT-DETR v2, D-FINE
        return transformers.DetrImageProcessor if detector.softmax else transformers.RTDetrImageProcessor
    found = IMAGE_PROCESSOR_MAPPING[kind]
    return next(c for c in (found.values() if isinstance(found, dict) else found) if c is not None)
