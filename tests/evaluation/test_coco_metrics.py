"""COCO metrics against cases scored by hand."""

import math

import pytest

from sed.evaluation.coco import detect_all, evaluate, format_table, score, tell_crowded, to_coco_results
from tests.reference.metrics import Scripted, hand_made, make_dataset, make_loader

CAT = {"bbox": [10, 10, 40, 40], "category_id": 0}


def run(truth, script, scale=1.0):
    dataset = make_dataset(truth)
    return evaluate(Scripted(script), make_loader(dataset, scale), dataset, "cpu")


def test_a_perfect_detection_scores_100_and_absent_classes_are_nan():
    results = run([[CAT]], [[([10.0, 10.0, 50.0, 50.0], 0.9, 0)]])
    assert results["AP"] == pytest.approx(100)
    assert results["AP-cat"] == pytest.approx(100)
    assert math.isnan(results["AP-dog"])
    assert results["APm"] == pytest.approx(100)  # 40 x 40 is medium
    assert math.isnan(results["APs"])
    assert math.isnan(results["APl"])
    assert results["detections"] == 1


def test_one_of_two_found_is_51_of_101_recall_points():
    dataset, detector, loader = hand_made()
    assert evaluate(detector, loader, dataset, "cpu")["AP"] == pytest.approx(100 * 51 / 101)


def test_a_better_scored_false_positive_halves_the_precision():
    results = run([[CAT]], [[([150.0, 50.0, 190.0, 90.0], 0.95, 0), ([10.0, 10.0, 50.0, 50.0], 0.9, 0)]])
    assert results["AP"] == pytest.approx(50)


def test_iou_decides_which_thresholds_count():
    # 40 x 40 against 25 x 40 within it: IoU 0.625, so 0.5, 0.55 and 0.6 of the ten thresholds
    results = run([[CAT]], [[([10.0, 10.0, 35.0, 50.0], 0.9, 0)]])
    assert results["AP50"] == pytest.approx(100)
    assert results["AP75"] == 0
    assert results["AP"] == pytest.approx(30)


def test_the_wrong_class_does_not_count():
    assert run([[CAT]], [[([10.0, 10.0, 50.0, 50.0], 0.9, 1)]])["AP"] == 0


def test_boxes_come_back_to_the_original_pixels():
    assert run([[CAT]], [[([25.0, 25.0, 125.0, 125.0], 0.9, 0)]], scale=2.5)["AP"] == pytest.approx(100)


def test_crowds_are_neither_right_nor_wrong():
    crowd = {"bbox": [100, 10, 80, 80], "category_id": 0, "iscrowd": 1}
    found = [([110.0, 20.0, 150.0, 60.0], 0.95, 0), ([10.0, 10.0, 50.0, 50.0], 0.9, 0)]
    assert run([[CAT, crowd]], [found])["AP"] == pytest.approx(100)


def test_the_annotated_area_decides_the_size_class():
    assert run([[{**CAT, "area": 500.0}]], [[([10.0, 10.0, 50.0, 50.0], 0.9, 0)]])["APs"] == pytest.approx(100)


def test_all_detections_of_an_image_with_many_objects_count():
    """TEST.DETECTIONS_PER_IMAGE is the limit, not COCO's 100."""
    boxes = [[5.0 * (i % 30), 5.0 * (i // 30), 4.0, 4.0] for i in range(240)]
    found = [([x, y, x + w, y + h], 0.9, 0) for x, y, w, h in boxes]
    truth = [[{"bbox": box, "category_id": 0} for box in boxes]]
    assert run(truth, [found])["AP"] == pytest.approx(100)
    assert run(truth, [found[:100]])["AP"] == pytest.approx(100 * 42 / 101)  # recall 0 to 0.41


def test_images_with_more_objects_than_detections_are_told(caplog):
    dataset = make_dataset([[CAT] * 7, [CAT] * 3, [CAT] * 9])
    with caplog.at_level("WARNING"):
        tell_crowded(dataset, 9)
        assert not caplog.messages
        tell_crowded(dataset, 6)
    (message,) = caplog.messages
    assert "2 images have more than 6 objects (up to 9)" in message
    assert message.endswith("set TEST.DETECTIONS_PER_IMAGE to 9")


def test_no_detection_at_all_is_0_and_not_an_error():
    results = run([[CAT]], [[]])
    assert results["AP"] == 0
    assert results["detections"] == 0
    assert math.isnan(results["AP-dog"])


def test_no_ground_truth_at_all_is_nan():
    assert math.isnan(run([[]], [[([10.0, 10.0, 50.0, 50.0], 0.9, 0)]])["AP"])


def test_metrics_agree_with_pycocotools_own_summary():
    import contextlib
    import io
    import random

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    draw = random.Random(0)

    def box(shift=0.0):
        x, y, w, h = draw.uniform(0, 100), draw.uniform(0, 40), draw.uniform(8, 100), draw.uniform(8, 60)
        return [x, y, w, h]

    truth = [[{"bbox": box(), "category_id": draw.randrange(2)} for _ in range(4)] for _ in range(6)]
    dataset = make_dataset(truth)
    found = []
    for i, annotations in enumerate(truth):
        for a in annotations:
            jitter = [v + draw.uniform(-3, 3) for v in a["bbox"]]
            found.append({"image_id": f"img{i}", "category": a["category_id"], "bbox": jitter, "score": draw.random()})
            found.append({"image_id": f"img{i}", "category": draw.randrange(2), "bbox": box(), "score": draw.random()})
    ours = score(found, dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = {
            "images": [{"id": i, "height": 100, "width": 200} for i in range(6)],
            "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
            "annotations": [
                {"id": n + 1, "image_id": i, "iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3], **a}
                for n, (i, a) in enumerate((i, a) for i, rows in enumerate(truth) for a in rows)
            ],
        }
        gt.createIndex()
        rows = [
            {"image_id": int(f["image_id"][3:]), "category_id": f["category"], "bbox": f["bbox"], "score": f["score"]}
            for f in found
        ]
        theirs = COCOeval(gt, gt.loadRes(rows), "bbox")
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    expected = dict(zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), theirs.stats[:6] * 100, strict=True))
    assert 5 < expected["AP"] < 95  # neither 0 nor 100, so that the case can fail
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, nan_ok=True) or (value == -100 and math.isnan(ours[name]))


@pytest.mark.parametrize("ties", [False, True])
def test_ap_equals_pycocotools_on_the_written_files(tmp_path, ties):
    """To 1e-9: with crowds, images without truth or detections, equal scores, ids in no order, areas of their own."""
    import contextlib
    import io
    import json

    import numpy as np
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from sed.data.coco import load_coco
    from tests.reference.voc import random_detections

    rng = np.random.default_rng(5)
    content = {"info": {}, "images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": c, "name": name} for c, name in ((9, "dog"), (4, "cat"), (7, "cow"))]
    for image_id in (40, 7, 23, 1, 30, 12, 5, 99, 64, 2, 51, 18):
        (tmp_path / f"{image_id}.jpg").touch()
        content["images"].append({"id": image_id, "file_name": f"{image_id}.jpg", "height": 120, "width": 160})
        for _ in range(rng.integers(0, 6)):
            box = [float(v) for v in (*rng.integers(0, 40, 2), *rng.integers(8, 80, 2))]
            crowd = int(rng.random() < 0.2)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.choice([9, 4])),  # 7 has no object
                    "bbox": box,
                    "iscrowd": crowd,
                    "area": box[2] * box[3] * float(rng.uniform(0.5, 1)),
                }
            )
    assert any(a["iscrowd"] for a in content["annotations"])
    assert len({a["image_id"] for a in content["annotations"]}) < 12
    truth, guesses = tmp_path / "truth.json", tmp_path / "guesses.json"
    truth.write_text(json.dumps(content))
    dataset = load_coco(truth)
    found = [row for row in random_detections(rng, dataset.records, 3, ties) if row["image_id"] != 23]
    fields = ("image_id", "bbox", "score")
    rows = [{"category_id": dataset.category_ids[r["category"]], **{f: r[f] for f in fields}} for r in found]
    guesses.write_text(json.dumps(rows))
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(str(truth))
        theirs = COCOeval(gt, gt.loadRes(str(guesses)), "bbox")
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    ours = score(found, dataset)
    stats = [100 * value if value >= 0 else math.nan for value in theirs.stats[:6]]  # -1: no such object
    expected = dict(zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), stats, strict=True))
    assert 5 < expected["AP"] < 95
    assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=1e-9, rel=0, nan_ok=True)
    assert math.isnan(ours["AP-cow"])


def test_evaluation_is_quiet_and_restores_the_training_flag(capsys):
    dataset, detector, loader = hand_made()
    detector.train()
    evaluate(detector, loader, dataset, "cpu")
    assert detector.training
    assert detector.modes == [False, False]  # it detected in eval mode
    assert capsys.readouterr().out == ""


def test_results_carry_original_ids():
    dataset, detector, loader = hand_made()
    rows = to_coco_results(detect_all(detector, loader, "cpu"), dataset)
    assert rows == [{"image_id": "img0", "category_id": 7, "bbox": [10.0, 10.0, 40.0, 40.0], "score": 0.9}]


def test_boxes_are_clipped_to_the_image():
    dataset = make_dataset([[CAT]])
    (row,) = detect_all(Scripted([[([-5.0, 90.0, 220.0, 130.0], 0.9, 0)]]), make_loader(dataset), "cpu")
    assert row["bbox"] == [0.0, 90.0, 200.0, 10.0]


def test_the_table_shows_every_row():
    table = format_table({"student": {"AP": 12.34, "AP50": 50.0}, "teacher": {"AP": 23.0}})
    assert [line.split()[:2] for line in table.splitlines()[1:]] == [["student", "12.3"], ["teacher", "23.0"]]
