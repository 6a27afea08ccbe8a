"""A Pascal VOC folder, registered as Detectron2 does it: trained on, and evaluated by its own VOC evaluator."""

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)")

import cv2
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc

from sed.d2.run import evaluate_only, train
from tests.reference.detectron2_run import tiny_config
from tests.reference.training import same

XML = """<annotation><size><width>64</width><height>64</height><depth>3</depth></size><object><name>{}</name>
<pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>
<xmax>{}</xmax><ymax>{}</ymax></bndbox></object></annotation>"""


@pytest.fixture
def voc(tmp_path):
    """voc_like_trainval and voc_like_test; the names are taken out again."""
    folder, rng = tmp_path / "VOC2007", np.random.default_rng(0)
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for split, numbers in (("trainval", range(8)), ("test", range(8, 12))):
        for i in numbers:
            x, y, side = *rng.integers(2, 30, 2).tolist(), 20
            pixels = rng.integers(90, 130, (64, 64, 3), dtype=np.uint8)
            pixels[y : y + side, x : x + side] = (30, 30, 220) if i % 2 else (220, 30, 30)
            cv2.imwrite(str(folder / f"JPEGImages/{i:06d}.jpg"), pixels)
            text = XML.format(("red", "blue")[i % 2], x + 1, y + 1, x + side, y + side)
            (folder / f"Annotations/{i:06d}.xml").write_text(text)
        (folder / f"ImageSets/Main/{split}.txt").write_text("".join(f"{i:06d}\n" for i in numbers))
        register_pascal_voc(f"voc_like_{split}", str(folder), split, 2007, ("red", "blue"))
        MetadataCatalog.get(f"voc_like_{split}").evaluator_type = "pascal_voc"
    yield {"DATASETS.TRAIN": "['voc_like_trainval']", "DATASETS.TEST": "['voc_like_test']"}
    for split in ("trainval", "test"):
        DatasetCatalog.remove(f"voc_like_{split}")
        MetadataCatalog.remove(f"voc_like_{split}")


RECIPE = {  # of configs/voc_detr.yaml
    "SOLVER__WARMUP_ITERS": 0,
    "SOLVER__BACKBONE_MULTIPLIER": 0.1,
    "SOLVER__CLIP_GRADIENTS__CLIP_TYPE": "full_model",
    "SOLVER__CLIP_GRADIENTS__CLIP_VALUE": 0.1,
}


@pytest.mark.parametrize("name", ["rcnn", "detr"])
def test_voc_is_trained_on_and_evaluated_by_its_own_metric(voc, family, tmp_path, name):
    keys = {"SOLVER__BASE_LR": 0.002, **({**family(name), **RECIPE} if name == "detr" else {})}
    results = train(tiny_config(voc, tmp_path / "run", **keys))
    ours = {"VOC07-AP50", "VOC12-AP50", "COCO-AP", "COCO-AP50", "COCO-AP75"}
    assert set(results["teacher"]["bbox"]) == {"AP", "AP50", "AP75"} | ours
    again = evaluate_only(tiny_config(voc, tmp_path / "run", **keys, MODEL__WEIGHTS=tmp_path / "run/model_final.pth"))
    assert same(dict(again["bbox"]), dict(results["teacher"]["bbox"])) is None
    assert (tmp_path / "run" / "model_best.pth").is_file()
