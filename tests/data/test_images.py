"""The one reader of images: header and pixels agree, on every format, depth and orientation."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sed.checks.images import examine
from sed.data import images
from sed.data.coco import load_coco
from sed.data.errors import DataError
from sed.data.frames import fits_turned
from sed.data.images import check_file, image_header, read_image, read_pixels
from sed.data.mapper import Mapper

SMOOTH = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
PICTURE = cv2.resize(SMOOTH, (64, 48), interpolation=cv2.INTER_CUBIC)  # RGB
GREY = np.asarray(Image.fromarray(PICTURE).convert("L"))
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
# what the stored pixels are turned by to be upright, for every orientation: numpy's, so not the code's own
UPRIGHT = {
    **{2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1)},
    **{6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90},
}


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def save(path: Path, pixels: np.ndarray = PICTURE, mode: str = "RGB", **options: object) -> Path:
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "jpg"])
@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_in_both_frames(tmp_path, suffix, orientation) -> None:
    plain = read_pixels(save(tmp_path / f"plain.{suffix}", lossless=True))
    path = save(tmp_path / f"a.{suffix}", lossless=True, exif=exif(orientation))
    upright = UPRIGHT.get(orientation, lambda a: a)(plain)
    assert image_header(path).size == upright.shape[:2]
    assert np.array_equal(read_pixels(path), upright)
    if orientation >= 5 and orientation != 9:
        assert np.array_equal(read_image({"file_name": path, "height": 48, "width": 64}), plain)


@pytest.mark.parametrize("options", [{"xmp": XMP}, {"exif": b"Exif\0\0"}, {"exif": b"Exif\0\0garbage!garbage!"}])
def test_what_turns_nothing(tmp_path, options) -> None:
    path = save(tmp_path / "a.jpg", **options)
    assert image_header(path).size == (48, 64)
    assert np.array_equal(read_pixels(path), read_pixels(save(tmp_path / "b.jpg")))


def test_ordinary_pixels_are_those_of_opencv(tmp_path) -> None:
    for suffix in ("jpg", "png", "bmp", "webp", "tif"):
        path = save(tmp_path / f"a.{suffix}")
        assert np.array_equal(read_pixels(path), cv2.imread(str(path))[..., ::-1])


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "LAB", "I;16"])
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "gif", "bmp", "webp", "jp2", "ppm"])
def test_modes_are_those_of_pillow(tmp_path, mode, suffix) -> None:
    image = Image.fromarray(PICTURE).convert("L" if mode == "I;16" else "RGB").convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(128)
    try:
        image.save(tmp_path / f"a.{suffix}")
    except (OSError, ValueError):
        pytest.skip("there is no such file")
    with Image.open(tmp_path / f"a.{suffix}") as whole:
        wanted = np.asarray(whole.convert("RGB")).astype(int)
    got = read_pixels(tmp_path / f"a.{suffix}")
    assert got.shape == (48, 64, 3)
    assert np.abs(got - wanted).mean() < 2  # CMYK is a matter of rounding


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_deep_greys_are_scaled(tmp_path, bits, suffix) -> None:
    grey = GREY.copy()
    grey[0, 0] = 255
    deep = grey.astype(np.uint16) << (bits - 8)
    for pixels in (deep, np.dstack([deep] * 3)):
        assert cv2.imwrite(str(tmp_path / f"a.{suffix}"), pixels)
        assert np.array_equal(read_pixels(tmp_path / f"a.{suffix}"), np.dstack([grey] * 3))


def test_numbers_with_a_point_and_32_bits(tmp_path) -> None:
    for number, pixels in enumerate((GREY / np.float32(255), GREY.astype(np.float32), GREY.astype(np.int32) << 16)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.tif")
        found = read_pixels(tmp_path / f"{number}.tif")
        assert np.array_equal(found, np.dstack([GREY] * 3)), number


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_cut_jpeg_that_was_closed(tmp_path, subsampling, keep) -> None:
    content = save(tmp_path / "cut.jpg", subsampling=subsampling, quality=95).read_bytes()
    start = content.index(b"\xff\xda")
    (tmp_path / "cut.jpg").write_bytes(content[: start + int((len(content) - start) * keep)] + b"\xff\xd9")
    with pytest.raises(DataError, match=r"cut\.jpg: truncated or damaged image \(not all rows are there\)"):
        read_pixels(tmp_path / "cut.jpg")
    assert examine(str(tmp_path / "cut.jpg")).fault == "image-truncated"


def test_a_grey_corner_is_not_cut(tmp_path) -> None:
    for progressive in (False, True):
        path = save(tmp_path / "grey.jpg", np.full((48, 64, 3), 128, np.uint8), progressive=progressive)
        assert read_pixels(path)[-1, -1].tolist() == [128, 128, 128]
        assert examine(str(path)).fault == ""


@pytest.mark.parametrize("keep", [0.5, 0.7, 0.95])
def test_a_progressive_jpeg_without_its_detail_is_found_by_the_check(tmp_path, keep) -> None:
    content = save(tmp_path / "cut.jpg", progressive=True, quality=95).read_bytes()
    assert examine(str(tmp_path / "cut.jpg")).fault == ""
    (tmp_path / "cut.jpg").write_bytes(content[: int(len(content) * keep)] + b"\xff\xd9")
    assert examine(str(tmp_path / "cut.jpg")).fault == "image-truncated"


@pytest.mark.parametrize("side", [12_000, 30_000])  # the second is refused by Pillow
def test_a_huge_image_ends_with_one_line(tmp_path, side) -> None:
    content = io.BytesIO()
    Image.new("1", (side, side)).save(content, "PNG")
    (tmp_path / "huge.png").write_bytes(content.getvalue())
    record = {"file_name": str(tmp_path / "huge.png"), "image_id": 1, "height": side, "width": side}
    mapper = Mapper((10, 10), 100)
    for read in (image_header, read_pixels, check_file, lambda _: mapper.test(record)):
        with pytest.raises(DataError, match=r"huge\.png: .*more than the 134 million pixels .*into tiles") as error:
            read(tmp_path / "huge.png")
        assert "\n" not in str(error.value)
    assert examine(record["file_name"]).fault == "image-unreadable"


def test_what_is_no_regular_file(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with open(tmp_path / "long.jpg", "wb") as stream:
        stream.truncate(images.MAX_BYTES + 1)
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "folder.jpg", "long.jpg", "a\0b.jpg"):
        for read in (image_header, read_pixels, check_file):
            with pytest.raises(DataError, match=r"\.jpg: "):
                read(f"{tmp_path}/{name}")


@pytest.mark.parametrize("written", ["stored", "upright"])
def test_boxes_of_the_other_frame(make_coco, written) -> None:
    data = make_coco([(40, 60)] * 3)
    entry, box = data.content["images"][1], data.content["annotations"][1]
    turned = 6 if written == "stored" else 8
    Image.open(data.folder / "1.jpg").save(data.folder / "1.jpg", exif=exif(turned))
    if written == "upright":
        entry["height"], entry["width"] = 60, 40
    box["bbox"] = [2, 30, 10, 25] if written == "stored" else [30, 2, 25, 10]
    other = "upright, 40 x 60" if written == "stored" else "as it is stored, 60 x 40"
    with pytest.raises(DataError, match=rf"set\.json: image .*1\.jpg \(id 11\) is turned by EXIF .*{other}; swap"):
        load_coco(data.write())
    entry["height"], entry["width"] = entry["width"], entry["height"]
    assert len(load_coco(data.write())) == 3


def test_boxes_that_tell_no_frame() -> None:
    assert fits_turned((40, 60), [[2, 30, 10, 25]])
    for boxes in ([], [[2, 30, 10, 11]], [[2, 3, 4, 5]], [[2, 30, 10, 33]], [[2, 30, 10, 25], [30, 2, 25, 10]]):
        assert not fits_turned((40, 60), boxes)
    assert not fits_turned((50, 50), [[2, 30, 10, 25]])
