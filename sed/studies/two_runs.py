"""A supervised baseline and a run with a method on the same test images: detections, comparison, page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode

from sed.data.records import Dataset
from sed.engine import build, checkpoint
from sed.evaluation.bootstrap import Difference, compare
from sed.evaluation.coco import detect_all, score
from sed.evaluation.pictures import draw_found, draw_truth
from sed.evaluation.visualize import contact_sheet
from sed.runtime.checkpoint_files import checkpoint_path
from sed.studies.report import better_model
from sed.studies.run_results import RunResults

SHOWN, SHOWN_SCORE, CELL = 8, 0.5, 256  # the first images of the test set; detections from this score on
Found = dict[str, list[dict[str, Any]]]  # "student" and "teacher" -> detections


def evaluate_last(cfg: CfgNode, folder: Path, test: Dataset) -> tuple[dict[str, dict[str, float]], Found]:
    """Scores and detections of the last student and teacher of a run of the native engine."""
    device, scores, found = build.resolve_device(cfg.MODEL.DEVICE), {}, {}
    for which in ("student", "teacher"):
        detector = build.build_student(cfg, "")
        checkpoint.load_weights(detector, checkpoint_path(folder, cfg.SOLVER.MAX_ITER), which)
        batches = build.batches_of(cfg, test, detector.size_divisibility)()
        found[which] = detect_all(detector.to(device), batches, device)
        scores[which] = score(found[which], test)
    return scores, found


@dataclass(frozen=True)
class Pair:
    """A baseline, a run with a method, and the detections of both on a test set."""

    baseline: RunResults
    treated: RunResults
    found: tuple[Found, Found]
    test: Dataset

    def differences(self) -> tuple[Difference, Mapping[str, Difference]]:
        """AP of the treated teacher less that of the baseline's better model: of all classes, and of each by name."""
        rows = compare(self.found[0][better_model(self.baseline)], self.found[1]["teacher"], self.test)
        return rows["AP"], {name: row for name, row in rows.items() if name != "AP"}

    def sheet(self) -> np.ndarray:
        """The first test images: ground truth, baseline, method."""
        return contact_sheet([self._row(record) for record in self.test.records[:SHOWN]], CELL)

    def _row(self, record: dict[str, Any]) -> Sequence[tuple[np.ndarray, str]]:
        classes, runs = self.test.classes, (self.baseline, self.treated)
        return [(draw_truth(record, classes, CELL), "ground truth")] + [
            (draw_found(record, found["teacher"], classes, SHOWN_SCORE, CELL), run.label)
            for run, found in zip(runs, self.found, strict=True)
        ]

    def caption(self, name: str) -> str:
        """How the sheet's images and boxes were chosen; `name` of the test set."""
        return (
            f"The first {min(SHOWN, len(self.test))} images of {name}, not selected. Detections of the EMA teachers "
            f"with a score of at least {SHOWN_SCORE}; a colour is a class."
        )
