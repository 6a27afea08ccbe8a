"""Detectron2's builtin names, which live under DETECTRON2_DATASETS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)")

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from tests.data.conftest import write_image

ROOT = Path(__file__).resolve().parents[2]


def coco_2017(root: Path) -> None:
    """A folder shaped as COCO 2017, with its 80 categories."""
    things = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    for split, count in (("train2017", 20), ("val2017", 2), ("unlabeled2017", 3)):
        images, annotations = [], []
        for i in range(count):
            write_image(root / "coco" / split / f"{i:012d}.jpg", 40, 60, seed=1000 * count + i)
            images.append({"id": 100 - i, "file_name": f"{i:012d}.jpg", "height": 40, "width": 60})
            box = {"bbox": [4, 6, 10, 8], "iscrowd": 0, "area": 80, "category_id": things[i]["id"]}
            annotations.append({"id": i + 1, "image_id": 100 - i, **box})
        content = {"info": {}, "images": images, "annotations": annotations, "categories": things}
        name = f"instances_{split}.json" if split != "unlabeled2017" else "image_info_unlabeled2017.json"
        (root / "coco" / "annotations").mkdir(exist_ok=True)
        (root / "coco" / "annotations" / name).write_text(json.dumps(content))


CHILD = """
import json, sys
from detectron2.data import MetadataCatalog
from sed.config import load_config as native_config
from sed.d2 import load_config
from sed.d2.data import read_data, build_train_loader
from sed.data.catalog import load_dataset
from sed.data.splits import id_hash, split
assert "detectron2.data.datasets.builtin" in sys.modules
options = ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SEMI.LABELED_PERCENT", "50.0", "MODEL.WEIGHTS", "",
           "SEMI.BURN_IN", "0", "SEMI.IMS_PER_BATCH_LABELED", "2", "SEMI.IMS_PER_BATCH_UNLABELED", "2"]
cfg = load_config("configs/coco_10.yaml", options)
data = read_data(cfg)
native = split(load_dataset("coco_2017_train").records, 50.0)
labeled, unlabeled, step = next(build_train_loader(cfg, 32, data=data))
cfg.SEMI.LABELED_PERCENT, cfg.DATASETS.UNLABELED = 0.0, ("coco_2017_unlabeled",)
whole = read_data(cfg)
print(json.dumps({
    "sizes": [len(data.labeled), len(data.unlabeled), len(data.tests[0]), len(whole.labeled), len(whole.unlabeled)],
    "same": [id_hash(native[0]) == id_hash(data.labeled.records), id_hash(native[1]) == id_hash(data.unlabeled)],
    "classes": len(data.labeled.classes), "last": data.labeled.category_ids[-1],
    "json": MetadataCatalog.get("coco_2017_unlabeled").json_file,
    "short": [min(size) for batch in (labeled.images, unlabeled.weak) for size in batch.sizes],
}))
"""


def test_builtin_names_under_detectron2_datasets(tmp_path) -> None:
    """In a process of its own: Detectron2 reads DETECTRON2_DATASETS when it is imported."""
    coco_2017(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", CHILD],
        cwd=ROOT,
        env={**os.environ, "DETECTRON2_DATASETS": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    short = found.pop("short")
    assert len(short) == 4
    assert all(640 <= side <= 800 for side in short)
    assert found == {
        "sizes": [10, 10, 2, 20, 3],
        "same": [True, True],
        "classes": 80,
        "last": 90,
        "json": str(tmp_path / "coco" / "annotations" / "image_info_unlabeled2017.json"),
    }
