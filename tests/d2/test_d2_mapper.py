"""The views around a Detectron2 mapper."""

from __future__ import annotations

import random
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("detectron2", reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)")

import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from PIL import Image

from sed.d2.config import load_config
from sed.d2.data import default_mapper
from sed.d2.mapper import ViewMapper
from sed.data.errors import DataError
from tests.data.conftest import write_image


def make_record(path: Path, boxes: list | None = None, crowd: int = 0) -> dict:
    items = [{"bbox": b, "bbox_mode": 1, "category_id": 2, "iscrowd": crowd, "area": b[2] * b[3]} for b in boxes or []]
    return {"file_name": str(path), "image_id": 4, "height": 60, "width": 100, "annotations": items}


@pytest.fixture
def marked(tmp_path) -> dict:
    """A black PNG, 60 x 100, with one rectangle, R 250, G 130, B 10, and its box."""
    image = np.zeros((60, 100, 3), np.uint8)
    image[12:36, 10:40] = (10, 130, 250)  # OpenCV writes BGR
    path = tmp_path / "marked.png"
    cv2.imwrite(str(path), image)
    return make_record(path, [[10, 12, 30, 24]])


@pytest.fixture
def photo(tmp_path) -> dict:
    return make_record(write_image(tmp_path / "photo.jpg", 60, 100, seed=5), [[10, 12, 30, 24]])


def stock(*overrides: str, **options) -> ViewMapper:
    cfg = load_config(None, ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", "(50, 90)", *overrides])
    return ViewMapper(default_mapper(cfg), cfg.INPUT.FORMAT, **options)


def reads(record: dict) -> np.ndarray:
    """As many mappers of users: OpenCV, which takes the missing end of a file for grey."""
    return cv2.imread(record["file_name"], cv2.IMREAD_COLOR)


def drawing_mapper(record: dict) -> dict:
    """A user's mapper, BGR, that draws from all three global generators and expects the key "annotations"."""
    image = reads(record)
    shift = [random.randrange(40), int(np.random.randint(40)), int(torch.randint(40, ()))]  # noqa: NPY002
    pixels = np.clip(image.astype(int) + shift, 0, 255).astype(np.uint8)
    boxes = [[a["bbox"][0], a["bbox"][1], 50, 50] for a in record.pop("annotations")]
    instances = Instances(image.shape[:2], gt_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    return {"image": torch.from_numpy(pixels.transpose(2, 0, 1).copy()), "instances": instances, "shift": shift}


def plain_mapper(record: dict) -> dict:
    return {"image": torch.from_numpy(reads(record).transpose(2, 0, 1).copy())}


# ---------------------------------------------------------------------------------------------- the stock mapper
@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_boxes_go_with_the_pixels(marked: dict, channels: str) -> None:
    views = stock("INPUT.FORMAT", channels)
    flips, heights = set(), set()
    for position in range(0, 40, 2):
        image, targets = views.labeled(marked, position)
        assert image.dtype == torch.uint8
        assert 50 <= image.shape[1] <= 90
        assert image.shape[2] == int(image.shape[1] * 100 / 60 + 0.5)
        rows, columns = (torch.nonzero((image[0] > 125).any(d)).flatten() for d in (1, 0))
        edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(np.array(edges) - targets.boxes[0].numpy()).max() <= 1.5
        x0, y0, x1, y1 = targets.boxes[0].int().tolist()
        assert image[:, (y0 + y1) // 2, (x0 + x1) // 2].tolist() == [250, 130, 10]
        assert (targets.classes.tolist(), targets.classes.dtype) == ([2], torch.int64)
        assert targets.boxes.dtype == torch.float32
        flips.add(bool(targets.boxes[0, 0] > image.shape[2] / 2))
        heights.add(image.shape[1])
    assert flips == {True, False}
    assert len(heights) > 8


def test_it_is_detectron2s_own_mapper(photo: dict) -> None:
    """Without anything random, the weak view and the boxes are what DatasetMapper gives to Detectron2's trainer."""
    cfg = load_config(
        None,
        ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", "(72,)", "INPUT.RANDOM_FLIP", "none", "INPUT.FORMAT", "BGR"],
    )
    wanted = DatasetMapper(cfg, is_train=True)(photo)
    image, targets = ViewMapper(default_mapper(cfg), "BGR").labeled(photo, 0)
    assert torch.equal(image, wanted["image"].flip(0))
    assert torch.equal(targets.boxes, wanted["instances"].gt_boxes.tensor)
    assert torch.equal(ViewMapper(default_mapper(cfg), "BGR").unlabeled(photo, 3)[0], image)


def test_cropping_is_only_switched_on(photo: dict) -> None:
    """Also where the config is of a model with masks and keypoints, which records do not have."""
    crop = ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", "[0.5, 0.5]"]
    cfg = load_config(None, ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", "(60,)", *crop])
    cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = cfg.MODEL.LOAD_PROPOSALS = True
    views = ViewMapper(default_mapper(cfg), "RGB")
    whole = make_record(Path(photo["file_name"]), [[0, 0, 100, 60]])
    image, targets = views.labeled(whole, 0)
    assert image.shape == (3, 60, 100)
    assert targets.boxes.tolist() == [[0, 0, 100, 60]]
    assert not torch.equal(views.unlabeled(photo, 0)[0], views.unlabeled(photo, 2)[0])
    away = make_record(Path(photo["file_name"]), [[0, 0, 30, 30]])
    assert {len(views.labeled(away, position)[1].boxes) for position in range(12)} == {0, 1}


def test_views_share_one_geometry(photo: dict) -> None:
    views = stock()
    differ = 0
    for position in range(12):
        weak, strong = views.unlabeled(photo, position)
        assert weak.shape == strong.shape
        differ += not torch.equal(weak, strong)
    assert differ >= 10


def test_every_second_labelled_sample_is_strong(photo: dict) -> None:
    weak, half = (stock(strong_labeled=choice) for choice in (False, True))
    pairs = [(weak.labeled(photo, p), half.labeled(photo, p)) for p in range(40)]
    same = [torch.equal(a[0], b[0]) for a, b in pairs]
    assert all(same[::2])
    assert sum(same[1::2]) <= 4  # a strong view changes nothing in 1 of 20 draws
    assert all(torch.equal(a[1].boxes, b[1].boxes) for a, b in pairs)


def test_crowds_and_no_boxes(photo: dict) -> None:
    path = Path(photo["file_name"])
    for record in (make_record(path, [[1, 2, 3, 4]], crowd=1), make_record(path)):
        targets = stock().labeled(record, 0)[1]
        assert (targets.boxes.shape, targets.boxes.dtype) == ((0, 4), torch.float32)
        assert (targets.classes.shape, targets.classes.dtype) == ((0,), torch.int64)


def test_the_record_is_not_changed(photo: dict) -> None:
    before = repr(photo)
    for views in (stock(), ViewMapper(drawing_mapper, "BGR")):
        views.labeled(photo, 0)
        views.unlabeled(photo, 0)
    assert repr(photo) == before


# ---------------------------------------------------------------------------------------------- randomness
@pytest.mark.parametrize("kind", ["stock", "drawing"])
def test_data_depend_on_seed_stream_and_position_only(photo: dict, kind: str) -> None:
    mapper = stock().mapper if kind == "stock" else drawing_mapper
    order = "RGB" if kind == "stock" else "BGR"

    def all_of(seed: int, position: int) -> list[torch.Tensor]:
        views = ViewMapper(mapper, order, strong_labeled=True, seed=seed)
        return [views.labeled(photo, position)[0], *views.unlabeled(photo, position)]

    first = all_of(1, 7)
    random.seed(3), np.random.seed(4), torch.manual_seed(5)  # noqa: NPY002
    all_of(1, 8)
    assert all(torch.equal(a, b) for a, b in zip(first, all_of(1, 7), strict=True))
    for other in (all_of(2, 7), all_of(1, 9)):
        assert not any(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_all_three_generators_are_drawn_from_the_position(photo: dict) -> None:
    seen = []

    def spy(record: dict) -> dict:
        sample = drawing_mapper(record)
        seen.append(sample["shift"])
        return sample

    views = ViewMapper(spy, "BGR")
    for position in (*range(30), *range(30)):
        views.labeled(photo, position)
    assert seen[:30] == seen[30:]
    for generator in zip(*seen[:30], strict=True):
        assert len(set(generator)) > 10


@pytest.mark.parametrize("fails", [False, True])
def test_the_global_generators_are_put_back(photo: dict, fails: bool) -> None:
    def mapper(record: dict) -> dict:
        sample = drawing_mapper(record)
        if fails:
            raise RuntimeError("a fault of the user's")
        return sample

    random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    views = ViewMapper(mapper, "BGR")
    if fails:
        with pytest.raises(RuntimeError, match="of the user's"):
            views.labeled(photo, 0)
    else:
        views.labeled(photo, 0)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert before == after


# ---------------------------------------------------------------------------------------------- faults
@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.98])
@pytest.mark.parametrize("own", [False, True])
def test_truncated_image(tmp_path, suffix: str, keep: float, own: bool) -> None:
    path = write_image(tmp_path / f"cut.{suffix}", 60, 100)
    record, views = make_record(path), ViewMapper(plain_mapper, "BGR") if own else stock()
    assert views.unlabeled(record, 0)[0].shape[0] == 3
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(DataError, match=rf"cut\.{suffix}: (truncated or damaged|not a readable) image"):
        views.unlabeled(record, 0)


def test_images_that_cannot_be_used(tmp_path) -> None:
    gone = make_record(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match=r"gone\.jpg: image cannot be read \(No such file"):
        stock().labeled(gone, 0)
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"text\.jpg: not a readable image"):
        stock().labeled(make_record(tmp_path / "text.jpg"), 0)
    other = make_record(write_image(tmp_path / "other.jpg", 60, 101))
    with pytest.raises(DataError, match=r"other\.jpg: the image is 60 x 101 .* says 60 x 100"):
        stock().unlabeled(other, 0)


def test_grey_and_transparent_files_become_three_channels(tmp_path) -> None:
    for channels in (1, 4):
        path = tmp_path / f"{channels}.png"
        cv2.imwrite(str(path), np.full((60, 100, channels), 80, np.uint8))
        assert stock().unlabeled(make_record(path), 0)[0].shape[0] == 3


@pytest.mark.parametrize(
    ("mapper", "found"),
    [
        (lambda record: None, "got NoneType"),
        (lambda record: {**plain_mapper(record), "image": reads(record)}, "got ndarray"),
        (lambda record: {"image": plain_mapper(record)["image"].float()}, r"got torch.float32 \[3, 60, 100\]"),
        (lambda record: {"image": plain_mapper(record)["image"][:1]}, r"got torch.uint8 \[1, 60, 100\]"),
    ],
)
def test_what_a_mapper_must_return(photo: dict, mapper, found: str) -> None:
    with pytest.raises(TypeError, match=rf'photo\.jpg: a mapper must return an "image" .*{found}'):
        ViewMapper(mapper, "BGR").unlabeled(photo, 0)


def test_a_labelled_mapper_must_return_boxes(photo: dict) -> None:
    cfg = load_config(None, ["MODEL.DEVICE", "cpu"])
    for mapper in (plain_mapper, DatasetMapper(cfg, is_train=False)):
        with pytest.raises(TypeError, match=r"photo\.jpg: .*returned no boxes"):
            ViewMapper(mapper, "BGR").labeled(photo, 0)


def test_formats() -> None:
    with pytest.raises(ValueError, match="image_format is 'L'; it must be one of RGB, BGR"):
        ViewMapper(plain_mapper, "L")


def test_augmentations_of_a_users_own(photo: dict) -> None:
    """A DatasetMapper with other augmentations, as Detectron2's tutorials build it."""
    augmentations = [T.RandomBrightness(0.5, 1.5), T.RandomFlip(), T.RandomCrop("absolute", (40, 50))]
    views = ViewMapper(DatasetMapper(True, augmentations=augmentations, image_format="RGB"), "RGB")
    images = [views.labeled(photo, position)[0] for position in (0, 0, 2)]
    assert images[0].shape == (3, 40, 50)
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_the_frame_that_the_json_says_and_deep_greys(tmp_path) -> None:
    flat, turned = Image.open(write_image(tmp_path / "flat.png", 60, 100)), Image.Exif()
    turned[0x0112] = 6
    flat.save(tmp_path / "turned.png", exif=turned)
    deep = np.tile(np.linspace(0, 4095, 100, dtype=np.uint16), (60, 1))  # 12 bits
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    views = stock("INPUT.MIN_SIZE_TRAIN", "(60,)", "INPUT.RANDOM_FLIP", "none")
    for name in ("flat", "turned"):
        weak, _ = views.unlabeled(make_record(tmp_path / f"{name}.png"), 0)
        assert np.array_equal(weak.permute(1, 2, 0), np.asarray(flat))
    assert views.unlabeled(make_record(tmp_path / "deep.png"), 0)[0].max() == 255
