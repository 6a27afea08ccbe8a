"""Scores: mean intersection over union, accuracy, and fine-grained accuracy (DMT, appendix C).

Shape shorthand: B images, C classes; label 255 = ignored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmt.loss import IGNORED


def confusion(truth: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """How many pixels of class i were called class j, [C, C] int64 on the tensors' device.

    Args:
        truth: labels, any shape and integer type; 255 is not counted.
        predicted: labels of the same shape, each a class (of no meaning where truth is 255).
        num_classes: C.

    Raises:
        ValueError: for other shapes or a label that is no class.
    """
    if truth.shape != predicted.shape:
        raise ValueError(
            f"confusion: truth {tuple(truth.shape)} and prediction {tuple(predicted.shape)} differ in shape"
        )
    known = truth != IGNORED
    pair = torch.stack([truth[known].long(), predicted[known].long()])  # [2, pixels]
    if pair.numel() and not 0 <= int(pair.min()) <= int(pair.max()) < num_classes:
        raise ValueError(f"confusion: labels {int(pair.min())} to {int(pair.max())} of {num_classes} classes")
    return torch.bincount(pair[0] * num_classes + pair[1], minlength=num_classes**2).reshape(num_classes, num_classes)


def mean_iou(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Mean intersection over union, and that of each class [C], from `confusion`'s matrix; float64, in [0, 1].

    A class that is neither in the truth nor predicted is NaN and not in the mean (the authors' mean is NaN then);
    one that is only predicted counts 0.
    """
    counts = matrix.double()
    right = counts.diagonal()
    each = right / (counts.sum(0) + counts.sum(1) - right)
    return each.nanmean(), each


class ClassificationScore:
    """Accuracy over batches.

    Fine-grained accuracy adds up the confidence of every right answer instead of 1, over all images. It tells
    models apart that are right equally often, but not a model trained with mixup from one trained without.

    Attributes:
        images: how many so far.
        right: how many of them are right.
        confidence: sum of the confidences of those.
    """

    def __init__(self) -> None:
        self.images = 0
        self.right = 0
        self.confidence = 0.0

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Count a batch: softmax outputs [B, C] and classes [B]."""
        confidence, predicted = probabilities.double().max(1)
        right = predicted == labels
        self.images += len(labels)
        self.right += int(right.sum())
        self.confidence += float(confidence[right].sum())

    @property
    def accuracy(self) -> float:
        """Share of right answers, in [0, 1]; 0 without images."""
        return self.right / max(self.images, 1)

    @property
    def fine_grained(self) -> float:
        """Sum of the right answers' confidences over the number of images, in [0, 1]."""
        return self.confidence / max(self.images, 1)
