"""Which pseudo-labels are kept: the top share of each class by confidence (class-balanced curriculum).

A confidence is stored as a 16-bit code, uniform in its log-odds log(c / (1 - c)) from -6 to 22, as a trained network's
confidences crowd below 1: steps of 0.0004 in log-odds tell 1 - c = 1e-9 from 1.1e-9, where float32 sees 1.0 in both.
So a ranking is a histogram of [C, 65536] counts, exact up to ties within a code, of the same size for ten images or
a million, and merged over processes by adding.

The papers rank within the label's class (DMT Alg. 2, DST-CBC Alg. 1) and leave open what becomes of ties and of share
1; see `Ranking.thresholds`. The authors rank every 16th pixel; here all are ranked.

Shape shorthand: B images, C classes, * = () for classification or (H, W) for segmentation; label 255 = ignored.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dmt.loss import IGNORED

LOWEST, HIGHEST = -6.0, 22.0  # log-odds of the first and the last code; c = 0.0025 and 1 - 3e-10
CODES = 65536
NOTHING = CODES  # a threshold that no code reaches
RULES = ("exact", "authors")
_STEP = (HIGHEST - LOWEST) / (CODES - 1)


def code_of(log_odds: Tensor) -> Tensor:
    """The uint16 code of each log-odds, the nearest one; monotone; beyond the range the first or the last.

    Raises:
        ValueError: for NaN, which a broken network gives.
    """
    if bool(log_odds.isnan().any()):
        raise ValueError("confidences: the network's outputs hold NaN or infinity; its training has diverged")
    scaled = (log_odds.clamp(LOWEST, HIGHEST) - LOWEST) / _STEP
    return scaled.round().to(torch.int32).to(torch.uint16)


def confidence_of(codes: Tensor | np.ndarray) -> Tensor:
    """The confidence of each code, float32 in (0, 1]: the last codes round to 1.0, as a softmax does."""
    return torch.sigmoid(torch.as_tensor(codes).to(torch.float64) * _STEP + LOWEST).float()


def least_confidence_of(thresholds: Tensor | np.ndarray) -> Tensor:
    """k_c of thresholds [C] as float64 probabilities: the least that has the code, for `predict`.

    Code 0 (keep all) gives 1e-4, the authors' value at share 1; NOTHING gives infinity.
    """
    codes = torch.as_tensor(thresholds).to(torch.float64)
    least = torch.sigmoid((codes - 0.5) * _STEP + LOWEST)
    return least.masked_fill(codes == 0, 1e-4).masked_fill(codes >= NOTHING, torch.inf)


def predict(logits: Tensor, thresholds: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Labels and codes of their confidences.

    The log-odds are those of the logits, z_y - log sum_{j != y} exp z_j: 1 - softmax would cancel.

    Args:
        logits: [B, C, *], C <= 255.
        thresholds: k_c [C] as probabilities > 0. CBST's re-normalised labels (DST-CBC, Alg. 1): argmax p_c / k_c, and
            255 where the maximum is below 1. Default: argmax p.

    Returns:
        labels: [B, *] uint8.
        codes: [B, *] uint16, of p[label]; where the label is 255, of the best p_c / k_c.

    Raises:
        ValueError: for NaN among the logits.
    """
    logits = logits.detach() if logits.dtype == torch.float64 else logits.detach().float()
    if thresholds is None:
        top, labels = logits.max(1)
        ignored = torch.zeros_like(labels, dtype=torch.bool)
    else:
        shape = (-1, *[1] * (logits.ndim - 2))
        log_k = thresholds.to(logits.device, torch.float64).log().reshape(shape)
        ratio, labels = (logits.double().log_softmax(1) - log_k).max(1)  # float64: k may be 1 - 1e-9
        top = logits.gather(1, labels[:, None]).squeeze(1)
        ignored = ratio < 0
    others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    codes = code_of(top - others)
    return labels.masked_fill(ignored, IGNORED).to(torch.uint8), codes


class Ranking:
    """Counts of the confidence codes of each class, streamed.

    Attributes:
        histogram: [C, 65536] int64, how many pixels (images) have this label and this code.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.histogram = torch.zeros(num_classes, CODES, dtype=torch.int64)
        self._merged = False

    @property
    def counts(self) -> Tensor:
        """[C] int64: pixels of each label."""
        return self.histogram.sum(1)

    def add(self, labels: Tensor | np.ndarray, codes: Tensor | np.ndarray) -> None:
        """Count labels (255 ignored) and codes of equal shape.

        Raises:
            ValueError: for other shapes, a label that is no class, or after `merge`.
        """
        labels, codes = torch.as_tensor(labels).cpu().long(), torch.as_tensor(codes).cpu().long()
        if self._merged:
            raise ValueError("ranking: it is merged over processes already; add first, then merge once")
        if labels.shape != codes.shape:
            raise ValueError(f"ranking: labels {tuple(labels.shape)} and codes {tuple(codes.shape)} differ in shape")
        known = labels != IGNORED
        labels, codes = labels[known], codes[known]
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(
                f"ranking: labels {int(labels.min())} to {int(labels.max())} of {self.num_classes} classes"
            )
        found = torch.bincount(labels * CODES + codes, minlength=self.histogram.numel())
        self.histogram += found.reshape(self.histogram.shape)

    def merge(self) -> None:
        """Add up the counts of all processes, where there are several; every process calls this once."""
        if self._merged:
            raise ValueError("ranking: merged twice; the counts would be doubled")
        self._merged = True
        if dist.is_initialized() and dist.get_world_size() > 1:
            device = "cuda" if dist.get_backend() == "nccl" else "cpu"
            counts = self.histogram.to(device)
            dist.all_reduce(counts)
            self.histogram = counts.cpu()

    def thresholds(self, share: float, class_balanced: bool = True, rule: str = "exact") -> np.ndarray:
        """The least code of each class that is kept, [C] int64.

        exact: the top int(share n) of each class's n (class_balanced False: the top round(share N) of all), at least
        one, and what ties with the last.
        authors: theirs. Class-balanced: ascending [-int(share n) - 1] and above, one more than asked; all of a
        class with share n < 1. Not balanced: strictly above ascending [int(-share N + 1)], two less than asked.
        In both a share of 1 or more keeps all, and below that a class without pixels keeps nothing. Do not re-normalise
        (`predict`) with "authors": a rare class that is kept whole has k_c near 0, and nearly every pixel would get it.

        Raises:
            ValueError: for a share <= 0 or an unknown rule.
        """
        if share <= 0 or rule not in RULES:
            raise ValueError(f"ranking: expected share > 0 and a rule of {', '.join(RULES)}; got {share} and {rule!r}")
        if share >= 1:
            return np.zeros(self.num_classes, np.int64)
        counts = self.histogram if class_balanced else self.histogram.sum(0, keepdim=True)
        at_or_above = counts.flip(1).cumsum(1).flip(1)  # [C or 1, 65536]
        found = [_threshold(row, share, class_balanced, rule) for row in at_or_above]
        return np.array(found if class_balanced else found * self.num_classes, np.int64)

    def kept(self, thresholds: np.ndarray) -> np.ndarray:
        """[C] int64: how many pixels of each class lie at or above its threshold."""
        return np.array([int(row[int(t) :].sum()) for row, t in zip(self.histogram, thresholds, strict=True)], np.int64)


def _threshold(at_or_above: Tensor, share: float, class_balanced: bool, rule: str) -> int:
    """The threshold of one ranking, whose pixels at or above each code are [65536]."""
    n = int(at_or_above[0])
    if n == 0:
        return NOTHING
    if rule == "exact":
        wanted = math.floor(share * n + 1e-9) if class_balanced else math.floor(share * n + 0.5)
        return _least_code(at_or_above, max(wanted, 1))
    if class_balanced:
        return 0 if n * share < 1 else _least_code(at_or_above, int(n * share) + 1)
    index = int(-share * n + 1)
    return _least_code(at_or_above, n - index if index >= 0 else -index) + 1


def _least_code(at_or_above: Tensor, wanted: int) -> int:
    """The greatest code with `wanted` pixels at or above it."""
    return int((at_or_above >= wanted).sum()) - 1


def thresholded(labels: np.ndarray, codes: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Labels [*] uint8 with 255 where the code [*] is below the label's threshold [C]."""
    least = np.full(256, NOTHING, np.int64)
    least[: len(thresholds)] = thresholds
    return np.where(codes >= least[labels], labels, np.uint8(IGNORED))
