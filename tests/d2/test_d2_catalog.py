"""Detectron2's catalogs: its sets as our records, our sources in its catalogs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)")

import torch
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import register_coco_instances, register_pascal_voc
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import Visualizer

from sed.d2.catalog import align, dataset_of, datasets_of, evaluable
from sed.d2.config import load_config
from sed.data.catalog import load_dataset
from sed.data.errors import DataError
from sed.data.images import read_image
from sed.data.records import reorder
from tests.data.conftest import Coco, write_image
from tests.reference.formats import FORMATS

VOC_XML = """<annotation><size><width>{w}</width><height>{h}</height><depth>3</depth></size>{objects}</annotation>"""
VOC_OBJECT = """<object><name>{}</name><difficult>0</difficult>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


@pytest.fixture(autouse=True)
def catalogs() -> Iterator[None]:
    """The tests' entries are taken out again."""
    before = [dict(catalog) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield
    for catalog, entries in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        catalog.data = entries


@pytest.fixture
def make_coco(tmp_path) -> Callable[..., Coco]:
    return lambda name="set", seed=0: Coco(tmp_path / name, [(40, 60), (60, 40), (40, 60)], seed)


def register(name: str, rows: object, classes: tuple[str, ...] = ("cat", "dog")) -> str:
    DatasetCatalog.register(name, lambda: rows)
    MetadataCatalog.get(name).set(thing_classes=list(classes))
    return name


def row(tmp_path: Path, number: int = 0, **fields: object) -> dict:
    path = write_image(tmp_path / f"{number}.jpg", 40, 60, seed=number)
    box = {"bbox": [4, 6, 14, 14], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    return {"file_name": str(path), "image_id": number, "height": 40, "width": 60, "annotations": [box], **fields}


# ---------------------------------------------------------------------------------------------- Detectron2 -> ours
def test_voc_folder(tmp_path) -> None:
    folder = tmp_path / "VOC2007"
    objects = {"000005": [("dog", 5, 7, 14, 14), ("cat", 1, 1, 60, 40)], "000007": []}
    for number, items in objects.items():
        write_image(folder / "JPEGImages" / f"{number}.jpg", 40, 60)
        text = VOC_XML.format(w=60, h=40, objects="".join(VOC_OBJECT.format(*item) for item in items))
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{number}.xml").write_text(text)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("000005\n000007\n")
    register_pascal_voc("mine_voc", str(folder), "trainval", 2007, ("cat", "dog"))

    dataset = dataset_of("mine_voc")
    assert (dataset.classes, dataset.category_ids, dataset.json_file) == (("cat", "dog"), (0, 1), "")
    assert dataset.records == [
        {
            "file_name": str(folder / "JPEGImages" / "000005.jpg"),
            "image_id": "000005",
            "height": 40,
            "width": 60,
            "annotations": [  # VOC counts pixels from 1, both ends included
                {"bbox": [4, 6, 10, 8], "bbox_mode": 1, "category_id": 1, "iscrowd": 0, "area": 80},
                {"bbox": [0, 0, 60, 40], "bbox_mode": 1, "category_id": 0, "iscrowd": 0, "area": 2400},
            ],
        },
        {
            "file_name": str(folder / "JPEGImages" / "000007.jpg"),
            "image_id": "000007",
            "height": 40,
            "width": 60,
            "annotations": [],
        },
    ]
    assert type(dataset.records[0]["image_id"]) is str  # no numpy: ids go into json files and checkpoints
    assert MetadataCatalog.get("mine_voc").year == 2007


@pytest.mark.parametrize(
    ("box", "mode", "wanted"),
    [
        ([4, 6, 14, 14], BoxMode.XYXY_ABS, [4, 6, 10, 8]),
        ([4, 6, 10, 8], BoxMode.XYWH_ABS, [4, 6, 10, 8]),
        ((4.25, 6.5, 10.1, 8), 1, [4.25, 6.5, 10.1, 8]),
        (np.array([4.1, 6, 14.3, 14]), BoxMode.XYXY_ABS, [4.1, 6, 10.2, 8]),
        ([9, 10, 8, 10, 90], BoxMode.XYWHA_ABS, [4, 6, 10, 8]),  # centre and angle: a quarter turn
        ([-4, 6, 70, 50], BoxMode.XYXY_ABS, [0, 6, 60, 34]),  # clipped
    ],
)
def test_every_box_mode(tmp_path, box, mode, wanted) -> None:
    item = {"bbox": box, "bbox_mode": mode, "category_id": 0}
    [record] = dataset_of(register("mine", [row(tmp_path, annotations=[item])])).records
    [found] = record["annotations"]
    assert found["bbox"] == pytest.approx(wanted, abs=1e-12 if mode != BoxMode.XYWHA_ABS else 1e-4)
    assert found["area"] == pytest.approx(wanted[2] * wanted[3], rel=1e-4)
    assert (found["bbox_mode"], found["iscrowd"]) == (1, 0)


def test_only_boxes_are_kept_and_it_is_said(tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO, "sed")
    box = {"bbox": [4, 6, 10, 8], "bbox_mode": 1, "category_id": 0, "iscrowd": 1, "area": 33.0}
    items = [
        {**box, "segmentation": [[4, 6, 14, 6, 14, 14]], "keypoints": [1, 2, 2]},
        {**box, "iscrowd": 0, "segmentation": [[4, 6, 14, 6, 14, 14]]},
    ]
    rows = [row(tmp_path, annotations=items, sem_seg_file_name="mask.png"), row(tmp_path, 1)]
    for key in ("height", "width", "image_id"):
        del rows[1][key]
    records = dataset_of(register("mine", rows)).records
    assert records[0]["annotations"] == [box, {**box, "iscrowd": 0}]
    assert set(records[0]) == {"file_name", "image_id", "height", "width", "annotations"}
    assert (records[1]["height"], records[1]["width"]) == (40, 60)  # from the file
    assert records[1]["image_id"] == rows[1]["file_name"]
    [message] = [r.getMessage() for r in caplog.records]
    assert message == "mine: only boxes are used; left out 2 segmentations and 1 sets of keypoints"


def test_boxes_that_are_none_are_dropped(tmp_path, caplog) -> None:
    boxes = [[4, 6, 4, 14], [70, 6, 80, 14], [4, 6, 14, 14]]
    items = [{"bbox": box, "bbox_mode": 0, "category_id": 0} for box in boxes]
    [record] = dataset_of(register("mine", [row(tmp_path, annotations=items)])).records
    assert [a["bbox"] for a in record["annotations"]] == [[4, 6, 10, 8]]
    assert "mine: dropped 2 boxes" in caplog.text


def test_unlabelled_means_no_annotation_at_all(tmp_path) -> None:
    bare = row(tmp_path, 1)
    del bare["annotations"]
    rows = [row(tmp_path, annotations=[{"nonsense": 1}], sem_seg_file_name="mask.png", caption="a dog"), bare]
    dataset = dataset_of(register("mine", rows), labeled=False)
    assert [set(record) for record in dataset.records] == [{"file_name", "image_id", "height", "width"}] * 2
    with pytest.raises(DataError, match=r"other: .*1\.jpg has no annotations"):
        dataset_of(register("other", [row(tmp_path), bare]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 2}, r"mine: an annotation of .*0\.jpg \(image id 0\) has category_id 2; expected 0 to 1"),
        ({"category_id": -1}, "has category_id -1"),
        ({"category_id": "dog"}, "has category_id 'dog'"),
        ({"bbox": [4, float("nan"), 14, 14]}, "holds NaN or infinity"),
        ({"bbox": [4, 6, 14]}, r"has bbox \[4, 6, 14\] .*not a box"),
        ({"bbox": "4 6 14 14"}, "which is not a box"),
        ({"bbox": None}, "which is not a box"),
        ({"bbox_mode": BoxMode.XYXY_REL}, "not a box .*Relative mode"),
        ({"bbox_mode": None}, "in mode None"),
        ({"iscrowd": 1}, "no usable box in its 1 images"),
    ],
)
def test_annotations_that_cannot_be_used(tmp_path, change, message) -> None:
    rows = [row(tmp_path)]
    rows[0]["annotations"][0].update(change)
    with pytest.raises(DataError, match=message):
        dataset_of(register("mine", rows))


def test_sets_that_cannot_be_used(tmp_path) -> None:
    gone = row(tmp_path, 1, file_name=str(tmp_path / "gone" / "1.jpg"))
    cases = [
        ([], "gives an empty list"),
        (iter([row(tmp_path)]), "gives a list_iterator"),
        ([{"image_id": 3}], "expected dataset dicts with file_name"),
        ([row(tmp_path), gone], r"gone/1\.jpg is missing \(1 of 2 are\).*DETECTRON2_DATASETS"),
    ]
    for number, (rows, message) in enumerate(cases):
        with pytest.raises(DataError, match=f"^set{number}: .*{message}"):
            dataset_of(register(f"set{number}", rows))
    DatasetCatalog.register("classless", lambda: [row(tmp_path)])
    with pytest.raises(DataError, match=r"classless: it has no classes; set MetadataCatalog"):
        dataset_of("classless")
    assert len(dataset_of("classless", labeled=False)) == 1


def test_files_that_are_not_there(tmp_path) -> None:
    register_coco_instances("mine_coco", {}, str(tmp_path / "gone.json"), str(tmp_path))
    register_pascal_voc("mine_voc", str(tmp_path / "VOC"), "train", 2007)
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    register_coco_instances("broken_coco", {}, str(broken), str(tmp_path))
    for name in ("mine_coco", "mine_voc", "broken_coco"):
        with pytest.raises(DataError, match=f"^{name}: it cannot be read .*set DETECTRON2_DATASETS"):
            dataset_of(name)
    with pytest.raises(DataError, match=r"^nowhere: neither a file.*DatasetCatalog, nor one of digits_train"):
        dataset_of("nowhere")


def test_other_classes_than_detectron2_knows_of_a_name(make_coco) -> None:
    coco = make_coco()
    register_coco_instances("builtin_like", {"thing_classes": ["person"]}, str(coco.write()), str(coco.folder))
    with pytest.raises(DataError, match=r"builtin_like: Attribute 'thing_classes' .* Give its json by path"):
        dataset_of("builtin_like")


def test_a_coco_set_of_the_user_is_what_the_native_engine_reads(make_coco) -> None:
    coco = make_coco()
    path = coco.write()
    register_coco_instances("mine_coco", {}, str(path), str(coco.folder))
    theirs, ours = dataset_of("mine_coco"), load_dataset(str(path))
    assert theirs.records == ours.records
    assert (theirs.classes, theirs.category_ids) == (ours.classes, ours.category_ids) == (("dog", "cat"), (3, 7))
    assert theirs.json_file == str(path)


# ---------------------------------------------------------------------------------------------- ours -> Detectron2
def test_a_json_by_its_path_is_known_to_detectron2(make_coco) -> None:
    coco = make_coco()
    source = str(coco.write())
    dataset = dataset_of(source)
    assert get_detection_dataset_dicts([source], filter_empty=False) == dataset.records
    metadata = MetadataCatalog.get(source)
    assert metadata.json_file == source
    assert metadata.image_root == str(coco.folder)
    assert metadata.evaluator_type == "coco"
    assert metadata.thing_classes == ["dog", "cat"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    image = read_image(dataset.records[0])
    drawn = Visualizer(image, metadata).draw_dataset_dict(dataset.records[0]).get_image()
    assert (drawn.shape, (drawn != image).any()) == (image.shape, True)
    metadata.set(thing_colors=[(1, 2, 3), (4, 5, 6)])
    assert dataset_of(source) == dataset  # registering twice is harmless
    assert MetadataCatalog.get(source).thing_colors == [(1, 2, 3), (4, 5, 6)]


def test_a_name_follows_its_file(make_coco) -> None:
    coco = make_coco()
    source = str(coco.write())
    dataset_of(source)
    coco.content["categories"][0]["name"] = "bird"
    coco.write()
    assert dataset_of(source).classes == ("dog", "bird")
    assert MetadataCatalog.get(source).thing_classes == ["dog", "bird"]


def test_a_folder_of_images_is_an_unlabelled_set(make_coco) -> None:
    folder = str(make_coco().folder)
    dataset = dataset_of(folder, labeled=False)
    assert [record["image_id"] for record in dataset.records] == ["0.jpg", "1.jpg", "2.jpg"]
    assert get_detection_dataset_dicts([folder]) == dataset.records
    assert not any("annotations" in record for record in dataset.records)
    with pytest.raises(DataError, match="no annotations in this folder"):
        dataset_of(folder)


def test_several_sources(make_coco) -> None:
    first, second = make_coco("a"), make_coco("b", seed=1)
    sources = [str(first.write()), str(second.write())]
    both = datasets_of(sources)
    assert [r["image_id"] for r in both.records] == [f"{s}:{i}" for s in sources for i in (10, 11, 12)]
    assert all(source in DatasetCatalog for source in sources)
    second.content["categories"][0]["name"] = "bird"
    second.write()
    with pytest.raises(DataError, match=r"has the categories .*they are matched by name"):
        datasets_of(sources)
    assert len(datasets_of(sources, labeled=False)) == 6
    with pytest.raises(DataError, match="no data set given"):
        datasets_of([])


def perfect_ap(dataset, tmp_path: Path) -> float:
    """AP that Detectron2's own loader and evaluator give to the boxes of the records."""
    cfg = load_config(None, ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"])
    evaluator = COCOEvaluator(dataset.name, output_dir=str(tmp_path / "out"), distributed=False)
    evaluator.reset()
    records = {record["image_id"]: record for record in dataset.records}
    for inputs in build_detection_test_loader(cfg, dataset.name, mapper=DatasetMapper(cfg, is_train=False)):
        for item in inputs:
            found = [a for a in records[item["image_id"]]["annotations"] if not a["iscrowd"]]
            boxes = torch.tensor([a["bbox"] for a in found]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            instances = Instances((item["height"], item["width"]), pred_boxes=Boxes(boxes))
            instances.scores = torch.ones(len(found))
            instances.pred_classes = torch.tensor([a["category_id"] for a in found])
            evaluator.process([item], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]["AP"]


TYPES = {"area text": {"area": "80"}, "area nan": {"area": float("nan")}, "category text": {"category_id": "7"}}


@pytest.mark.parametrize("fault", ["all", "area", "iscrowd", "id", "zero size", "info", *TYPES, ""])
def test_detectron2_evaluates_any_json_that_we_read(make_coco, tmp_path, fault) -> None:
    """Areas and crowd flags are optional here, pycocotools wants them and takes an annotation with id 0 as none."""
    coco = make_coco()
    content = coco.content
    if fault != "all":
        content["info"] = {}
        for number, item in enumerate(content["annotations"], int(fault != "id")):
            item.update(id=number, area=80)
            if fault in ("area", "iscrowd"):
                del item[fault]
            item.update(TYPES.get(fault, {}))
        content.pop(fault, None)
        if fault == "zero size":
            content["annotations"].append({**content["annotations"][0], "id": 9, "bbox": [4, 6, 0, 8]})
    source = str(coco.write())
    dataset = evaluable(dataset_of(source))
    assert (MetadataCatalog.get(source).json_file == source) == (not fault)
    assert perfect_ap(dataset, tmp_path) == pytest.approx(100)


@pytest.mark.parametrize("names", [("cat", "dog"), ("cow", "cat", "dog"), ("dog", "cat", "yak")])
def test_classes_in_another_order_are_evaluated_by_name(make_coco, tmp_path, names) -> None:
    before = dataset_of(str(make_coco().write()))
    assert before.classes == ("dog", "cat")
    after = reorder(before, names, "the model", subset=True)
    align(before, after)
    assert MetadataCatalog.get(before.name).thing_classes == list(names)
    assert perfect_ap(after, tmp_path) == pytest.approx(100)


def test_sets_of_the_user_are_evaluated_as_they_are(make_coco) -> None:
    coco = make_coco()
    register_coco_instances("mine_coco", {}, str(coco.write()), str(coco.folder))
    dataset = dataset_of("mine_coco")
    assert evaluable(dataset) == dataset
    with pytest.raises(DataError, match="the order differs"):
        align(dataset, reorder(dataset, dataset.classes[::-1], "the model"))


@pytest.mark.parametrize("tool", ["yolo", "voc", "cvat"])
def test_detectron2_evaluates_what_other_tools_write(make_coco, tmp_path, tool) -> None:
    FORMATS[tool](dataset_of(str(make_coco().write())), tmp_path / "export")
    assert perfect_ap(evaluable(dataset_of(str(tmp_path / "export"))), tmp_path / "out") == pytest.approx(100)
