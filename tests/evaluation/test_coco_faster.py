"""The fast scorer has pycocotools' numbers: all precisions and recalls, hence all twelve figures and those by class."""

from __future__ import annotations

import builtins
import contextlib
import io

import numpy as np
import pytest

from sed.data.records import Dataset
from sed.evaluation import coco

faster = pytest.importorskip("faster_coco_eval", reason="needs faster-coco-eval")
CLASSES = ("cat", "dog", "owl")


def world(seed, images, objects, detections, ties=False, crowds=0.1, edges=False):
    """Random objects, and detections of which half are near an object."""
    rng = np.random.default_rng(seed)
    records, found = [], []

    def side():
        return float(rng.choice([32.0, 96.0])) if edges else float(np.exp(rng.uniform(1, 5)))

    for i in range(images):
        annotations = []
        for _ in range(rng.integers(0, objects + 1)):
            w, h = side(), side()
            box = [float(rng.uniform(0, 200)), float(rng.uniform(0, 200)), w, h]
            crowd = int(rng.random() < crowds)
            annotations.append({"bbox": box, "category_id": int(rng.integers(2)), "iscrowd": crowd, "area": w * h})
        for _ in range(rng.integers(0, detections + 1)):
            box = [float(v) for v in rng.uniform(1, 200, 4)]
            if annotations and rng.random() < 0.5:
                near = annotations[rng.integers(len(annotations))]
                box = [float(max(1, v + rng.normal(0, 3))) for v in near["bbox"]]
            score = float(rng.integers(1, 4) / 4 if ties else rng.random())
            found.append({"image_id": i, "category": int(rng.integers(3)), "bbox": box, "score": score})
        records.append({"image_id": i, "file_name": "", "height": 400, "width": 400, "annotations": annotations})
    return found, Dataset("made", records, CLASSES, (1, 2, 3))


CASES = {
    "random": dict(images=30, objects=6, detections=20),
    "many": dict(images=4, objects=30, detections=180),
    "ties": dict(images=20, objects=5, detections=15, ties=True),
    "crowds": dict(images=20, objects=5, detections=15, crowds=0.6),
    "edges of the areas": dict(images=20, objects=6, detections=15, edges=True),
    "no detection": dict(images=5, objects=4, detections=0),
    "no object": dict(images=5, objects=0, detections=5),
    "nothing": dict(images=2, objects=0, detections=0),
}


def curves(run):
    with contextlib.redirect_stdout(io.StringIO()):
        run.accumulate()
    return [np.asarray(run.eval[key], dtype=float) for key in ("precision", "recall")]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES)
def test_precision_and_recall_are_pycocotools(case, seed):
    found, dataset = world(seed, **CASES[case])
    slow = curves(coco.compared(found, dataset))
    fast = curves(coco._matched(found, dataset, *coco._fastest()))
    assert coco._fastest()[1] is faster.COCOeval_faster
    for one, other in zip(fast, slow, strict=True):
        np.testing.assert_allclose(one.reshape(other.shape), other, rtol=0, atol=1e-12)


def test_without_it_pycocotools_scores(monkeypatch):
    found, dataset = world(0, **CASES["random"])
    with_it = coco.score(found, dataset)
    importing = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "faster_coco_eval":
            raise ImportError(name)
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert coco._fastest() == (coco.COCO, coco.COCOeval)
    assert coco.score(found, dataset) == pytest.approx(with_it, abs=1e-10, nan_ok=True)
