"""Resize and flip of the weak view, and the strong view (docs/method.md 2)."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sed.data import augmentation
from sed.data.augmentation import StrongAugmentation, blur, colour_matrix, flip, resize_shortest, target_size

LUMA = np.array([0.299, 0.587, 0.114])


class Fixed:
    """A generator whose draws are given: `random` and `uniform` from lists, one permutation."""

    def __init__(self, coins: list[float], factors: list[float], order: list[int]) -> None:
        self.coins, self.factors, self.order = iter(coins), factors, order

    def random(self) -> float:
        return next(self.coins)

    def uniform(self, low: float, high: float, size: int) -> np.ndarray:
        assert (low, high, size) == (0.6, 1.4, 3)
        return np.array(self.factors)

    def permutation(self, count: int) -> np.ndarray:
        assert count == 3
        return np.array(self.order)


def picture(height: int = 48, width: int = 64, seed: int = 0, low: int = 90, high: int = 150) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (height, width, 3), dtype=np.uint8)


def literal_jitter(image: np.ndarray, factors: list[float], order: list[int], grey: bool) -> np.ndarray:
    """torchvision's ColorJitter, op by op in float; nothing is clipped for colours that stay in range."""
    x = image.astype(np.float64)
    brightness, contrast, saturation = factors
    for op in order:
        if op == 0:
            x = brightness * x
        elif op == 1:
            x = contrast * x + (1 - contrast) * (x @ LUMA).mean()
        else:
            x = saturation * x + (1 - saturation) * (x @ LUMA)[..., None]
    if grey:
        x = np.repeat((x @ LUMA)[..., None], 3, axis=2)
    return x


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]])
@pytest.mark.parametrize("grey", [False, True])
def test_one_matrix_equals_the_ops_one_after_the_other(order: list[int], grey: bool) -> None:
    image, factors = picture(), [1.3, 0.7, 1.4]
    rng = Fixed([0.0, 0.0 if grey else 0.9], factors, order)
    matrix = colour_matrix(rng, lambda: np.array(cv2.mean(image)[:3]))
    expected = literal_jitter(image, factors, order, grey)
    assert 0 < expected.min()
    assert expected.max() < 255
    assert np.abs(cv2.transform(image, matrix).astype(float) - expected).max() <= 1.0


def test_neither_jitter_nor_grey_is_no_matrix() -> None:
    assert colour_matrix(Fixed([0.9, 0.9], [], []), lambda: pytest.fail("mean is not needed")) is None


def test_overshoot_is_clipped_once_at_the_end() -> None:
    image = np.full((4, 4, 3), 200, np.uint8)
    matrix = colour_matrix(Fixed([0.0, 0.9], [1.4, 0.6, 1.0], [0, 1, 2]), lambda: np.full(3, 200.0))
    assert (cv2.transform(image, matrix) == 255).all()  # 280, not wrapped round


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.99, 2.0])
def test_short_blur_kernels_equal_the_long_one(sigma: float) -> None:
    image = picture(low=0, high=255)
    full = cv2.GaussianBlur(image, (23, 23), sigma)
    assert np.abs(blur(image, sigma).astype(int) - full.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("size", "short", "limit", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((100, 400), 800, 1333, (333, 1333)),
        ((128, 128), 128, 128, (128, 128)),
        ((1, 5000), 100, 1000, (1, 1000)),
    ],
)
def test_target_size(size: tuple, short: int, limit: int, expected: tuple) -> None:
    assert target_size(*size, short, limit) == expected


def test_shrinking_antialiases() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::4] = 255
    small = resize_shortest(stripes, 16, 1000)
    assert small.shape == (16, 16, 3)
    assert np.abs(small.astype(int) - 64).max() <= 1  # INTER_LINEAR would give 0 or 255
    assert resize_shortest(stripes, 64, 64) is stripes


def test_flip_twice_is_nothing() -> None:
    image = picture()
    assert (flip(image)[:, 0] == image[:, -1]).all()
    assert (flip(flip(image)) == image).all()


@pytest.mark.parametrize("fill", ["random", "constant"])
def test_strong_view_keeps_shape_and_input(fill: str) -> None:
    image = picture()
    before = image.copy()
    changed = 0
    for seed in range(30):
        strong = StrongAugmentation(fill)(image, np.random.default_rng(seed))
        assert strong.shape == image.shape
        assert strong.dtype == np.uint8
        assert strong is not image
        assert not np.shares_memory(strong, image)
        changed += (strong != image).any()
    assert (image == before).all()
    assert changed > 25


def test_strong_view_follows_the_generator_alone() -> None:
    image, strong = picture(), StrongAugmentation()
    first = strong(image, np.random.default_rng(5))
    assert (strong(image, np.random.default_rng(5)) == first).all()
    assert (strong(image, np.random.default_rng(6)) != first).any()


def test_frequencies_and_areas_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """How often each operation is applied, and the areas of the cutouts, over 2000 draws."""
    seen: dict[str, list] = {"colour": [], "blur": [], "cutout": []}
    real_matrix, real_blur = augmentation.colour_matrix, augmentation.blur
    real_cut = StrongAugmentation._cut_out

    def matrix(rng, mean):
        result = real_matrix(rng, mean)
        seen["colour"].append(result)
        return result

    def cut(self, image, rng, area, ratio):
        image[:] = 7
        real_cut(self, image, rng, area, ratio)
        seen["cutout"].append((area, (image != 7).any(2)))

    monkeypatch.setattr(augmentation, "colour_matrix", matrix)
    monkeypatch.setattr(augmentation, "blur", lambda im, sigma: seen["blur"].append(sigma) or real_blur(im, sigma))
    monkeypatch.setattr(StrongAugmentation, "_cut_out", cut)
    image, rounds = picture(60, 80), 2000
    for seed in range(rounds):
        StrongAugmentation("constant")(image, np.random.default_rng(seed))
    identity = np.column_stack([np.eye(3), np.zeros(3)])
    matrices = [m for m in seen["colour"] if m is not None]
    grey = [m for m in matrices if np.allclose(m[0], m[1]) and np.allclose(m[1], m[2])]
    assert len(matrices) / rounds == pytest.approx(1 - 0.2 * 0.8, abs=0.03)
    assert len(grey) / rounds == pytest.approx(0.2, abs=0.03)
    assert not any(np.allclose(m, identity) for m in matrices)
    assert len(seen["blur"]) / rounds == pytest.approx(0.5, abs=0.04)
    assert min(seen["blur"]) < 0.15
    assert 1.95 < max(seen["blur"]) <= 2.0
    assert len(seen["cutout"]) / rounds == pytest.approx(0.7 + 0.5 + 0.3, abs=0.06)
    shares = [mask.mean() for area, mask in seen["cutout"] if area == (0.05, 0.2)]
    assert np.mean(shares) == pytest.approx(0.125, abs=0.01)
    assert 0.045 < min(shares)
    assert max(shares) < 0.21


def test_cutout_noise_is_noise() -> None:
    noise = augmentation._noise(np.random.default_rng(0), 100, 120)
    assert noise.shape == (100, 120, 3)
    assert noise.mean() == pytest.approx(127.5, abs=2)
    assert noise.std() == pytest.approx(73.9, abs=2)
    large = augmentation._noise(np.random.default_rng(0), 1500, 1200)  # more than the pool holds
    assert large.shape == (1500, 1200, 3)
    assert large.std() == pytest.approx(73.9, abs=2)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2)])
def test_tiny_images_pass(size: tuple[int, int]) -> None:
    image = picture(*size)
    for seed in range(20):
        assert StrongAugmentation()(image, np.random.default_rng(seed)).shape == image.shape
