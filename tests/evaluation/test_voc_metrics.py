"""Pascal VOC's AP against cases scored by hand; tests/d2/test_d2_voc_metrics.py has the equality with Detectron2."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sed.evaluation.coco import evaluate, format_table, score
from sed.evaluation.voc import VOC07, VOC12, is_voc, voc_ap, voc_ap50
from tests.reference.metrics import Scripted, make_dataset, make_loader
from tests.reference.voc import random_detections

BOX, FAR = [10, 10, 40, 40], [120, 40, 40, 40]  # x, y, w, h


def cat(box=BOX, difficult=0, category=0):
    return {"bbox": box, "category_id": category, "difficult": difficult}


def found(score=0.9, box=BOX, image=0, category=0):
    return {"image_id": f"img{image}", "category": category, "bbox": box, "score": score}


def aps(truth, rows):
    """The first class's AP by both conventions, percent."""
    return tuple(100 * voc_ap(rows, make_dataset(truth))[0])


def test_both_conventions_of_one_curve() -> None:
    """One of two found: precision 1 up to recall 0.5, which is 6 of 11 points and half of the area."""
    assert aps([[cat()], [cat()]], [found()]) == pytest.approx((100 * 6 / 11, 50))


def test_the_curve_is_made_falling() -> None:
    """Right, wrong, right: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1."""
    rows = [found(0.9), found(0.8, FAR), found(0.7, image=1)]
    assert aps([[cat()], [cat()]], rows) == pytest.approx((100 * (6 + 5 * 2 / 3) / 11, 100 * (0.5 + 0.5 * 2 / 3)))


def test_the_fourth_point_lies_a_rounding_error_above_three_tenths() -> None:
    """As the devkit in numpy has it: three of ten found reach 0, 0.1 and 0.2 only."""
    assert aps([[cat()]] * 10, [found(image=i) for i in range(3)]) == pytest.approx((100 * 3 / 11, 30))


def test_a_second_detection_of_an_object_is_wrong() -> None:
    assert aps([[cat()], [cat()]], [found(0.9), found(0.8), found(0.7, image=1)])[1] == pytest.approx(
        100 * (0.5 + 0.5 * 2 / 3)
    )


def test_a_detection_belongs_to_the_box_that_it_overlaps_most_even_if_that_is_taken() -> None:
    """COCO would give it to the second one."""
    second = [10, 10, 40, 60]
    rows = [found(0.9), found(0.8)]
    assert aps([[cat(), cat(second)]], rows)[1] == pytest.approx(50)
    assert score(rows, make_dataset([[cat(), cat(second)]]))["AP50"] == pytest.approx(100)


def test_difficult_objects_need_not_be_found_and_finding_them_is_neither_right_nor_wrong() -> None:
    truth = [[cat(), cat(FAR, difficult=1)]]
    assert aps(truth, [found(0.9)]) == pytest.approx((100, 100))
    rows = [found(0.99, FAR), found(0.98, FAR), found(0.9)]
    assert aps(truth, rows) == pytest.approx((100, 100))
    results = score(rows, make_dataset(truth))
    assert results[VOC07] == results[VOC12] == pytest.approx(100)
    assert results["AP50"] == pytest.approx(100 * (51 * 1 + 50 * 2 / 3) / 101)  # COCO-style it counts as any other


def test_the_overlap_must_be_more_than_one_half() -> None:
    assert aps([[cat()]], [found(box=[10, 10, 40, 20])]) == (0, 0)  # exactly one half
    assert aps([[cat()]], [found(box=[10, 10, 40, 20.001])])[1] == pytest.approx(100)


def test_the_devkits_extra_pixel_is_in_the_records() -> None:
    """VOC's boxes (1, 1)-(10, 10) and (1, 1)-(10, 6) hold 100 and 60 pixels, not 81 and 45: IoU 0.6, not 0.556."""
    truth, rows = [[cat([0, 0, 10, 10])]], [found(box=[0, 0, 10, 6])]
    for iou, expected in ((0.599, 1), (0.601, 0)):
        assert voc_ap(rows, make_dataset(truth), iou)[0].tolist() == [expected, expected]


def test_classes_without_an_object_to_find_are_left_out() -> None:
    dataset = make_dataset([[cat(), cat(FAR, difficult=1, category=1)]])
    rows = [found(), found(0.99, FAR, category=1), found(0.98, BOX, category=1)]
    assert np.isnan(voc_ap(rows, dataset)[1]).all()
    assert voc_ap50(rows, dataset) == {VOC07: pytest.approx(100), VOC12: pytest.approx(100)}
    assert all(math.isnan(v) for v in voc_ap50([], make_dataset([[cat(difficult=1)], []])).values())


def test_no_detection_at_all_is_0() -> None:
    assert voc_ap50([], make_dataset([[cat()]])) == {VOC07: 0, VOC12: 0}


def test_the_classes_count_alike() -> None:
    """Nine cats found, one dog not."""
    truth = [[cat()]] * 9 + [[cat(category=1)]]
    assert voc_ap50([found(image=i) for i in range(9)], make_dataset(truth))[VOC12] == pytest.approx(50)


def test_crowds_of_a_joined_set_are_passed_over_too() -> None:
    crowd = {**cat(FAR), "iscrowd": 1}
    assert aps([[cat(), crowd]], [found(0.95, FAR), found(0.9)]) == pytest.approx((100, 100))


def test_ties_do_not_depend_on_the_order_of_processes() -> None:
    """Detections are gathered from several processes: equal scores are taken in the order of the images."""
    rng = np.random.default_rng(0)
    truth = [[cat([*rng.uniform(0, 50, 2), 40, 40], category=int(rng.integers(2)))] for _ in range(30)]
    dataset = make_dataset(truth)
    rows = random_detections(rng, dataset.records, 2, ties=True)
    ranks = [[row for row in rows if int(row["image_id"][3:]) % 3 == rank] for rank in range(3)]
    expected = voc_ap(rows, dataset)
    assert 0.1 < expected.min() < expected.max() < 0.9
    assert np.array_equal(voc_ap([row for part in ranks for row in part], dataset), expected)


def test_only_sets_with_difficult_flags_have_voc_metrics() -> None:
    plain = make_dataset([[{"bbox": BOX, "category_id": 0}]])
    assert not is_voc(plain)
    assert VOC07 not in score([found()], plain)
    dataset = make_dataset([[], [cat()]])
    assert is_voc(dataset)
    results = evaluate(Scripted([[], [([10.0, 10.0, 50.0, 50.0], 0.9, 0)]]), make_loader(dataset), dataset, "cpu")
    assert {name: results[name] for name in (VOC07, VOC12, "AP50", "AP")} == dict.fromkeys(
        (VOC07, VOC12, "AP50", "AP"), pytest.approx(100)
    )


def test_the_table_has_voc_s_columns_where_there_are_such_metrics() -> None:
    rows = {"student": {"AP": 1.0, VOC07: 80.6, VOC12: 81.44}, "a longer name": {"AP": 2.0}}
    head, student, other = format_table(rows).splitlines()
    assert head.split() == ["AP", "AP50", "AP75", "APs", "APm", "APl", VOC07, VOC12]
    assert student.split() == ["student", "1.0", *["nan"] * 5, "80.6", "81.4"]
    assert other.split()[-2:] == ["nan", "nan"]
    assert len(head) == len(student) == len(other)
    assert VOC07 not in format_table({"student": {"AP": 1.0}})
