from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from dmt.augmentation import SegmentationTest, SegmentationTrain
from dmt.classification_augmentation import ClassificationTest, ClassificationTrain
from dmt.normalization import NORMALIZATIONS, normalise
from sed.data.errors import DataError
from tests.reference import dmt_augmentation as slow


def scene(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = rng.choice(np.array([0, 1, 2, 20, 255], np.uint8), (height, width))
    return image, labels, rng.integers(0, 65536, (height, width), dtype=np.uint16)


# ------------------------------------------------------------------------------------------ normalisation
def test_normalisations_by_hand():
    image = np.array([[[255, 0, 51]]], np.uint8)
    expected = {
        "caffe": [51 - 104.008, 0 - 116.669, 255 - 122.675],  # blue first
        "imagenet": [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225],
        "cifar": [(1 - 0.49137) / 0.24706, -0.48235 / 0.24353, (0.2 - 0.44667) / 0.26157],
        "half": [2.0, -2.0, -1.2],
    }
    assert set(expected) == set(NORMALIZATIONS)
    for name, values in expected.items():
        out = normalise(image, name)
        assert out.shape == (3, 1, 1)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out.flatten(), torch.tensor(values), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_normalise_equals_the_slow_transcription(name):
    image = scene(0, 5, 7)[0]
    np.testing.assert_allclose(normalise(image, name).numpy(), slow.normalised(image, name), atol=1e-4)
    np.testing.assert_array_equal(normalise(image[:, ::-1], name), normalise(image, name).flip(-1))


@pytest.mark.parametrize("transform", [SegmentationTest, ClassificationTest, ClassificationTrain])
def test_unknown_normalisation_is_named(transform):
    with pytest.raises(ValueError, match="'bgr' is unknown; there are caffe, imagenet"):
        transform(normalization="bgr")
    with pytest.raises(ValueError, match="'bgr' is unknown"):
        SegmentationTrain((8, 8), normalization="bgr")


# ------------------------------------------------------------------------------------------ segmentation, training
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "options",
    [
        {"crop": (9, 11)},
        {"crop": (20, 30), "normalization": "caffe"},  # mostly padding
        {"crop": (8, 8), "sides": ((8, 14), (8, 25)), "normalization": "half"},
        {"crop": (9, 11), "resize": (12, 24), "scale": (0.7, 1.2)},
    ],
    ids=lambda options: "-".join(options),
)
def test_training_view_equals_the_slow_transcription(seed, options):
    image, labels, codes = scene(seed, 13, 17)
    transform = SegmentationTrain(**options)
    got = transform(image, labels, codes, np.random.default_rng(seed))

    draws = np.random.default_rng(seed)  # the same, by hand
    base = transform.resize or (13, 17)
    if transform.sides:
        size = tuple(int(draws.integers(low, high + 1)) for low, high in transform.sides)
    else:
        factor = draws.uniform(*transform.scale)
        size = (int(factor * base[0]), int(factor * base[1]))
    corner = [int(draws.integers(0, max(a - b, 0) + 1)) for a, b in zip(size, transform.crop, strict=True)]
    if transform.resize:
        image = np.rint(slow.bilinear(image, base))
        labels, codes = slow.nearest(labels, base), slow.nearest(codes, base)
    expected = slow.training_view(
        image, labels, codes, size, corner, transform.crop, draws.random() < 0.5, transform.normalization
    )
    levels = 2.01 if transform.resize else 1.01  # each resize rounds to whole levels of 0..255
    n = NORMALIZATIONS[transform.normalization]
    assert np.abs(got[0].numpy() - expected[0]).max() <= levels / n.scale / min(n.std)
    np.testing.assert_array_equal(got[1].numpy(), expected[1])
    np.testing.assert_array_equal(got[2].numpy(), expected[2])
    assert [t.dtype for t in got] == [torch.float32, torch.int64, torch.int32]
    assert all(t.shape[-2:] == transform.crop and t.is_contiguous() for t in got)


def test_without_chance_the_image_is_only_normalised():
    image, labels, codes = scene(0, 6, 9)
    codes[0, 0] = 65535
    got = SegmentationTrain((6, 9), scale=(1.0, 1.0), flip=0.0)(image, labels, codes, np.random.default_rng(0))
    torch.testing.assert_close(got[0], normalise(image, "imagenet"), atol=0, rtol=0)
    np.testing.assert_array_equal(got[1], labels)
    np.testing.assert_array_equal(got[2], codes)
    assert got[2][0, 0] == 65535
    mirrored = SegmentationTrain((6, 9), scale=(1.0, 1.0), flip=1.0)(image, labels, codes, np.random.default_rng(0))
    for straight, flipped in zip(got, mirrored, strict=True):
        assert torch.equal(straight.flip(-1), flipped)


def test_padding_is_black_before_normalisation_and_ignored():
    image, labels, codes = scene(0, 4, 4)
    for name in NORMALIZATIONS:
        transform = SegmentationTrain((6, 7), scale=(1.0, 1.0), flip=0.0, normalization=name)
        got = transform(image, labels, codes, np.random.default_rng(0))
        black = normalise(np.zeros((1, 1, 3), np.uint8), name)
        assert torch.equal(got[0][:, 4:], black.expand(3, 2, 7))
        assert torch.equal(got[0][:, :, 4:], black.expand(3, 6, 3))
        assert (got[1][4:] == 255).all()
        assert (got[1][:, 4:] == 255).all()
        assert (got[2][4:] == 0).all()
        assert (got[2][:, 4:] == 0).all()
        np.testing.assert_array_equal(got[1][:4, :4], labels)


def test_labels_and_codes_come_from_the_same_pixel():
    codes = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50)
    labels = (codes % 21).astype(np.uint8)
    transform = SegmentationTrain((32, 32), resize=(37, 43))
    for seed in range(20):
        _, got, at = transform(np.zeros((40, 50, 3), np.uint8), labels, codes, np.random.default_rng(seed))
        inside = got != 255
        assert inside.any()
        assert torch.equal(got[inside], (at % 21).long()[inside])


@pytest.mark.parametrize("axis", [0, 1])
def test_images_and_labels_stay_aligned(axis):
    labels = np.zeros((40, 60), np.uint8)
    labels[(slice(17, None), slice(None))[:: 1 - 2 * axis]] = 1
    image = np.repeat(labels[..., None] * 200, 3, axis=2)
    for seed in range(20):
        pixels, got, _ = SegmentationTrain((48, 48), normalization="half")(
            image, labels, np.zeros((40, 60), np.uint16), np.random.default_rng(seed)
        )
        level = (pixels[0] * 0.25 + 0.5) * 255
        clear = (got != 255) & ((level - 100).abs() > 2)  # 100: a pixel's centre lies on the edge
        assert clear.sum() > 400
        assert torch.equal(level[clear] > 100, got[clear] == 1)


def test_draws_cover_their_ranges():
    rng = np.random.default_rng(0)
    sizes = np.array([SegmentationTrain((1, 1))._draw_size((100, 200), rng) for _ in range(2000)])
    assert sizes[:, 0].min() >= 50
    assert sizes[:, 0].max() <= 150
    assert abs(sizes[:, 0].mean() - 100) < 3
    assert np.abs(sizes[:, 1] - 2 * sizes[:, 0]).max() <= 2  # one factor for both sides
    apart = SegmentationTrain((1, 1), sides=((321, 505), (257, 513)))
    sizes = np.array([apart._draw_size((100, 200), rng) for _ in range(4000)])
    assert sizes.min(0).tolist() == [321, 257]
    assert sizes.max(0).tolist() == [505, 513]
    assert abs(np.corrcoef(sizes.T)[0, 1]) < 0.1

    ids = np.arange(12, dtype=np.uint16).reshape(3, 4)
    crop = SegmentationTrain((2, 2), scale=(1.0, 1.0))
    image, labels = np.zeros((3, 4, 3), np.uint8), np.zeros((3, 4), np.uint8)
    views = [tuple(crop(image, labels, ids, rng)[2].flatten().tolist()) for _ in range(600)]
    counts = {view: views.count(view) for view in set(views)}
    assert len(counts) == 12  # 2 x 3 corners, flipped or not
    assert min(counts.values()) > 20


def test_a_generator_is_the_only_source_of_chance():
    image, labels, codes = scene(0, 30, 40)
    transform, small = SegmentationTrain((24, 24)), ClassificationTrain()
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first = [*transform(image, labels, codes, np.random.default_rng(3)), small(image, np.random.default_rng(3))]
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    again = [*transform(image, labels, codes, np.random.default_rng(3)), small(image, np.random.default_rng(3))]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = transform(image, labels, codes, np.random.default_rng(4))
    assert not torch.equal(first[0], other[0])
    random.setstate(before[0])
    torch.set_rng_state(before[2])


def test_inputs_are_not_written_to():
    image, labels, codes = scene(0, 8, 8)
    copies = image.copy(), labels.copy(), codes.copy()
    transform = SegmentationTrain((8, 8), scale=(1.0, 1.0), flip=0.0)
    out = transform(image, labels, codes, np.random.default_rng(0))
    for tensor in out:
        tensor.zero_()
    for array, copy in zip((image, labels, codes), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_a_single_pixel_is_enough():
    image, labels, codes = scene(0, 1, 1)
    got = SegmentationTrain((3, 3), scale=(0.2, 0.3))(image, labels, codes, np.random.default_rng(0))
    assert (got[1] != 255).sum() <= 1
    assert got[0].isfinite().all()


def test_labels_of_another_size_are_an_error():
    image, labels, codes = scene(0, 8, 8)
    with pytest.raises(DataError, match=r"\(8, 8\) pixels with labels of \(8, 7\)"):
        SegmentationTrain((4, 4))(image, labels[:, :7], codes, np.random.default_rng(0))
    with pytest.raises(DataError, match=r"codes of \(7, 8\)"):
        SegmentationTrain((4, 4))(image, labels, codes[:7], np.random.default_rng(0))


@pytest.mark.parametrize(
    "wrong",
    [{"crop": (0, 4)}, {"scale": (1.5, 0.5)}, {"scale": (0.0, 1.0)}, {"flip": 1.1}, {"sides": ((9, 8), (1, 1))}],
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match="must"):
        SegmentationTrain(**{"crop": (4, 4), **wrong})


# ------------------------------------------------------------------------------------------ segmentation, test
def test_padding_is_cut_off_again():
    image = scene(0, 6, 9)[0]
    transform = SegmentationTest(pad=(8, 12), normalization="caffe")
    pixels = transform(image)
    assert pixels.shape == (3, 8, 12)
    black = normalise(np.zeros((1, 1, 3), np.uint8), "caffe")
    assert torch.equal(pixels[:, 6:], black.expand(3, 2, 12))
    assert torch.equal(transform.restore(pixels, (6, 9)), normalise(image, "caffe"))


def test_an_image_larger_than_the_padding_stays():
    image = scene(0, 10, 9)[0]
    transform = SegmentationTest(pad=(8, 12))
    assert transform(image).shape == (3, 10, 12)
    assert transform.restore(torch.zeros(5, 10, 12), (10, 9)).shape == (5, 10, 9)


def test_logits_are_resized_back_with_corners_on_corners():
    transform = SegmentationTest(resize=(5, 9))
    assert transform(scene(0, 20, 40)[0]).shape == (3, 5, 9)
    ramp = torch.arange(9.0).expand(5, 9) + 10 * torch.arange(5.0)[:, None]
    restored = transform.restore(ramp[None], (20, 40))[0]
    assert restored.shape == (20, 40)
    expected = torch.linspace(0, 8, 40) + 10 * torch.linspace(0, 4, 20)[:, None]
    torch.testing.assert_close(restored, expected)


def test_resized_and_padded():
    transform = SegmentationTest(pad=(16, 16), resize=(5, 9))
    assert transform(scene(0, 20, 40)[0]).shape == (3, 16, 16)
    logits = torch.full((2, 16, 16), -7.0)
    logits[:, :5, :9] = 3.0
    torch.testing.assert_close(transform.restore(logits, (20, 40)), torch.full((2, 20, 40), 3.0))


def test_a_test_image_of_its_own_size():
    image = scene(0, 5, 6)[0]
    transform = SegmentationTest()
    assert torch.equal(transform(image), normalise(image, "imagenet"))
    assert transform.restore(torch.zeros(3, 5, 6), (5, 6)).shape == (3, 5, 6)
