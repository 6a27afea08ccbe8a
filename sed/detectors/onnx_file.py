"""Writes a detector as a self-contained ONNX file that was compared with the detector before it gets its name.

Input `image` [H, W, 3] uint8 RGB; outputs `boxes` [D, 4] float32, `labels` [D] int64, `scores` [D] float32, as
`sed.detectors.onnx_graph.Graph` has them. Normalisation, padding, NMS and the score threshold are inside; the resize to
the size of test images is not, since no operator of ONNX resizes as OpenCV does.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sed.core.structures import Images, Size
from sed.detectors.base import Detector
from sed.detectors.onnx_graph import Graph, graph, threshold

OPSET = 17
OUTPUTS = ("boxes", "labels", "scores")
LIMIT = 1e-4  # largest difference of scores, and of boxes as a share of the image's longer side
ABOUT = {
    "input": "image: one RGB image [height, width, 3], uint8, 0..255; normalisation and padding are inside",
    "outputs": "boxes [D, 4]: x0, y0, x1, y1 in pixels of the input; labels [D]: index into class_names; scores [D]: "
    "0..1, best first; after NMS (none in the DETR family) and the score threshold",
}


class ExportError(RuntimeError):
    """A detector that cannot be written as ONNX here; the message says why and what to do."""


@dataclass(frozen=True)
class Difference:
    """The largest difference between a file's detections and its model's.

    Attributes:
        pixels: of a coordinate of a box.
        share: likewise, as a share of the image's longer side.
        scores: of a score.
    """

    pixels: float = 0.0
    share: float = 0.0
    scores: float = 0.0

    @property
    def small(self) -> bool:
        """Whether the file may be used; no for NaN."""
        return self.share <= LIMIT and self.scores <= LIMIT

    def __str__(self) -> str:
        return f"{self.pixels:.2g} pixels and {self.scores:.2g} of a score"


def require_onnx() -> None:
    """Raise ExportError where the packages of the extra `onnx` are missing."""
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ExportError(f"{' and '.join(missing)} not installed; pip install 'ssod[onnx]' brings what export needs")


def save_onnx(
    detector: Detector,
    path: Path,
    classes: Sequence[str],
    resize: str,
    score_threshold: float,
    size: Size | None = None,
    side: int = 320,
) -> Difference:
    """Write an ONNX file, unless its detections differ from the detector's.

    Args:
        detector: trained, on any device; it is not changed.
        path: replaced where it exists, but only by a file that was compared.
        classes: K names, for the metadata.
        resize: for the metadata, what to do with an image before.
        score_threshold: detections are above it.
        size: (height, width) of the only images that the file takes, pixels; None: any.
        side: the shortest side of the images that it is compared on where it takes any, pixels.

    Returns:
        The largest difference on random images: three sizes, or the one.

    Raises:
        ExportError: without onnx or onnxruntime, for a detector that PyTorch's exporter cannot follow, for images with
            fewer places than queries, and where the file's detections are others.
    """
    require_onnx()
    detector = copy.deepcopy(detector).cpu().eval().requires_grad_(False)
    made = graph(detector, score_threshold)
    if made is None:
        raise ExportError(f"{type(detector).__name__} cannot be exported as ONNX; detectors of ENGINE torchvision can")
    # odd sides and both orientations: what the exporter took for a constant shows
    sizes = [size] * 3 if size else [(side, side * 5 // 4 + 3), (side * 3 // 2 + 1, side), (side + 7, side + 7)]
    try:
        found = _detections(detector, _random_image(sizes[0], 0), 0.0)
    except ValueError as error:  # fewer places than queries
        raise ExportError(f"{path} is not written: {error}") from error
    if not len(found[2]):
        raise ExportError(f"{path} is not written: the model has no score above 0 (NaN?), there is nothing to compare")
    about = {**ABOUT, "class_names": json.dumps(list(classes)), "resize": resize, "detector": type(made).__name__}
    fresh = path.with_name(path.name + ".new")
    try:
        content = _described(_trace(made, sizes[0], size is not None), {**about, "score_threshold": score_threshold})
        fresh.write_bytes(content)
        largest = _compare(detector, fresh, score_threshold, sizes)
        if not largest.small:
            raise ExportError(f"the exported file finds other boxes than the model: they differ by {largest}")
        os.replace(fresh, path)
    except ExportError as error:
        hint = "" if size else "; with --size H W, for images of that size alone, it may go"
        raise ExportError(f"{path} is not written: {error}{hint}") from error.__cause__
    finally:
        fresh.unlink(missing_ok=True)
    return largest


def _trace(made: Graph, size: Size, fixed: bool) -> bytes:
    """The content of the ONNX file of a graph; the exporter's warnings and the page it prints are not shown."""
    axes = {name: {0: "detections"} for name in OUTPUTS}
    if not fixed:
        axes["image"] = {0: "height", 1: "width"}
    stream, image = io.BytesIO(), _random_image(size, 0)
    try:
        with _quiet(), torch.no_grad():
            with threshold(made.detector, made.score_threshold):
                torch.onnx.export(
                    made.eval(),
                    (image,),
                    stream,
                    dynamo=False,
                    opset_version=OPSET,
                    input_names=["image"],
                    output_names=list(OUTPUTS),
                    dynamic_axes=axes,
                )
    except Exception as error:  # the exporter raises whatever it likes
        raise ExportError(f"PyTorch's exporter cannot follow {_model(made.detector)} ({_line(error)})") from error
    return stream.getvalue()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A context without warnings and standard output: C++ code prints the whole graph of what cannot be exported."""
    level, output = logging.root.manager.disable, os.dup(1)
    logging.disable(logging.WARNING)
    sys.stdout.flush()
    try:
        with open(os.devnull, "w") as nothing, warnings.catch_warnings(), contextlib.redirect_stdout(nothing):
            os.dup2(nothing.fileno(), 1)
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(output, 1)
        os.close(output)
        logging.disable(level)


def _described(content: bytes, about: dict[str, Any]) -> bytes:
    """An ONNX file with metadata, checked by `onnx.checker`."""
    import onnx

    model = onnx.load_from_string(content)
    for key, value in about.items():
        model.metadata_props.add(key=key, value=str(value))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _keep_all(content: bytes) -> bytes:
    """An ONNX file with 0 in the place of its score threshold."""
    import onnx

    model = onnx.load_from_string(content)
    (value,) = [tensor for tensor in model.graph.initializer if tensor.name == "score_threshold"]
    value.CopyFrom(onnx.numpy_helper.from_array(np.zeros((), np.float32), value.name))
    return model.SerializeToString()


# ----------------------------------------------------------------------------------------------- comparison
def _compare(detector: Detector, path: Path, score_threshold: float, sizes: Sequence[Size]) -> Difference:
    """The largest difference of the file, and of the same with threshold 0: in noise there may be no score above it.

    Raises:
        ExportError: where onnxruntime fails.
    """
    largest, content = Difference(), path.read_bytes()
    try:
        sessions = ((score_threshold, _session(content)), (0.0, _session(_keep_all(content))))
        for number, size in enumerate(sizes):
            image = _random_image(size, number)
            for least, session in sessions:
                found = session.run(list(OUTPUTS), {"image": image.numpy()})
                own = difference(_detections(detector, image, least), found, max(size))
                largest = Difference(*np.maximum(astuple(largest), astuple(own)).tolist())
    except Exception as error:  # of onnxruntime
        raise ExportError(f"onnxruntime fails on it ({_line(error)})") from error
    return largest


def difference(want: Sequence[np.ndarray], found: Sequence[np.ndarray], side: int) -> Difference:
    """The largest difference of the better half of two sets of detections, each to the nearest one of the other set.

    The order of equal scores, and which of them is the last that is kept, are no difference; hence the half.

    Args:
        want: boxes [D, 4] in pixels, labels [D], scores [D], best first.
        found: likewise.
        side: of the image, pixels.

    Returns:
        Infinite where a detection has no partner of its class.
    """
    rows = []
    for (boxes, labels, scores), (others, names, values) in ((want, found), (found, want)):
        for box, label, score in list(zip(boxes, labels, scores, strict=True))[: (len(scores) + 1) // 2]:
            same = names == label
            if not same.any():
                return Difference(np.inf, np.inf, np.inf)
            pixels, off = np.abs(others[same] - box).max(1), np.abs(values[same] - score)
            nearest = np.maximum(pixels / side, off).argmin()
            rows.append((pixels[nearest], pixels[nearest] / side, off[nearest]))
    return Difference(*map(float, np.max(rows, axis=0))) if rows else Difference()


@torch.no_grad()
def _detections(detector: Detector, image: Tensor, least: float) -> list[np.ndarray]:
    """The detector's own boxes [D, 4], labels [D] and scores [D] above `least`."""
    with threshold(detector, least):
        (found,) = detector.detect(Images.from_list([image.permute(2, 0, 1)]))
    keep = found.scores > least
    return [values[keep].numpy() for values in (found.boxes, found.classes, found.scores)]


def _session(content: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised; it is not also printed
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _random_image(size: Size, seed: int) -> Tensor:
    """Blobs of random colour under noise: [H, W, 3] uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, 3, 9, 9), generator=generator) * 255
    blobs = F.interpolate(coarse, size=size, mode="bilinear")[0].permute(1, 2, 0)
    noise = torch.rand(blobs.shape, generator=generator) * 60 - 30
    return (blobs + noise).clamp(0, 255).to(torch.uint8).contiguous()


def _model(detector: Detector) -> str:
    return type(detector.model).__name__


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
