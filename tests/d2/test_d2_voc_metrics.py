"""AP equal to Detectron2's to 1e-9, on Pascal VOC by VOC's and by COCO's rules; VOC sets alike on both engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)")

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_pascal_voc
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator, pascal_voc_evaluation
from detectron2.structures import Boxes, Instances

from sed.d2.catalog import dataset_of
from sed.d2.voc import VOCEvaluator, voc_truth
from sed.data.errors import DataError
from sed.data.voc import CLASSES, load_voc
from sed.evaluation.coco import score
from sed.evaluation.voc import VOC07, VOC12, voc_ap, voc_ap50
from tests.reference.voc import Object, make_folder, random_detections, random_objects, write_annotation, write_split

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("cat", "dog", "sheep", "bus")  # the first three have objects, one of them difficult ones only
SIZE = (120, 160)


@pytest.fixture(autouse=True)
def catalogs():
    """The tests' entries are taken out again."""
    before = [dict(catalog) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield
    for catalog, entries in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        catalog.data = entries


def make_set(root: Path, seed: int = 0, year: int = 2007) -> Path:
    """Forty images; some have no object, all sheep are difficult, there is no bus."""
    rng, folder = np.random.default_rng(seed), make_folder(root, year)
    images = {}
    for number in rng.permutation(40):
        objects = random_objects(rng, SIZE, NAMES[:3])
        images[f"{number:06d}"] = [o._replace(difficult=1) if o.name == "sheep" else o for o in objects]
    write_split(folder, "test", images, SIZE)
    return folder


# ------------------------------------------------------------------------------------------ voc_eval itself
@pytest.fixture
def stable(monkeypatch):
    """`voc_eval` sorts equal scores as the machine likes; here in the order of the file, that of the images."""
    values = {**vars(np), "argsort": lambda a: np.argsort(a, kind="stable")}
    monkeypatch.setattr(pascal_voc_evaluation, "np", SimpleNamespace(**values))


def voc_eval(folder: Path, output: Path, dataset, found: list[dict], iou: float) -> np.ndarray:
    """Detectron2's AP of each class by 11 points and as area [K, 2], from files that hold every digit."""
    output.mkdir(exist_ok=True)
    order = {record["image_id"]: place for place, record in enumerate(dataset.records)}
    table = []
    for index, name in enumerate(dataset.classes):
        rows = sorted((r for r in found if r["category"] == index), key=lambda r: order[r["image_id"]])
        lines = []
        for row in rows:
            x, y, w, h = row["bbox"]
            lines.append(" ".join([row["image_id"], *map(repr, (row["score"], x + 1, y + 1, x + w, y + h))]))
        (output / f"{name}.txt").write_text("\n".join(lines))
        files = (str(output / "{}.txt"), str(folder / "Annotations/{}.xml"), str(folder / "ImageSets/Main/test.txt"))
        table.append([pascal_voc_evaluation.voc_eval(*files, name, iou, year07)[2] for year07 in (True, False)])
    return np.array(table)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # Detectron2 divides by the number of objects
@pytest.mark.parametrize("iou", [0.5, 0.75])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_ap_equals_voc_eval(tmp_path, stable, seed, ties, iou) -> None:
    """Random: difficult objects, duplicates, near misses, images without truth or detections, equal scores."""
    folder = make_set(tmp_path, seed)
    dataset = load_voc(folder, "test", NAMES)
    found = random_detections(np.random.default_rng(100 + seed), dataset.records, len(NAMES), ties)
    theirs, ours = voc_eval(folder, tmp_path / "found", dataset, found, iou), voc_ap(found, dataset, iou)
    assert 0.02 < theirs[:2].min() < theirs[:2].max() < 0.98  # a case that says something
    assert ours[:2] == pytest.approx(theirs[:2], abs=1e-9, rel=0)
    assert np.isnan(ours[2:]).all()  # no object to find; Detectron2: 0 and NaN
    if iou == 0.5:
        means = dict(zip((VOC07, VOC12), 100 * theirs[:2].mean(0), strict=True))
        assert voc_ap50(found, dataset) == pytest.approx(means, abs=1e-9, rel=0)


def test_hand_made_cases_equal_voc_eval(tmp_path, stable) -> None:
    box, far, half = (11, 11, 50, 50), (71, 11, 110, 50), (11, 11, 50, 30)
    images = {
        "1": [Object("cat", box), Object("cat", far, 1), Object("dog", box)],
        "2": [Object("cat", box), Object("cat", (11, 11, 50, 70))],
        "3": [],
    }
    folder = make_folder(tmp_path, 2007)
    write_split(folder, "test", images, SIZE)
    dataset = load_voc(folder, "test", NAMES)

    def row(image, corners, score):
        x0, y0, x1, y1 = corners
        return {"image_id": image, "category": 0, "bbox": [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1], "score": score}

    difficult = [row("1", far, 0.9), row("1", far, 0.8)]
    cases = {
        "nothing": [],
        "difficult only": difficult,
        "difficult first": [*difficult, row("1", box, 0.7)],
        "duplicates": [row("1", box, 0.9), row("1", box, 0.8), row("2", box, 0.7)],
        "the better box is taken": [row("2", box, 0.9), row("2", box, 0.8)],
        "exactly one half": [row("1", half, 0.9), row("2", box, 0.8)],
        "an image without objects": [row("3", box, 0.9), row("1", box, 0.8)],
        "ties": [row("1", box, 0.5), row("2", far, 0.5), row("2", box, 0.5), row("3", box, 0.5)],
    }
    seen = set()
    for name, found in cases.items():
        theirs, ours = voc_eval(folder, tmp_path / "found", dataset, found, 0.5), voc_ap(found, dataset)
        assert ours[:2] == pytest.approx(theirs[:2], abs=1e-9, rel=0), name
        seen.add(tuple(theirs[0].round(6)))
    assert len(seen) == 4


# ------------------------------------------------------------------------------------------ evaluators
def feed(evaluator, found: list[dict], dataset):
    """What the evaluator says of detections."""
    evaluator.reset()
    for record in dataset.records:
        rows = [row for row in found if row["image_id"] == record["image_id"]]
        boxes = torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances = Instances((record["height"], record["width"]), pred_boxes=Boxes(boxes))
        instances.scores = torch.tensor([row["score"] for row in rows])
        instances.pred_classes = torch.tensor([row["category"] for row in rows], dtype=torch.long)
        evaluator.process([{"image_id": record["image_id"]}], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("year", [2007, 2012])
def test_the_evaluator_is_detectron2s_with_five_figures_more(tmp_path, year) -> None:
    folder = make_set(tmp_path, year=year)
    names = NAMES[:2] if year == 2012 else NAMES  # by area Detectron2 has NaN for a class without objects
    if year == 2012:
        for path in (folder / "Annotations").iterdir():
            path.write_text(path.read_text().replace("sheep", "dog"))
    register_pascal_voc("voc_like", str(folder), "test", year, names)
    dataset = voc_truth("voc_like")
    assert [r["image_id"] for r in dataset.records] == [r["image_id"] for r in DatasetCatalog.get("voc_like")]
    found = random_detections(np.random.default_rng(3), dataset.records, len(names))
    got = feed(VOCEvaluator("voc_like"), found, dataset)
    stock = feed(PascalVOCDetectionEvaluator("voc_like"), found, dataset)
    assert {name: got.pop(name) for name in stock} == stock
    native = score(found, dataset)
    assert got == {
        **{name: native[name] for name in (VOC07, VOC12)},
        **{f"COCO-{name}": native[name] for name in ("AP", "AP50", "AP75")},
    }
    # Detectron2's AP50 is one of ours, but for its rounding and the classes without objects, which it counts as 0
    same = got[VOC07] * 2 / 4 if year == 2007 else got[VOC12]
    assert stock["AP50"] == pytest.approx(same, abs=0.5)
    assert abs(got[VOC07] - got[VOC12]) > 0.5


@pytest.mark.parametrize("ties", [False, True])
def test_coco_style_ap_on_voc_equals_detectron2s_coco_evaluator(tmp_path, ties) -> None:
    """Detectron2 makes a json of its VOC records; they say nothing of difficult objects, so these count."""
    register_pascal_voc("voc_like", str(make_set(tmp_path)), "test", 2007, NAMES)
    dataset = voc_truth("voc_like")
    found = random_detections(np.random.default_rng(4), dataset.records, len(NAMES), ties)
    theirs = feed(COCOEvaluator("voc_like", distributed=False, output_dir=str(tmp_path / "out")), found, dataset)
    assert 5 < theirs["AP"] < 95
    ours = score(found, dataset)
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-9, rel=0, nan_ok=True)


@pytest.mark.parametrize("ties", [False, True])
def test_coco_ap_equals_detectron2s_coco_evaluator(tmp_path, ties) -> None:
    """Crowds, images without truth or detections, ids in no order, equal scores, a class without objects."""
    rng = np.random.default_rng(6)
    content = {"info": {}, "images": [], "annotations": [], "categories": [{"id": 9, "name": "dog"}]}
    content["categories"] += [{"id": 4, "name": "cat"}, {"id": 7, "name": "cow"}]
    for image_id in rng.permutation(50).tolist():
        (tmp_path / f"{image_id}.jpg").touch()
        content["images"].append({"id": image_id, "file_name": f"{image_id}.jpg", "height": 120, "width": 160})
        for _ in range(rng.integers(0, 6)):
            box = [float(v) for v in (*rng.integers(0, 40, 2), *rng.integers(8, 80, 2))]
            more = {"iscrowd": int(rng.random() < 0.2), "area": box[2] * box[3], "category_id": int(rng.choice([9, 4]))}
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": image_id, "bbox": box, **more}
            )
    (tmp_path / "truth.json").write_text(json.dumps(content))
    register_coco_instances("coco_like", {}, str(tmp_path / "truth.json"), str(tmp_path))
    dataset = dataset_of("coco_like")
    found = random_detections(rng, dataset.records, 3, ties)
    theirs = feed(COCOEvaluator("coco_like", distributed=False, output_dir=str(tmp_path / "out")), found, dataset)
    assert 5 < theirs["AP"] < 95
    ours = score(found, dataset)
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-9, rel=0, nan_ok=True)


# ------------------------------------------------------------------------------------------ data
def test_the_classes_are_detectron2s() -> None:
    assert CLASSES == CLASS_NAMES


def test_records_are_those_of_detectron2(tmp_path) -> None:
    folder = make_set(tmp_path)
    register_pascal_voc("voc_like", str(folder), "test", 2007)
    theirs, ours = dataset_of("voc_like"), load_voc(folder, "test", name="voc_like")
    for record in ours.records:
        for annotation in record["annotations"]:
            assert annotation.pop("difficult") in (0, 1)
    assert ours == theirs


def test_broken_files_are_named(tmp_path) -> None:
    folder = make_set(tmp_path)
    register_pascal_voc("voc_like", str(folder), "test", 2007)
    path = folder / "Annotations" / "000003.xml"
    for text, message in (
        ("<annotation>", "not an XML file"),
        ("<annotation/>", "its <size> has no <width>"),
        (path.read_text().replace("<annotation>", "<annotation><object><name>zebra</name></object>"), "unknown class"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=rf"000003\.xml: .*{message}"):
            dataset_of("voc_like")
    write_annotation(folder, "000003", [])
    DatasetCatalog.register("of the user", lambda: [][0])
    with pytest.raises(IndexError):  # not ours to explain
        dataset_of("of the user")


CHILD = """
import json
from sed.config import load_config as native_config
from sed.d2 import load_config
from sed.d2.data import read_data
from sed.engine import build
one = native_config("configs/voc_detr.yaml", ["ENGINE", "torchvision", "MODEL.DEVICE", "cpu"])
other = load_config("configs/voc_detr.yaml", ["ENGINE", "detectron2", "MODEL.DEVICE", "cpu"])
native, theirs = build.read_data(one), read_data(other)
tests = native.tests[0].records
def plain(records):
    strip = lambda r: [{k: v for k, v in a.items() if k != "difficult"} for a in r["annotations"]]
    return [{**r, "annotations": strip(r)} if "annotations" in r else r for r in records]
print(json.dumps({
    "classes": native.labeled.classes == theirs.labeled.classes,
    "same": [plain(a) == list(b) for a, b in ((native.labeled.records, theirs.labeled.records),
        (native.unlabeled, theirs.unlabeled), (tests, theirs.tests[0].records))],
    "ids": [r["image_id"] for part in (native.labeled.records, native.unlabeled, tests) for r in part],
    "labels": ["annotations" in r for r in theirs.unlabeled],
}))
"""


def test_voc07_labelled_and_voc12_unlabelled_on_both_engines(tmp_path) -> None:
    """In a process of its own: Detectron2 reads DETECTRON2_DATASETS when it is imported."""
    cat, sheep = Object("cat", (1, 1, 64, 48)), Object("sheep", (11, 21, 30, 40), 1)
    write_split(make_folder(tmp_path, 2007), "trainval", {"000012": [cat, sheep], "000005": [], "000007": [sheep]})
    write_split(make_folder(tmp_path, 2007), "test", {"000001": [cat], "000002": []})
    write_split(make_folder(tmp_path, 2012), "trainval", {"2008_000002": [cat], "2008_000007": []})
    run = subprocess.run(
        [sys.executable, "-c", CHILD],
        cwd=ROOT,
        env={**os.environ, "DETECTRON2_DATASETS": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert json.loads(run.stdout.splitlines()[-1]) == {
        "classes": True,
        "same": [True, True, True],
        "ids": ["000012", "000007", "2008_000002", "2008_000007", "000001", "000002"],
        "labels": [False, False],
    }
