"""Detectron2's evaluator for Pascal VOC, with the metrics beside it that published numbers are mixed with."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.utils import comm

from sed.data.records import Dataset
from sed.data.voc import load_voc
from sed.evaluation.coco import format_table, score
from sed.evaluation.voc import VOC07, VOC12


class VOCEvaluator(PascalVOCDetectionEvaluator):
    """`PascalVOCDetectionEvaluator`, whose AP, AP50 and AP75 stay what they are, and five figures of ours.

    AP, AP50, AP75: Detectron2's: VOC's metric of the set's own year (11 points for 2007, area for 2012) at IoU 0.5 to
        0.95, 0.5, 0.75; scores are rounded to 3 digits, boxes to 0.1 pixel.
    VOC07-AP50, VOC12-AP50: 11 points and area, whatever the year, nothing rounded; as on the native engine.
    COCO-AP, COCO-AP50, COCO-AP75: what the native engine calls AP, AP50, AP75; difficult objects count as all others.
    """

    def reset(self) -> None:
        """Forget all detections."""
        super().reset()
        self._found: list[dict[str, Any]] = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take the detections of some images."""
        super().process(inputs, outputs)
        for item, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to(self._cpu_device)
            boxes = instances.pred_boxes.tensor.double()  # [D, 4] xyxy
            boxes[:, 2:] -= boxes[:, :2]
            rows = zip(boxes.tolist(), instances.scores.tolist(), instances.pred_classes.tolist(), strict=True)
            self._found += [{"image_id": item["image_id"], "category": c, "bbox": b, "score": s} for b, s, c in rows]

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """{"bbox": the eight figures}, in percent; in the main process."""
        parts = comm.gather(self._found, dst=0)
        results = super().evaluate()
        if not comm.is_main_process():
            return None
        ours = score([row for part in parts for row in part], voc_truth(self._dataset_name))
        figures = {name: float(value) for name, value in results["bbox"].items()}
        figures |= {name: ours[name] for name in (VOC07, VOC12)}
        figures |= {f"COCO-{name}": ours[name] for name in ("AP", "AP50", "AP75")}
        self._logger.info("COCO-style, and AP50 by both of VOC's rules:\n%s", format_table({self._dataset_name: ours}))
        return OrderedDict(bbox=figures)


def voc_truth(name: str) -> Dataset:
    """The annotations of a VOC set of Detectron2's catalog with what is difficult, which its records leave out.

    Raises:
        DataError: see `sed.data.voc.load_voc`.
    """
    metadata = MetadataCatalog.get(name)
    return _read(name, metadata.dirname, metadata.split, tuple(metadata.thing_classes))


@lru_cache(maxsize=4)  # as Detectron2 keeps them, too
def _read(name: str, folder: str, split: str, classes: tuple[str, ...]) -> Dataset:
    return load_voc(folder, split, classes, name=name)
