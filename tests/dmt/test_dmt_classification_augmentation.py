from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dmt.classification_augmentation import OPERATIONS, ClassificationTest, ClassificationTrain, operation_value
from tests.reference import dmt_augmentation as slow


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_values_of_the_sixteen_operations():
    expected = {  # at m = 1 and m = 10
        "auto_contrast": (0.1, 1),
        "equalize": (0.1, 1),
        "invert": (0.1, 1),
        "rotate": (3, 30),
        "posterize": (0.4, 4),
        "solarize": (25.6, 256),
        "solarize_add": (11, 110),
        "color": (0.28, 1.9),
        "contrast": (0.28, 1.9),
        "brightness": (0.28, 1.9),
        "sharpness": (0.28, 1.9),
        "shear_x": (0.03, 0.3),
        "shear_y": (0.03, 0.3),
        "cutout": (4, 40),
        "translate_x": (10, 100),
        "translate_y": (10, 100),
    }
    assert {name: (operation_value(name, 1), operation_value(name, 10)) for name in OPERATIONS} == {
        name: pytest.approx(values) for name, values in expected.items()
    }
    assert operation_value("translate_x", 10, 32) == pytest.approx(100 * 32 / 224)
    assert operation_value("cutout", 7, 32) == pytest.approx(28 / 7)
    assert operation_value("rotate", 7, 32) == operation_value("rotate", 7) == 21


def apply(name: str, image: np.ndarray, value: float, seed: int = 0) -> np.ndarray:
    return np.array(OPERATIONS[name][0](Image.fromarray(image), value, np.random.default_rng(seed)))


def test_operations_on_levels_by_hand():
    image = np.array([[[0, 100, 127], [128, 200, 255]]], np.uint8)
    assert apply("invert", image, 1).tolist() == [[[255, 155, 128], [127, 55, 0]]]
    assert apply("posterize", image, 2.8).tolist() == [[[0, 64, 64], [128, 192, 192]]]  # two bits stay
    assert apply("posterize", image, 0.4).tolist() == [[[0, 0, 0], [128, 128, 128]]]  # one at least
    assert apply("solarize", image, 127.5).tolist() == [[[0, 100, 127], [127, 55, 0]]]
    assert apply("solarize", image, 256).tolist() == image.tolist()
    # + 20, at most 255, then what is not below 128 is inverted
    assert apply("solarize_add", image, 20.9).tolist() == [[[20, 120, 108], [107, 35, 0]]]
    assert apply("brightness", image, 0.5).tolist() == [[[0, 50, 63], [64, 100, 127]]]
    assert apply("auto_contrast", image // 2 + 20, 1).max() == 255
    assert apply("auto_contrast", image // 2 + 20, 1).min() == 0
    for name in ("color", "contrast", "brightness", "sharpness"):
        assert apply(name, image, 1.0).tolist() == image.tolist()  # 1: as it is
    grey = apply("color", image, 0.0)
    assert (grey[..., 0] == grey[..., 2]).all()
    assert np.ptp(apply("contrast", image, 0.0)) == 0


def test_operations_on_places_equal_the_slow_transcription():
    image = noise(13, 11)
    seen = set()
    for seed in range(8):
        sign = 1 if np.random.default_rng(seed).random() < 0.5 else -1
        seen.add(sign)
        expected = {
            ("translate_x", 3.0): slow.shifted(image, lambda x: 0, lambda y: 3.0 * sign),  # noqa: B023
            ("translate_y", 2.4): slow.shifted(image, lambda x: 2.4 * sign, lambda y: 0),  # noqa: B023
            ("shear_x", 0.21): slow.shifted(image, lambda x: 0, lambda y: 0.21 * sign * y),  # noqa: B023
            ("shear_y", 0.3): slow.shifted(image, lambda x: 0.3 * sign * x, lambda y: 0),  # noqa: B023
        }
        for (name, value), array in expected.items():
            np.testing.assert_array_equal(apply(name, image, value, seed), array, err_msg=f"{name} {seed}")
    assert seen == {-1, 1}


def test_rotation_goes_either_way():
    image = noise(9, 9)
    image[0, 0] = 255
    turned = {apply("rotate", image, 30.0, seed).tobytes() for seed in range(10)}
    assert turned == {np.array(Image.fromarray(image).rotate(angle)).tobytes() for angle in (30, -30)}


def test_cutout_is_one_grey_square():
    image = np.full((32, 32, 3), 255, np.uint8)
    areas = []
    for seed in range(200):
        out = apply("cutout", image, 8.0, seed)
        changed = (out != 255).any(-1)
        assert changed.any()
        assert (out[changed] == (125, 123, 114)).all()
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert len(rows) <= 9
        assert len(columns) <= 9
        areas.append(changed.sum())
    assert max(areas) == 81  # both ends are painted, as the authors' library does
    assert min(areas) < 60  # cut at the border


def test_published_pixel_ranges_blank_a_small_image_and_scaled_ones_do_not():
    image = np.full((32, 32, 3), 200, np.uint8)
    for name in ("translate_x", "translate_y"):
        assert (apply(name, image, operation_value(name, 4)) == 0).all()
        assert (apply(name, image, operation_value(name, 10, 32)) == 200).mean() > 0.5
    assert (apply("cutout", image, operation_value("cutout", 10)) == 200).mean() < 0.7
    assert (apply("cutout", image, operation_value("cutout", 10, 32)) == 200).mean() > 0.9


@pytest.mark.parametrize("side", [1, 8, 32])
def test_every_operation_at_every_strength_keeps_the_shape(side):
    image = noise(side, side)
    for name in OPERATIONS:
        for strength in range(1, 11):
            for scaled in (None, side):
                out = apply(name, image, operation_value(name, strength, scaled), strength)
                assert out.shape == image.shape
                assert out.dtype == np.uint8


@pytest.mark.parametrize("ranges", ["authors", "scaled"])
def test_one_operation_at_one_strength_is_drawn_uniformly(monkeypatch, ranges):
    calls = []
    for name, (_, least, most) in list(OPERATIONS.items()):
        record = lambda image, value, rng, name=name: (calls.append((name, value)), image)[1]  # noqa: E731
        monkeypatch.setitem(OPERATIONS, name, (record, least, most))
    transform, rng = ClassificationTrain(operations=ranges), np.random.default_rng(0)
    image = noise(16, 16)
    for _ in range(3200):
        transform(image, rng)
    assert len(calls) == 3200  # one an image
    side = 16 if ranges == "scaled" else None
    for name in OPERATIONS:
        values = [value for other, value in calls if other == name]
        assert 140 < len(values) < 260
        assert sorted(set(values)) == pytest.approx([operation_value(name, m, side) for m in range(1, 11)])


def test_crop_shows_at_most_the_padding_in_grey():
    image = np.zeros((5, 6, 3), np.uint8)
    image[..., 0] = np.arange(1, 31).reshape(5, 6)
    rng, seen = np.random.default_rng(0), set()
    transform = ClassificationTrain(pad=2, flip=0.0, operations="none", normalization="half")
    for _ in range(400):
        got = torch.round((transform(image, rng) * 0.25 + 0.5) * 255).permute(1, 2, 0).numpy()
        inside = got[..., 1] == 0
        assert (got[~inside] == 128).all()
        y, x = np.argwhere(inside)[0]
        first = int(got[y, x, 0]) - 1
        seen.add((first // 6 - y, first % 6 - x))
    assert seen == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


def test_classification_without_chance():
    image = noise(8, 8)
    plain = ClassificationTrain(pad=0, flip=0.0, operations="none")
    assert torch.equal(plain(image, np.random.default_rng(0)), ClassificationTest()(image))
    mirrored = ClassificationTrain(pad=0, flip=1.0, operations="none")(image, np.random.default_rng(0))
    assert torch.equal(mirrored, ClassificationTest()(image).flip(-1))


@pytest.mark.parametrize("wrong", [{"operations": "all"}, {"pad": -1}, {"flip": -0.1}])
def test_classification_settings_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=r"must|unknown"):
        ClassificationTrain(**wrong)
