"""Pictures of labels and weights, sheets of them, and the page of curves."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest

from dmt.pictures import paint_labels, paint_weights, palette, progress_page, sheet, tiles


def read(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


# ---------------------------------------------------------------------------------------------- arrays
def test_palette_is_vocs():
    """Values of the VOC devkit: background, aeroplane, bicycle, bird, person, monitor; and white."""
    by_hand = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    assert {label: tuple(palette()[label]) for label in by_hand} == by_hand
    assert tuple(palette()[255]) == (255, 255, 255)
    assert len(np.unique(palette(), axis=0)) == 256


def test_palette_is_the_devkits_loop():
    for label in range(255):
        r = g = b = 0
        rest = label
        for j in range(8):
            r |= (rest & 1) << (7 - j)
            g |= (rest >> 1 & 1) << (7 - j)
            b |= (rest >> 2 & 1) << (7 - j)
            rest >>= 3
        assert tuple(palette()[label]) == (r, g, b)


def test_labels_and_weights_are_painted():
    assert paint_labels(np.array([[1, 255]], np.uint8)).tolist() == [[[128, 0, 0], [255, 255, 255]]]
    painted = paint_weights(np.array([[0.0, 0.5, 1.0, 1.2, -0.1]]))
    assert painted[0, :, 0].tolist() == [0, 128, 255, 255, 0]
    assert painted.dtype == np.uint8
    assert (painted == painted[:, :, :1]).all()
    assert paint_labels(np.zeros((0, 4), np.uint8)).shape == paint_weights(np.zeros((0, 4))).shape == (0, 4, 3)


# ---------------------------------------------------------------------------------------------- sheets
def test_sheet_shows_small_pictures_without_blur_in_their_order(tmp_path):
    labels = np.repeat(np.array([[1, 2]], np.uint8), 2, axis=0)
    rows = [
        [(paint_labels(labels), "first"), (paint_weights(np.ones((2, 2)) / 3), "")],
        [(paint_labels(labels), "")],
    ]
    sheet(tmp_path / "sheet.png", rows, cell=40)
    image = read(tmp_path / "sheet.png")
    height, width = image.shape[:2]
    assert 2 * 40 <= height <= 2 * 40 + 60
    assert 2 * 40 <= width <= 2 * 40 + 20
    counts = {color: int((image == color).all(2).sum()) for color in ((128, 0, 0), (0, 128, 0), (85, 85, 85))}
    assert counts == {(128, 0, 0): 2 * 800, (0, 128, 0): 2 * 800, (85, 85, 85): 1600}
    red, grey = (np.argwhere((image == color).all(2)) for color in ((128, 0, 0), (85, 85, 85)))
    assert red[:, 1].max() < grey[:, 1].min()
    assert red[:, 0].max() > grey[:, 0].max()  # the second row lies below
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]


def test_large_pictures_are_shrunk(tmp_path):
    sheet(tmp_path / "sheet.png", [[(paint_weights(np.zeros((500, 300))), "")]], cell=50)
    black = np.argwhere((read(tmp_path / "sheet.png") == 0).all(2))
    assert (black.max(0) - black.min(0) + 1).tolist() == [50, 30]


def test_tiles_break_into_rows(tmp_path):
    pictures = [paint_labels(np.full((8, 8), label, np.uint8)) for label in range(1, 6)]
    tiles(tmp_path / "tiles.png", pictures, [f"{label} 99%" for label in range(1, 6)], columns=2, cell=32)
    image = read(tmp_path / "tiles.png")
    corners = [np.argwhere((image == palette()[label]).all(2)).min(0).tolist() for label in range(1, 6)]
    assert corners == sorted(corners)
    assert [len({y for y, _ in corners}), len({x for _, x in corners})] == [3, 2]


def test_sheets_without_pictures_or_captions_are_errors(tmp_path):
    with pytest.raises(ValueError, match="no image"):
        sheet(tmp_path / "sheet.png", [])
    with pytest.raises(ValueError, match="argument"):
        tiles(tmp_path / "tiles.png", [np.zeros((2, 2, 3), np.uint8)], [])
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- curves
def stage(kind, model, number, **fields):
    return {"kind": kind, "model": model, "round": number, "name": f"{kind}_{model}{number}", "seconds": 2.0, **fields}


RESULTS = [
    stage("train", "A", 0, select={}, test={"score": 41.25}),
    stage("train", "B", 0, select={}, test={"score": 43.5}),
    stage("label", "A", 1, share=0.2, kept=0.21, error=0.0625),
    stage("train", "B", 1, share=0.2, select={}, test={"score": 47.125}),
]


def test_page_tells_every_stage_and_draws_every_model(tmp_path):
    progress_page(tmp_path / "progress.html", RESULTS, title="A < B")
    page = (tmp_path / "progress.html").read_text()
    assert "<h1>A &lt; B</h1>" in page
    cells = re.findall(r"<tr><td>(\w+)</td>(.*)</tr>", page)
    assert [name for name, _ in cells] == [r["name"] for r in RESULTS]
    assert re.findall("<td>(.*?)</td>", cells[2][1]) == ["20.00", "21.00", "6.25", "-", "-", "2"]
    assert re.findall("<td>(.*?)</td>", cells[3][1]) == ["20.00", "-", "-", "-", "47.12", "2"]
    assert page.count("<svg") == 1
    for words in ("A, test", "B, test", "A labels", "Wrong pseudo-labels of those kept"):
        assert words in page
    assert "B labels" not in page
    assert "select</" not in page.split("<section>")[1].split("</section>")[0]  # nobody chose: no such line
    assert re.findall(r'(?:src|href)="(?!#)[^"]*"', page) == []  # nothing is fetched


def test_page_draws_the_selecting_scores_where_there_are_any(tmp_path):
    results = [stage("train", "A", n, select={"score": 50.0 + n}, test={"score": 40.0 + n}) for n in range(3)]
    progress_page(tmp_path / "one.html", results)
    progress_page(tmp_path / "two.html", results)
    assert "A, select" in (tmp_path / "one.html").read_text()
    assert (tmp_path / "one.html").read_text() == (tmp_path / "two.html").read_text()


def test_page_of_scores_that_could_not_be_measured(tmp_path):
    progress_page(tmp_path / "nan.html", [stage("train", "A", 0, select={}, test={"score": float("nan")})])
    assert "<td>-</td><td>-</td><td>2</td>" in (tmp_path / "nan.html").read_text()
    progress_page(tmp_path / "none.html", [])
    assert "<tbody>\n</tbody>" in (tmp_path / "none.html").read_text()
