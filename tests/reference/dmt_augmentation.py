"""Pixel by pixel: the authors' training view of an image for segmentation, and some of the sixteen operations."""

from __future__ import annotations

import math

import numpy as np

MEANS = {  # what the authors' code subtracts and divides by, in the order of the result's channels
    "caffe": ([2, 1, 0], 1.0, [104.008, 116.669, 122.675], [1.0, 1.0, 1.0]),
    "imagenet": ([0, 1, 2], 255.0, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "cifar": ([0, 1, 2], 255.0, [0.49137, 0.48235, 0.44667], [0.24706, 0.24353, 0.26157]),
    "half": ([0, 1, 2], 255.0, [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]),
}


def normalised(image: np.ndarray, name: str) -> np.ndarray:
    """[H, W, 3] -> [3, H, W] float64."""
    order, scale, mean, std = MEANS[name]
    height, width = image.shape[:2]
    out = np.zeros((3, height, width))
    for c in range(3):
        for y in range(height):
            for x in range(width):
                out[c, y, x] = (image[y, x, order[c]] / scale - mean[c]) / std[c]
    return out


def bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixel centres lie at +0.5, no antialiasing, the border is repeated; float64."""
    height, width = image.shape[:2]
    out = np.zeros((*size, 3))
    for y in range(size[0]):
        for x in range(size[1]):
            sy = min(max((y + 0.5) * height / size[0] - 0.5, 0), height - 1)
            sx = min(max((x + 0.5) * width / size[1] - 0.5, 0), width - 1)
            y0, x0 = math.floor(sy), math.floor(sx)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            dy, dx = sy - y0, sx - x0
            upper = (1 - dx) * image[y0, x0] + dx * image[y0, x1]
            lower = (1 - dx) * image[y1, x0] + dx * image[y1, x1]
            out[y, x] = (1 - dy) * upper + dy * lower
    return out


def nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixel in which the centre of the new one lies."""
    height, width = array.shape
    out = np.zeros(size, array.dtype)
    for y in range(size[0]):
        for x in range(size[1]):
            out[y, x] = array[math.floor((y + 0.5) * height / size[0]), math.floor((x + 0.5) * width / size[1])]
    return out


def training_view(image, labels, codes, size, corner, crop, flipped, name):
    """Resize to `size`, pad, cut `crop` at `corner`, flip, normalise; all given, nothing drawn."""
    scaled = np.rint(bilinear(image, size))
    labels, codes = nearest(labels, size), nearest(codes, size)
    height, width = max(size[0], crop[0]), max(size[1], crop[1])
    pixels, padded_labels, padded_codes = (
        np.zeros((height, width, 3)),
        np.full((height, width), 255),
        np.zeros((height, width)),
    )
    for y in range(size[0]):
        for x in range(size[1]):
            pixels[y, x], padded_labels[y, x], padded_codes[y, x] = scaled[y, x], labels[y, x], codes[y, x]
    view, view_labels, view_codes = np.zeros((*crop, 3)), np.zeros(crop, np.int64), np.zeros(crop, np.int64)
    for y in range(crop[0]):
        for x in range(crop[1]):
            at = crop[1] - 1 - x if flipped else x
            source = (corner[0] + y, corner[1] + x)
            view[y, at], view_labels[y, at], view_codes[y, at] = (
                pixels[source],
                padded_labels[source],
                padded_codes[source],
            )
    return normalised(view, name), view_labels, view_codes


def shifted(image: np.ndarray, dy, dx) -> np.ndarray:
    """Pixel (y, x) is the one at (y + dy(y, x), x + dx(y, x)), by its centre; black where there is none."""
    height, width = image.shape[:2]
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            sy, sx = math.floor(y + 0.5 + dy(x + 0.5)), math.floor(x + 0.5 + dx(y + 0.5))
            if 0 <= sy < height and 0 <= sx < width:
                out[y, x] = image[sy, sx]
    return out
