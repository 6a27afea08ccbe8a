"""The two pictures of a study: the values that matplotlib draws, and a readable png."""

import itertools
import math

import cv2
import matplotlib.figure
import pytest

from sed.studies.study_pictures import COLOURS, ap_by_scale, ap_by_size

NAN = math.nan
SIZES = {
    "supervised": {"APs": [20.0, 24.0], "APm": [30.0, 30.0], "APl": [NAN, NAN]},
    "plus": {"APs": [40.0, NAN], "APm": [NAN, NAN], "APl": [NAN, NAN]},
}
SCALES = {"supervised": {64: [9.0, 11.0], 128: [25.0, 25.0]}, "plus": {192: [30.0], 128: [45.0], 64: [NAN]}}


@pytest.fixture
def axes(monkeypatch):
    """The axes of every figure that is saved."""
    saved, savefig = [], matplotlib.figure.Figure.savefig

    def listen(figure, *args, **kwargs):
        saved.extend(figure.axes)
        assert figure.get_size_inches()[0] <= 12
        assert figure.get_size_inches()[1] <= 5
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", listen)
    return saved


def test_bars_are_means_with_their_spread(tmp_path, axes):
    ap_by_size(tmp_path / "bars.png", SIZES)
    (axis,) = axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["small objects (APs)", "medium objects (APm)"]
    baseline, plus = (c for c in axis.containers if hasattr(c, "errorbar"))
    assert [bar.get_height() for bar in baseline] == [22.0, 30.0]
    assert [bar.get_height() for bar in plus] == [40.0]  # nothing of medium size is known of it
    low, high = baseline.errorbar.lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((22 - 8**0.5, 22 + 8**0.5))
    assert plus.errorbar.lines[2][0].get_segments()[0].tolist()[0][1] == 40.0  # one seed: no spread
    bars = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in [*baseline, *plus])
    assert all(right <= left for (_, right), (left, _) in itertools.pairwise(bars))  # none hides another


def test_lines_go_over_the_sizes_that_are_known(tmp_path, axes):
    ap_by_scale(tmp_path / "lines.png", SCALES)
    (axis,) = axes
    assert axis.get_xscale() == "log"
    assert axis.get_xticks().tolist() == [64, 128, 192]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["64", "128", "192"]
    baseline, plus = axis.get_lines()
    assert baseline.get_xydata().tolist() == [[64, 10], [128, 25]]
    assert plus.get_xydata().tolist() == [[128, 45], [192, 30]]  # in the order of the sizes
    (band,) = axis.collections  # one seed has none
    heights = {round(y, 6) for x, y in band.get_paths()[0].vertices if x == 64}
    assert heights == {round(10 - 2**0.5, 6), round(10 + 2**0.5, 6)}
    assert baseline.get_color() != plus.get_color()


@pytest.mark.parametrize(("draw", "rows"), [(ap_by_size, SIZES), (ap_by_scale, SCALES)])
def test_the_png_is_whole_and_the_same_each_time(tmp_path, draw, rows):
    draw(tmp_path / "a.png", rows)
    draw(str(tmp_path / "b.png"), rows)
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture.shape[0] < picture.shape[1] <= 1440
    assert len({tuple(pixel) for pixel in picture.reshape(-1, 3)[::7].tolist()}) > 3
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("count", [1, len(COLOURS) + 3])
def test_every_method_looks_different(tmp_path, axes, count):
    names = [f"method {i}" for i in range(count)]
    ap_by_size(tmp_path / "bars.png", {name: {"APs": [10.0]} for name in names})
    ap_by_scale(tmp_path / "lines.png", {name: {64: [10.0], 128: [12.0]} for name in names})
    bars = [c for c in axes[0].containers if hasattr(c, "errorbar")]
    assert [bar.get_label() for bar in bars] == names
    assert len({(bar[0].get_facecolor(), bar[0].get_hatch()) for bar in bars}) == count
    assert len({(line.get_color(), line.get_linestyle()) for line in axes[1].get_lines()}) == count


def test_nothing_to_draw(tmp_path):
    for rows in ({}, {"plus": {}}, {"plus": {"APs": [NAN], "AP": [1.0]}}):
        with pytest.raises(ValueError, match=r"bars\.png: no method has a number for APs, APm, APl"):
            ap_by_size(tmp_path / "bars.png", rows)
    for rows in ({}, {"plus": {}}, {"plus": {64: [NAN]}}):
        with pytest.raises(ValueError, match=r"lines\.png: no method has a number at any size"):
            ap_by_scale(tmp_path / "lines.png", rows)
    assert list(tmp_path.iterdir()) == []
