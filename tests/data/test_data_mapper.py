"""Samples made from records: reading, resizing, flipping, views, boxes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sed.data.augmentation import StrongAugmentation
from sed.data.errors import DataError
from sed.data.images import check_file, read_image
from sed.data.mapper import LABELED, Mapper


def make_record(path: Path, height: int, width: int, boxes: list | None = None, crowd: int = 0) -> dict:
    annotations = [{"bbox": b, "bbox_mode": 1, "category_id": 2, "iscrowd": crowd} for b in boxes or []]
    sizes = {"height": height, "width": width}
    return {"file_name": str(path), "image_id": 4, **sizes, "annotations": annotations}


@pytest.fixture
def marked(tmp_path) -> dict:
    """A black PNG, 60 x 100, with one white rectangle and its box."""
    image = np.zeros((60, 100, 3), np.uint8)
    image[12:36, 10:40] = 255
    path = tmp_path / "marked.png"
    cv2.imwrite(str(path), image)
    return make_record(path, 60, 100, [[10, 12, 30, 24]])


@pytest.mark.parametrize("short", [30, 60, 90, 140])
def test_boxes_go_with_the_pixels(marked: dict, short: int) -> None:
    mapper = Mapper(min_size=(short, short), max_size=1000)
    flips = set()
    for position in range(0, 20, 2):
        image, targets = mapper.labeled(marked, position)
        assert image.shape == (3, short, round(short * 100 / 60))
        assert image.dtype == torch.uint8
        assert targets.classes.tolist() == [2]
        rows, columns = (torch.nonzero((image[0] > 127).any(d)).flatten() for d in (1, 0))
        edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(np.array(edges) - targets.boxes[0].numpy()).max() <= 1.0
        flips.add(bool(targets.boxes[0, 0] > image.shape[2] / 2))
    assert flips == {True, False}


def test_no_flip(marked: dict) -> None:
    mapper = Mapper(min_size=(60, 60), max_size=1000, flip=False)
    assert all(mapper.labeled(marked, p)[1].boxes.tolist() == [[10, 12, 40, 36]] for p in range(12))


def test_channels_are_rgb(tmp_path) -> None:
    path = tmp_path / "red.png"
    cv2.imwrite(str(path), np.full((10, 12, 3), (0, 10, 250), np.uint8))  # OpenCV writes BGR
    image, _ = Mapper((10, 10), 100, flip=False).test(make_record(path, 10, 12))
    assert image[:, 0, 0].tolist() == [250, 10, 0]


def test_short_side_covers_its_range(marked: dict) -> None:
    mapper = Mapper(min_size=(60, 63), max_size=1000)
    assert {mapper.labeled(marked, p)[0].shape[1] for p in range(40)} == {60, 61, 62, 63}


def test_long_side_is_limited(marked: dict) -> None:
    assert Mapper((60, 60), 50).labeled(marked, 0)[0].shape == (3, 30, 50)


def test_data_depend_on_seed_stream_and_position_only(marked: dict) -> None:
    def all_of(seed: int, position: int) -> list[torch.Tensor]:
        mapper = Mapper((50, 90), 1000, strong_labeled=True, seed=seed)
        return [mapper.labeled(marked, position)[0], *mapper.unlabeled(marked, position)]

    first = all_of(1, 7)
    all_of(1, 8)
    assert all(torch.equal(a, b) for a, b in zip(first, all_of(1, 7), strict=True))
    for other in (all_of(2, 7), all_of(1, 9)):
        assert not any(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert len({tuple(v.shape) for v in first}) == 2, "the streams draw independently"


def test_views_share_one_geometry(marked: dict) -> None:
    mapper = Mapper((50, 90), 1000)
    stripped = {key: value for key, value in marked.items() if key != "annotations"}
    differ = 0
    for position in range(12):
        weak, strong = mapper.unlabeled(stripped, position)
        assert weak.shape == strong.shape
        differ += not torch.equal(weak, strong)
    assert differ >= 10


def test_every_second_labelled_sample_is_strong(marked: dict) -> None:
    weak, half = (Mapper((60, 60), 1000, flip=False, strong_labeled=s) for s in (False, True))
    same = [torch.equal(weak.labeled(marked, p)[0], half.labeled(marked, p)[0]) for p in range(40)]
    assert all(same[::2])
    assert sum(same[1::2]) <= 4  # a strong view changes nothing in 1 of 20 draws
    boxes = [(weak.labeled(marked, p)[1].boxes, half.labeled(marked, p)[1].boxes) for p in range(40)]
    assert all(torch.equal(a, b) for a, b in boxes)


def test_crowds_and_no_boxes(marked: dict) -> None:
    crowd = make_record(marked["file_name"], 60, 100, [[1, 2, 3, 4]], crowd=1)
    for record in (crowd, {**marked, "annotations": []}):
        targets = Mapper((60, 60), 1000).labeled(record, 0)[1]
        assert targets.boxes.shape == (0, 4)
        assert targets.boxes.dtype == torch.float32
        assert targets.classes.shape == (0,)
        assert targets.classes.dtype == torch.int64


def test_boxes_stay_inside(marked: dict) -> None:
    record = {
        **marked,
        "annotations": make_record(marked["file_name"], 60, 100, [[0, 0, 100, 60]])["annotations"],
    }
    for position in range(20):
        image, targets = Mapper((37, 91), 1000).labeled(record, position)
        assert targets.boxes[0].tolist() == pytest.approx([0, 0, image.shape[2], image.shape[1]], abs=1e-4)
        assert targets.boxes.min() >= 0
        assert targets.boxes[0, 2] <= image.shape[2]


def test_test_images_are_not_random(marked: dict) -> None:
    image, info = Mapper((120, 120), 1000).test(marked)
    assert image.shape == (3, 120, 200)
    assert info.image_id == 4
    assert info.scale == (2.0, 2.0)
    assert info.size == (60, 100)
    uneven = Mapper((61, 61), 1000).test(marked)[1].scale
    assert uneven == (102 / 100, 61 / 60)


def test_missing_image(tmp_path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg: image cannot be read \(No such file"):
        read_image(make_record(tmp_path / "gone.jpg", 1, 1))
    with pytest.raises(DataError, match=r"gone\.jpg: image cannot be read \(No such file"):
        check_file(str(tmp_path / "gone.jpg"))


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp"])
def test_a_whole_file_is_not_decoded_to_check_it(tmp_path, make_image, monkeypatch, suffix: str) -> None:
    path = make_image(tmp_path / f"whole.{suffix}", 60, 100)
    monkeypatch.setattr("sed.data.images._by_pillow", lambda *_: pytest.fail("decoded"))
    check_file(str(path))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.98])
def test_truncated_image(tmp_path, make_image, suffix: str, keep: float) -> None:
    path = make_image(tmp_path / f"cut.{suffix}", 60, 100)
    data = path.read_bytes()
    assert read_image(make_record(path, 60, 100)).shape == (60, 100, 3)
    path.write_bytes(data[: int(len(data) * keep)])
    fault = "truncated or damaged" if keep else "not a readable"
    for read in (lambda: read_image(make_record(path, 60, 100)), lambda: check_file(str(path))):
        with pytest.raises(DataError, match=rf"cut\.{suffix}: {fault} image"):
            read()


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_bytes_after_the_end_are_no_truncation(tmp_path, make_image, suffix: str) -> None:
    path = make_image(tmp_path / f"long.{suffix}", 60, 100)
    path.write_bytes(path.read_bytes() + b"\0" * 500)
    check_file(str(path))
    assert read_image(make_record(path, 60, 100)).shape == (60, 100, 3)


def test_no_image_at_all(tmp_path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"text\.jpg: not a readable image"):
        read_image(make_record(tmp_path / "text.jpg", 1, 1))


def test_size_that_differs_from_the_json(tmp_path, make_image) -> None:
    path = make_image(tmp_path / "a.jpg", 60, 100)
    with pytest.raises(DataError, match=r"a\.jpg: the image is 60 x 100 .* says 60 x 101"):
        read_image(make_record(path, 60, 101))


def test_exif_orientation_by_the_json(tmp_path, make_image) -> None:
    from PIL import Image

    flat, turned = make_image(tmp_path / "flat.jpg", 60, 100), tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn clockwise
    Image.open(flat).save(turned, exif=exif, quality=95)
    upright, stored = read_image(make_record(turned, 100, 60)), read_image(make_record(turned, 60, 100))
    assert np.array_equal(upright, np.rot90(stored, -1))


def test_grey_and_transparent_files_become_three_channels(tmp_path) -> None:
    for channels in (1, 4):
        path = tmp_path / f"{channels}.png"
        cv2.imwrite(str(path), np.full((10, 12, channels), 80, np.uint8))
        assert read_image(make_record(path, 10, 12)).shape == (10, 12, 3)


def test_constant_fill_reaches_the_strong_view(marked: dict) -> None:
    stripped = make_record(marked["file_name"], 60, 100)
    found = [Mapper((60, 60), 1000, strong=StrongAugmentation("constant")).unlabeled(stripped, p)[1] for p in range(9)]
    fill = torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None]
    assert any((view == fill).all(0).float().mean() > 0.02 for view in found)


def test_generator_recipe_is_pinned(marked: dict) -> None:
    """Position 3 of seed 5 draws its short side from default_rng([seed, stream, position])."""
    wanted = int(np.random.default_rng([5, LABELED, 3]).integers(50, 91))
    assert Mapper((50, 90), 1000, seed=5).labeled(marked, 3)[0].shape[1] == wanted
