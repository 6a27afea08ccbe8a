"""Ground truth and detections small enough to score by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from sed.core.structures import Detections, Images
from sed.data.mapper import ImageInfo
from sed.data.records import Dataset
from sed.detectors.base import Detector

Row = tuple[list[float], float, int]  # box xyxy in the tensor's frame, score, class


class Scripted(Detector):
    """A detector whose detections are given by `script`, by image; the first pixel is the image's number."""

    heads = frozenset({"dense"})
    size_divisibility = 1

    def __init__(self, script: list[list[Row]], num_classes: int = 2) -> None:
        super().__init__()
        self.script, self.num_classes, self.modes = script, num_classes, []

    def supervised_losses(self, batch):
        raise NotImplementedError

    def encode(self, images):
        raise NotImplementedError

    def detect(self, images: Images) -> list[Detections]:
        self.modes.append(self.training)
        return [self._detections(self.script[int(image[0, 0, 0])]) for image in images.tensor]

    def _detections(self, rows: list[Row]) -> Detections:
        boxes = torch.tensor([r[0] for r in rows]).reshape(-1, 4)
        return Detections(boxes, torch.tensor([r[1] for r in rows]), torch.tensor([r[2] for r in rows]).long())

    def plain_state_dict(self) -> dict[str, Tensor]:
        return {}


def make_dataset(truth: list[list[dict]], classes: tuple[str, ...] = ("cat", "dog")) -> Dataset:
    """Images of 100 x 200 (height x width); annotations {"bbox", "category_id", ["iscrowd"]} an image."""
    records = [
        {
            "file_name": f"{i}.png",
            "image_id": f"img{i}",
            "height": 100,
            "width": 200,
            "annotations": [{"bbox_mode": 1, "iscrowd": 0, **a} for a in annotations],
        }
        for i, annotations in enumerate(truth)
    ]
    return Dataset("hand", records, classes, tuple(7 + 4 * k for k in range(len(classes))))


def make_loader(dataset: Dataset, scale: float = 1.0, rank: int = 0, world: int = 1):
    """Batches of one image each, enlarged by `scale`."""
    for i in range(rank, len(dataset), world):
        size = (int(100 * scale), int(200 * scale))
        image = torch.full((1, 3, *size), float(i))
        yield Images(image, (size,)), [ImageInfo(f"img{i}", (scale, scale), (100, 200))]


def hand_made(rank: int = 0, world: int = 1):
    """Two images; one cat found, one cat missed."""
    dataset = make_dataset(
        [[{"bbox": [10, 10, 40, 40], "category_id": 0}], [{"bbox": [50, 20, 40, 40], "category_id": 0}]]
    )
    detector = Scripted([[([10.0, 10.0, 50.0, 50.0], 0.9, 0)], []])
    return dataset, detector, make_loader(dataset, 1.0, rank, world)
