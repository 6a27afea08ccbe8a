"""Drawn boxes are at their coordinates, contact sheets hold all their images."""

import numpy as np
import pytest

from sed.evaluation.visualize import contact_sheet, draw_boxes, fit, write_png


def test_the_outline_has_the_colour_and_the_input_is_untouched():
    image = np.zeros((60, 80, 3), np.uint8)
    out = draw_boxes(image, [[10, 20, 50, 40]], color=(255, 0, 0))
    assert image.sum() == 0
    assert out[20, 30].tolist() == [255, 0, 0]
    assert out[30, 50].tolist() == [255, 0, 0]
    assert out[30, 30].sum() == 0  # not filled


def test_labels_and_scores_are_drawn():
    image = np.zeros((100, 200, 3), np.uint8)
    plain, tagged = draw_boxes(image, [[50, 50, 90, 90]]), draw_boxes(image, [[50, 50, 90, 90]], ["cat"], [0.5])
    assert (plain != tagged).any()


def test_one_colour_a_box():
    out = draw_boxes(np.zeros((50, 50, 3), np.uint8), [[2, 2, 9, 9], [20, 20, 40, 40]], color=[(9, 0, 0), (0, 9, 0)])
    assert out[2, 5].tolist() == [9, 0, 0]
    assert out[20, 30].tolist() == [0, 9, 0]


def test_no_box_and_boxes_outside_are_fine():
    image = np.zeros((20, 20, 3), np.uint8)
    assert (draw_boxes(image, []) == image).all()
    draw_boxes(image, [[-50, -50, 900, 900], [np.nan, 0, 1, 1]], ["a", "b"])


def test_numbers_must_agree():
    with pytest.raises(ValueError, match="2 labels"):
        draw_boxes(np.zeros((9, 9, 3), np.uint8), [[0, 0, 5, 5]], ["a", "b"])


def test_a_sheet_holds_every_image_once():
    red, blue = np.zeros((30, 60, 3), np.uint8), np.zeros((90, 45, 3), np.uint8)
    red[..., 0], blue[..., 2] = 200, 200
    sheet = contact_sheet([[(red, "a"), (blue, "b")], [(red, "c")]], cell=60)
    assert (sheet == (200, 0, 0)).all(-1).sum() == 2 * 60 * 30
    assert (sheet == (0, 0, 200)).all(-1).sum() == 60 * 30
    with pytest.raises(ValueError, match="no image"):
        contact_sheet([[]])


def test_fit_keeps_the_proportions():
    assert fit(np.zeros((100, 400, 3), np.uint8), 80).shape == (20, 80, 3)
    assert fit(np.zeros((1, 400, 3), np.uint8), 80).shape == (1, 80, 3)


def test_png_round_trip_keeps_the_channel_order(tmp_path):
    import cv2

    image = np.zeros((4, 5, 3), np.uint8)
    image[..., 0] = 250
    write_png(str(tmp_path / "a.png"), image)
    assert cv2.imread(str(tmp_path / "a.png"))[0, 0].tolist() == [0, 0, 250]
    with pytest.raises(OSError, match="could not be written"):
        write_png(str(tmp_path / "missing" / "a.png"), image)
