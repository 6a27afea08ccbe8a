"""The faults that a check of the data must find, planted one by one or all at once.

A fault is a function that changes a `Small`, in an image of its own, and returns which file and item are to be named.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from tests.reference.small_data import Small


@dataclass(frozen=True)
class Fault:
    """`plant` returns (file, item): texts that the finding `code` must hold; `also` follow from it."""

    code: str
    plant: Callable[[Small], tuple[str, str]]
    also: frozenset[str]


FAULTS: list[Fault] = []
CLASSES = ("num-classes", "classes-differ", "classes-missing", "category-unused", "class-rare")  # of another category


def fault(code: str, *also: str) -> Callable:
    return lambda plant: FAULTS.append(Fault(code, plant, frozenset(also)))


# ---------------------------------------------------------------------------------------------- files and structure
@fault("source-missing")
def _(d):
    d.extra_unlabeled.append(str(d.folder / "nowhere"))
    return "nowhere", "DATASETS.UNLABELED"


@fault("folder-empty")
def _(d):
    (d.folder / "empty").mkdir()
    d.extra_unlabeled.append(str(d.folder / "empty"))
    return "empty", "DATASETS.UNLABELED"


@fault("ignored-images")
def _(d):
    Image.new("RGB", (64, 64)).save(d.folder / "photos/scan.gif")
    return "photos", "scan.gif"


@fault("ignored-files")
def _(d):
    (d.folder / "photos/readme.txt").write_text("no image")
    return "photos", "readme.txt"


@fault("json-broken")
def _(d):
    return d.save("broken", '{"images": [\n{"id": 1, '), "line 2"


@fault("json-structure")
def _(d):
    return d.save("results", [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]), "top level"


@fault("no-images", "no-boxes")
def _(d):
    return d.save("imageless", d.other("none", images=0)), "images"


@fault("no-boxes", "mostly-empty", "image-no-box")
def _(d):
    return d.save("boxless", d.other("bare", boxes=0)), "annotations"


@fault("mostly-empty", "image-no-box")
def _(d):
    content = d.other("few", images=5, boxes=0)
    d.box(content, 1, [4, 4, 30, 40])
    return d.save("few", content), "image 2"


@fault("item-fields")
def _(d):
    d.train["images"].append({"id": 20, "height": 96, "width": 128})
    return "train.json", f"images[{len(d.train['images']) - 1}]"


@fault("image-id-twice")
def _(d):
    d.train["images"].append(d.bare(21) | {"file_name": "1.jpg"})
    return "train.json", "image 21 (1.jpg)"


@fault("annotation-id-twice")
def _(d):
    d.bare(22)
    d.box(d.train, 22, [60, 10, 30, 30], id=10)
    return "train.json", "annotation 10 (image 22"


@fault("category-id-twice")
def _(d):
    d.train["categories"].append({"id": 5, "name": "bee"})
    return "train.json", "category 5"


def _name_fault(code: str, number: int, name: str) -> None:
    @fault(code, *CLASSES)
    def _(d):
        d.train["categories"].append({"id": number, "name": name})
        return "train.json", f"category {number} ({name})"


_name_fault("category-name-twice", 31, "dog")
_name_fault("category-name-similar", 32, "Cat ")


@fault("category-unused", *CLASSES)
def _(d):
    d.val["categories"].append({"id": 33, "name": "yak"})
    return "val.json", "category yak"


@fault("class-rare", *CLASSES)
def _(d):
    d.train["categories"].append({"id": 34, "name": "emu"})
    d.bare(34)
    d.box(d.train, 34, [60, 10, 30, 30], 34)
    return "train.json", "category emu"


@fault("classes-differ")
def _(d):
    d.val["categories"][1] = {"id": 2, "name": "wolf"}
    return "val.json", "categories"


@fault("num-classes")
def _(d):
    d.num_classes = 9
    return "train.json", "NUM_CLASSES"


@fault("category-unknown")
def _(d):
    d.bare(35)
    d.box(d.train, 35, [60, 10, 30, 30], 77)
    return "train.json", "annotation 351 (image 35"


@fault("image-unknown")
def _(d):
    return "train.json", f"annotation {d.box(d.train, 99, [60, 10, 30, 30])} (image 99"


@fault("image-sides")
def _(d):
    d.bare(36)["height"] = -5
    return "train.json", "(id 36)"


@fault("image-no-size")
def _(d):
    d.bare(84)["height"] = 0
    return "train.json", "image 84 (84.jpg)"


@fault("file-twice")
def _(d):
    d.bare(37)
    d.train["images"].append({"id": 38, "file_name": "37.jpg", "height": 96, "width": 128})
    d.box(d.train, 38, [20, 10, 30, 30])
    return "train.json", "image 38 (37.jpg)"


@fault("crowd-flag")
def _(d):
    d.bare(39)
    d.box(d.train, 39, [60, 10, 30, 30], iscrowd="perhaps")
    return "train.json", "(id 391)"


@fault("area-wrong")
def _(d):
    d.bare(40)
    d.box(d.train, 40, [60, 10, 30, 30], area=5000)
    return "train.json", "annotation 401 "


@fault("unlabelled-annotated")
def _(d):
    d.save("more", d.other("more", images=2))
    d.extra_unlabeled.append(d.extra_train.pop())
    return "more.json", "annotations"


# ---------------------------------------------------------------------------------------------- boxes
def _box_fault(code: str, number: int, box: object, category: int = 1) -> None:
    @fault(code)
    def _(d):
        d.bare(number)
        return "train.json", f"annotation {d.box(d.train, number, box, category)} (image {number}, {number}.jpg)"


_box_fault("box-form", 41, [60, 10, "wide", 30])
_box_fault("box-nan", 42, [60, 10, float("nan"), 30])
_box_fault("box-negative", 43, [90, 50, -30, 30])
_box_fault("box-empty", 44, [60, 10, 0, 30])
_box_fault("box-outside", 45, [140, 10, 30, 30])
_box_fault("box-sticks-out", 46, [100, 10, 60, 30])
_box_fault("box-two-classes", 47, [8, 10, 30, 44], category=2)
_box_fault("box-twice", 48, [9, 10, 30, 44])
_box_fault("box-huge", 49, [0, 0, 128, 96])
_box_fault("box-tiny", 50, [70, 10, 0.4, 0.4])


@fault("boxes-corners")
def _(d):
    content = d.other("corner", images=8, boxes=0)
    for i in range(8):
        d.box(content, i + 1, [50 + i, 40, 100 + i, 90])
    return d.save("corners", content), "annotation 10 (image 1, corner_0.jpg)"


@fault("boxes-normalised")
def _(d):
    content = d.other("unit", boxes=0)
    for i in range(4):
        d.box(content, i + 1, [0.1, 0.2, 0.3, 0.4])
    return d.save("normalised", content), "annotation 10 (image 1, unit_0.jpg)"


# ------------------------------------------------------------------------------ images
@fault("image-missing")
def _(d):
    d.bare(51)
    (d.folder / "51.jpg").unlink()
    return "train.json", "image 51 (51.jpg)"


@fault("image-unreadable")
def _(d):
    (d.folder / "photos/page.jpg").write_text("<html>not found</html>")
    return "photos/page.jpg", "image page.jpg"


@fault("image-truncated")
def _(d):
    d.bare(53)
    path = d.folder / "53.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return "53.jpg", "image 53 "


@fault("image-size")
def _(d):
    d.bare(54)["width"] = 256
    return "54.jpg", "image 54 "


def _exif_fault(code: str, number: int, orientation: int, y: int = 10, *also: str) -> None:
    @fault(code, *also)
    def _(d):
        d.bare(number)
        d.train["annotations"][-1]["bbox"][1] = y
        exif = Image.Exif()
        exif[0x0112] = orientation
        with Image.open(d.folder / f"{number}.jpg") as image:
            image.save(image.filename, exif=exif)
        return f"{number}.jpg", f"image {number} "


_exif_fault("image-exif-unclear", 55, 3)
_exif_fault("image-exif", 56, 6)
_exif_fault("image-exif-boxes", 66, 6, 80, "box-sticks-out", "image-exif")


def _png_fault(code: str, number: int, make: Callable[[np.ndarray], np.ndarray], *also: str) -> None:
    """A PNG made from a picture [H, W, 3] uint8 BGR."""

    @fault(code, *also)
    def _(d):
        d.bare(number, name=f"{number}.png")
        path = str(d.folder / f"{number}.png")
        assert cv2.imwrite(path, make(cv2.imread(path)))
        return f"{number}.png", f"image {number} "


_png_fault("image-16bit", 57, lambda picture: picture.astype(np.uint16) * 257)
_png_fault("image-grey", 58, lambda picture: picture[:, :, 1])
_png_fault("image-alpha", 59, lambda picture: np.dstack([picture, picture[:, :, 0]]))
_png_fault("image-blank", 60, lambda picture: np.full_like(picture, 7))


@fault("image-small", "box-tiny", "box-sticks-out")
def _(d):
    d.bare(61, size=(24, 40))
    d.train["annotations"][-1]["bbox"] = [2, 2, 12, 12]
    return "61.jpg", "image 61 "


@fault("image-narrow")
def _(d):
    d.bare(62, size=(64, 640))
    return "62.jpg", "image 62 "


@fault("image-no-box")
def _(d):
    d.image(d.train, 63, boxes=0)
    return "train.json", "image 63 "


# ---------------------------------------------------------------------------------------------- the same image twice
def _copied(d, name):
    shutil.copy(d.folder / name, d.folder / f"photos/copy_{name}")
    return f"photos/copy_{name}", f"image copy_{name}"


fault("same-across")(lambda d: _copied(d, "101.jpg"))
fault("same-unlabelled")(lambda d: (d.bare(64), _copied(d, "64.jpg"))[1])


@fault("same-within")
def _(d):
    shutil.copy(d.picture(d.folder / "photos/first.jpg"), d.folder / "photos/second.jpg")
    return "photos/second.jpg", "image second.jpg"


@fault("near-test")
def _(d):
    d.bare(65)
    d.image(d.val, 165)
    again = cv2.resize(cv2.imread(str(d.folder / "65.jpg")), (128, 96)) // 8 * 7 + 20  # paler, and compressed again
    assert cv2.imwrite(str(d.folder / "165.jpg"), again, [cv2.IMWRITE_JPEG_QUALITY, 60])
    return "165.jpg", "image 165 "


@fault("near")
def _(d):
    first = cv2.imread(str(d.picture(d.folder / "photos/large.jpg")))
    assert cv2.imwrite(str(d.folder / "photos/little.jpg"), cv2.resize(first, None, fx=0.7, fy=0.7))
    return "photos/little.jpg", "image little.jpg"
