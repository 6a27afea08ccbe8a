"""Predicting and drawing on Detectron2: what its own DefaultPredictor finds, drawn by its own Visualizer."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)")

import cv2
import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from sed.d2.checkpoint import PREFIXES, export
from sed.d2.config import load_config, stock_config
from sed.d2.inference import load_detector, painter, test_classes, test_mapper, test_set
from sed.data.digits import make_digits
from sed.data.errors import DataError
from sed.data.records import Dataset, image_record
from sed.detectors.weights import WeightsError
from sed.evaluation.coco import detect_all
from sed.evaluation.files import ImageFiles
from sed.evaluation.pictures import draw_found, draw_truth

TINY = (
    "MODEL.DEVICE cpu MODEL.RESNETS.DEPTH 18 MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 32 "
    "MODEL.RPN.POST_NMS_TOPK_TEST 50 MODEL.ROI_HEADS.NUM_CLASSES 3 MODEL.RETINANET.NUM_CLASSES 3 "
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 MODEL.RETINANET.SCORE_THRESH_TEST 0.0 TEST.DETECTIONS_PER_IMAGE 20 "
    "INPUT.MIN_SIZE_TEST 128 INPUT.MAX_SIZE_TEST 200"
)
KINDS = {
    "RGB": "",
    "BGR": "INPUT.FORMAT BGR MODEL.PIXEL_MEAN [103.53,116.28,123.675]",
    "RetinaNet": "MODEL.META_ARCHITECTURE ScaleConsistentRetinaNet",
}


def config(kind="RGB", more=""):
    return load_config(None, f"{TINY} {KINDS[kind]} {more}".split())


def make_detector(cfg):
    torch.manual_seed(0)
    detector = build_model(cfg).eval()
    two_stage = cfg.MODEL.META_ARCHITECTURE.endswith("RCNN")
    classifier = detector.roi_heads.box_predictor.cls_score if two_stage else detector.head.cls_score
    torch.nn.init.normal_(classifier.weight, std=0.3)  # scores that differ
    return detector


@pytest.fixture
def photos(tmp_path):
    """Noise of several sizes: enlarged, reduced, limited by the long side, lying on its side by EXIF."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, (height, width) in {"a.png": (90, 101), "b.jpg": (301, 222), "c.png": (100, 260)}.items():
        blocks = rng.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / name), cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST))
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(folder / "b.jpg").save(folder / "d.jpg", exif=turned)
    return sorted(folder.iterdir())


def find(detector, cfg, files, batch_size=1):
    images = ImageFiles(files, range(len(files)), test_mapper(cfg), batch_size)
    return detect_all(detector, images, "cpu"), images.records


# ---------------------------------------------------------------------------------------------- predicting
@pytest.mark.parametrize("kind", KINDS)
def test_detections_are_those_of_default_predictor(kind, photos, tmp_path):
    cfg = config(kind)
    path = tmp_path / "model_final.pth"
    export(make_detector(cfg), path, cfg)
    found, records = find(load_detector(cfg, str(path)), cfg, photos)
    predictor = DefaultPredictor(stock_config(cfg, str(path)))  # Detectron2's own class and loading
    assert type(predictor.model).__name__ in ("GeneralizedRCNN", "RetinaNet")
    assert [(r["height"], r["width"]) for r in records] == [(90, 101), (301, 222), (100, 260), (222, 301)]
    for index, file in enumerate(photos):
        want = predictor(read_image(str(file), format="BGR"))["instances"]
        rows = [row for row in found if row["image_id"] == index]
        boxes = np.array([row["bbox"] for row in rows])
        boxes[:, 2:] += boxes[:, :2]
        assert len(rows) == len(want) == 20
        assert [row["category"] for row in rows] == want.pred_classes.tolist()
        np.testing.assert_allclose([row["score"] for row in rows], want.scores.numpy(), rtol=1e-6)
        np.testing.assert_allclose(boxes, want.pred_boxes.tensor.numpy(), atol=1e-3)


def test_a_batch_of_one_size_changes_nothing(photos):
    cfg = config()
    detector = make_detector(cfg)
    pair = [photos[0], photos[0]]
    both, _ = find(detector, cfg, pair, batch_size=2)
    one, _ = find(detector, cfg, pair[:1])
    assert len(one) == 20
    for image_id in (0, 1):
        rows = [row for row in both if row["image_id"] == image_id]
        assert [row["bbox"] for row in rows] == [pytest.approx(row["bbox"], abs=1e-3) for row in one]


def test_an_unreadable_image_is_named(photos):
    record = image_record(photos[0], 0)
    photos[0].write_bytes(photos[0].read_bytes()[:300])
    with pytest.raises(DataError, match=r"a\.png: truncated"):
        test_mapper(config()).test(record)


# ---------------------------------------------------------------------------------------------- weights
def same(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_best_weights_of_a_run_are_the_default(tmp_path):
    cfg = config(more=f"OUTPUT_DIR {tmp_path}")
    with pytest.raises(DataError, match=r"holds no model_best\.pth or model_final\.pth"):
        load_detector(cfg, "")
    final, best = make_detector(cfg), make_detector(cfg)
    with torch.no_grad():
        best.roi_heads.box_predictor.cls_score.bias.add_(1)
    export(final, tmp_path / "model_final.pth", cfg)
    assert same(load_detector(cfg, ""), final)
    export(best, tmp_path / "model_best.pth", cfg)
    loaded = load_detector(cfg, "")
    assert same(loaded, best)
    assert not loaded.training


def test_every_kind_of_file_is_a_detector(tmp_path):
    """A checkpoint of our trainer (its teacher), a plain Detectron2 checkpoint, a file as in the model zoo."""
    cfg = config()
    student, teacher = make_detector(cfg), make_detector(cfg)
    with torch.no_grad():
        teacher.roi_heads.box_predictor.cls_score.bias.add_(1)
    both = {"student": student, "teacher": teacher}
    full = {PREFIXES[which] + name: value for which in both for name, value in both[which].state_dict().items()}
    torch.save({"model": full, "iteration": 9}, tmp_path / "checkpoint_0000010.pth")
    torch.save({"model": teacher.state_dict()}, tmp_path / "plain.pth")
    arrays = {name: value.numpy() for name, value in teacher.state_dict().items()}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "test"}))
    for name in ("checkpoint_0000010.pth", "plain.pth", "zoo.pkl"):
        assert same(load_detector(cfg, str(tmp_path / name)), teacher), name


def test_weights_that_do_not_fit_are_refused(tmp_path):
    cfg = config()
    export(make_detector(cfg), tmp_path / "model_final.pth", cfg)
    with pytest.raises(WeightsError, match=r"model_final\.pth.*Use the config that it was trained with"):
        load_detector(config(more="MODEL.ROI_HEADS.NUM_CLASSES 4"), str(tmp_path / "model_final.pth"))
    with pytest.raises(WeightsError, match=r"trained with INPUT\.FORMAT 'RGB'"):
        load_detector(config("BGR"), str(tmp_path / "model_final.pth"))


# ---------------------------------------------------------------------------------------------- data
def test_several_test_sets_are_joined(tmp_path):
    folder = make_digits(tmp_path, counts=(4, 3, 2))
    names = f"['{folder / 'tune.json'}','{folder / 'test.json'}']"
    test = test_set(config(more=f"MODEL.ROI_HEADS.NUM_CLASSES 5 DATASETS.TEST {names}"))
    assert len(test) == 5
    assert test.classes == ("0", "1", "2", "3", "4")
    assert all("annotations" in record for record in test.records)


def test_names_of_builtin_sets_are_known_without_their_files(tmp_path):
    known = test_classes(config(more="DATASETS.TEST ['coco_2017_val']"))
    assert (len(known.classes), known.classes[0], known.category_ids[0]) == (80, "person", 1)
    assert (known.classes[-1], known.category_ids[-1]) == ("toothbrush", 90)
    folder = make_digits(tmp_path, counts=(4, 3, 2))
    read = test_classes(config(more=f"MODEL.ROI_HEADS.NUM_CLASSES 5 DATASETS.TEST {folder / 'tune.json'}"))
    assert read.classes == ("0", "1", "2", "3", "4")
    with pytest.raises(DataError, match="neither a file"):
        test_classes(config(more="DATASETS.TEST lost.json"))


# ---------------------------------------------------------------------------------------------- drawing
@pytest.fixture
def dataset(tmp_path):
    """One black image of 40 x 60, a box and a crowd; a registered set with colours."""
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((40, 60, 3), np.uint8))
    box = {"bbox": [10, 20, 30, 15], "bbox_mode": 1, "category_id": 1, "iscrowd": 0}
    crowd = {"bbox": [2, 2, 5, 5], "bbox_mode": 1, "category_id": 0, "iscrowd": 1}
    record = {"file_name": str(tmp_path / "x.png"), "image_id": 7, "height": 40, "width": 60}
    name = f"drawn_{tmp_path.name}"
    MetadataCatalog.get(name).set(thing_classes=["cat", "dog"], thing_colors=[(255, 0, 0), (0, 0, 255)])
    yield Dataset(name, [record | {"annotations": [box, crowd]}], ("cat", "dog"), (1, 2))
    MetadataCatalog.remove(name)


def test_boxes_lie_where_they_are_annotated(dataset):
    picture = draw_truth(dataset.records[0], dataset.classes, 600, painter(dataset))
    assert (picture.shape, picture.dtype) == ((400, 600, 3), np.uint8)
    for x, y in ((400, 270), (250, 350), (100, 270), (300, 200)):  # right, lower, left and upper side, ten times
        red, green, blue = picture[y, x].tolist()
        assert blue > 80, (x, y)  # half transparent
        assert red == green == 0, (x, y)
    assert not picture[230:320, 160:380].any()  # inside; beside the label
    assert not picture[:180].any()  # the crowd


def test_without_boxes_the_picture_is_the_image(dataset):
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    drawn = painter(dataset)(image, np.zeros((0, 4)), [], [], dataset.classes)
    np.testing.assert_array_equal(drawn, image)


def test_labels_are_detectron2s_and_nothing_is_random(dataset, monkeypatch):
    rows = [
        {"image_id": 7, "category": 0, "bbox": [5, 5, 30, 30], "score": 0.874},
        {"image_id": 7, "category": 1, "bbox": [30, 5, 20, 30], "score": 0.4},
        {"image_id": 8, "category": 1, "bbox": [30, 5, 25, 30], "score": 0.9},
    ]
    said = []
    draw_text = Visualizer.draw_text

    def note(self, text, *args, **kwargs):
        said.append(text)
        return draw_text(self, text, *args, **kwargs)

    monkeypatch.setattr(Visualizer, "draw_text", note)
    draw = [draw_found(dataset.records[0], rows, dataset.classes, 0.5, 300, painter(dataset)) for _ in range(2)]
    assert said == ["cat 87%", "cat 87%"]
    assert np.array_equal(*draw)
    assert draw[0][:, :, 0].any()
    assert not draw[0][150, 280:].any()  # below the threshold, or of another image


def test_a_set_without_colours_is_drawn_too(dataset):
    other = Dataset("a+b", dataset.records, dataset.classes)
    picture = draw_truth(dataset.records[0], other.classes, 300, painter(other))
    assert picture.any()
    MetadataCatalog.pop("a+b", None)


# ---------------------------------------------------------------------------------------------- the demo
# What demo/demo.py of a Detectron2 checkout does with --config-file, --input, --output, --confidence-threshold
# and --opts; the demo is no part of the installed package.
DEMO = """
import json, sys
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine.defaults import DefaultPredictor
from detectron2.utils.visualizer import ColorMode, Visualizer

config_file, image, output, threshold, *opts = sys.argv[1:]
cfg = get_cfg()
cfg.merge_from_file(config_file)
cfg.merge_from_list(opts)
cfg.MODEL.RETINANET.SCORE_THRESH_TEST = cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = float(threshold)
cfg.freeze()
metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0] if len(cfg.DATASETS.TEST) else "__unused")
pixels = read_image(image, format="BGR")
instances = DefaultPredictor(cfg)(pixels)["instances"].to("cpu")
drawn = Visualizer(pixels[:, :, ::-1], metadata, instance_mode=ColorMode.IMAGE)
drawn.draw_instance_predictions(predictions=instances).save(output)
assert not any(name.split(".")[0] == "sed" for name in sys.modules)
print(json.dumps([instances.pred_boxes.tensor.tolist(), instances.scores.tolist(), instances.pred_classes.tolist()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["BGR", "RetinaNet"])
def test_stock_detectron2_draws_with_the_exported_teacher(kind, photos, tmp_path):
    cfg = config(kind)
    export(make_detector(cfg), tmp_path / "model_final.pth", cfg)
    (tmp_path / "stock.yaml").write_text(stock_config(cfg, str(tmp_path / "model_final.pth")).dump())
    found, _ = find(load_detector(cfg, str(tmp_path / "model_final.pth")), cfg, photos[:1])
    scores = [row["score"] for row in found]
    threshold = (scores[4] + scores[5]) / 2
    command = [sys.executable, "-c", DEMO, "stock.yaml", str(photos[0]), "drawn.png", str(threshold)]
    done = subprocess.run(
        [*command, "MODEL.DEVICE", "cpu"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    boxes, theirs, classes = json.loads(done.stdout.splitlines()[-1])
    assert theirs == pytest.approx(scores[:5])
    assert classes == [row["category"] for row in found[:5]]
    for box, row in zip(boxes, found, strict=False):
        x, y, w, h = row["bbox"]
        assert box == pytest.approx([x, y, x + w, y + h], abs=1e-3)
    picture, photo = cv2.imread(str(Path(tmp_path) / "drawn.png")), cv2.imread(str(photos[0]))
    assert picture.shape == photo.shape
    assert (picture != photo).any()
