"""Geometric augmentation (A.2): rotate, translate or shear, before the views are made."""

from __future__ import annotations

import logging
import math
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sed.config import ConfigError, load_config
from sed.core.structures import Targets
from sed.data.geometry import GeometricAugmentation, Turn, build_geometric, log_dropped
from sed.data.mapper import LABELED, UNLABELED, Mapper
from sed.engine.build import open_streams, read_data

RIGHT = Turn(((0.0, -1.0), (1.0, 0.0)))  # a quarter clockwise
SHEAR_X, SHEAR_Y = Turn(((1.0, 0.15), (0.0, 1.0))), Turn(((1.0, 0.0), (0.15, 1.0)))
WIDE = (60, 100)  # height, width


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def hull(turn: Turn, box: list[float], size: tuple[int, int] = WIDE) -> list[float] | None:
    """The transformed box, rounded; None where it is dropped."""
    boxes, kept = turn.boxes(np.array([box]), size)
    return boxes[0].round(6).tolist() if kept[0] else None


def record_of(path: Path, boxes: list, height: int = 60, width: int = 100, crowd: int = 0) -> dict:
    items = [{"bbox": b, "bbox_mode": 1, "category_id": 2, "iscrowd": crowd, "area": b[2] * b[3]} for b in boxes]
    return {"file_name": str(path), "image_id": 4, "height": height, "width": width, "annotations": items}


@pytest.fixture
def marked(tmp_path) -> dict:
    """A black PNG, 120 x 200, with a white rectangle and its box."""
    image = np.zeros((120, 200, 3), np.uint8)
    image[40:84, 70:130] = 255
    cv2.imwrite(str(tmp_path / "marked.png"), image)
    return record_of(tmp_path / "marked.png", [[70, 40, 60, 44]], 120, 200)


@pytest.fixture
def photo(make_image, tmp_path) -> dict:
    return record_of(make_image(tmp_path / "photo.jpg", 60, 100, 5), [[10, 12, 30, 24]])


# ---------------------------------------------------------------------------------------------- one turn, by hand
@pytest.mark.parametrize(
    ("turn", "box", "wanted"),
    [
        (Turn(), [10, 10, 30, 50], [10, 10, 30, 50]),
        (SHEAR_X, [10, 10, 30, 50], [7, 10, 33, 50]),  # x + .15 (y - 30)
        (SHEAR_Y, [10, 10, 30, 50], [10, 4, 30, 47]),  # y + .15 (x - 50)
        (Turn(shift=(0.225, 0.0)), [10, 10, 30, 50], [32.5, 10, 52.5, 50]),
        (Turn(shift=(0.0, -0.1)), [10, 10, 30, 50], [10, 4, 30, 44]),
        (Turn(shift=(0.225, 0.0)), [60, 10, 80, 50], [82.5, 10, 100, 50]),  # clipped
        (Turn(shift=(0.2, 0.0)), [70, 10, 90, 50], [90, 10, 100, 50]),  # half is left: kept
        (Turn(shift=(0.21, 0.0)), [70, 10, 90, 50], None),  # less than half
        (Turn(shift=(0.2, 0.0)), [80, 10, 100, 50], None),  # nothing
    ],
)
def test_boxes_by_hand(turn: Turn, box: list, wanted: list | None) -> None:
    assert hull(turn, box) == wanted


def test_a_rotated_box_is_the_hull_of_its_corners() -> None:
    assert hull(RIGHT, [1, 2, 4, 6], (10, 10)) == [4, 1, 8, 4]  # (x, y) -> (10 - y, x)
    angle = math.radians(15)
    turn = Turn(((math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))))
    width = 20 * math.cos(angle) + 10 * math.sin(angle)
    height = 20 * math.sin(angle) + 10 * math.cos(angle)
    wanted = [50 - width / 2, 30 - height / 2, 50 + width / 2, 30 + height / 2]
    assert hull(turn, [40, 25, 60, 35]) == pytest.approx(wanted, abs=1e-6)


def test_a_quarter_turn_moves_every_pixel_exactly() -> None:
    image = noise(11, 11)
    assert np.array_equal(RIGHT.image(image), np.rot90(image, -1))


def test_a_shift_moves_pixels_and_leaves_grey_behind() -> None:
    image = noise(60, 100)
    moved = Turn(shift=(0.2, -0.1)).image(image)
    assert np.array_equal(moved[:54, 20:], image[6:, :80])
    assert (moved[:, :20] == 128).all()
    assert (moved[54:] == 128).all()
    assert np.array_equal(Turn().image(image), image)


@pytest.mark.parametrize("turn", [SHEAR_X, SHEAR_Y, GeometricAugmentation(10.0).draw(0, 0)])
def test_a_dot_goes_where_the_matrix_says(turn: Turn) -> None:
    """The centre of mass of a blurred dot, in continuous coordinates, to a fraction of a pixel."""
    image = np.zeros((60, 100, 3), np.uint8)
    image[20:25, 60:65] = 255
    found = turn.image(image)[8:52, 8:92, 0].astype(float)  # without what came in from outside
    found[found == 128] = 0
    rows, columns = np.mgrid[8:52, 8:92] + 0.5
    seen = np.array([(columns * found).sum(), (rows * found).sum()]) / found.sum()
    assert np.abs(seen - turn.matrix(WIDE) @ [62.5, 22.5, 1]).max() < 0.05


def test_no_boxes() -> None:
    boxes, kept = SHEAR_X.boxes(np.zeros((0, 4), np.float32), WIDE)
    assert (boxes.shape, kept.shape) == ((0, 4), (0,))


# ---------------------------------------------------------------------------------------------- what is drawn
def kind_of(turn: Turn) -> tuple:
    (a, b), (c, d) = turn.linear
    if turn.shift != (0.0, 0.0):
        return "translate", *(round(v, 6) for v in turn.shift)
    if a != 1.0:
        assert (a, d) == pytest.approx((math.cos(math.radians(15)),) * 2)
        assert b == -c
        return "rotate", round(math.degrees(math.asin(c)), 6)
    assert (a, d) == (1.0, 1.0)
    return "shear", b, c


def test_one_of_three_ops_at_half_of_its_largest_magnitude() -> None:
    counts = Counter(kind_of(GeometricAugmentation().draw(UNLABELED, position)) for position in range(1200))
    assert set(counts) == {
        *(("rotate", sign * 15.0) for sign in (1, -1)),
        *(("translate", *v) for v in ((0.225, 0.0), (-0.225, 0.0), (0.0, 0.225), (0.0, -0.225))),
        *(("shear", *v) for v in ((0.15, 0.0), (-0.15, 0.0), (0.0, 0.15), (0.0, -0.15))),
    }
    for op, share in (("rotate", 1 / 2), ("translate", 1 / 4), ("shear", 1 / 4)):
        mine = [count for kind, count in counts.items() if kind[0] == op]
        assert 340 <= sum(mine) <= 460
        assert min(mine) > 0.7 * share * 400


def test_level_scales_the_magnitude() -> None:
    for position in range(20):
        assert GeometricAugmentation(0.0).draw(0, position) in (Turn(), Turn(((1.0, -0.0), (0.0, 1.0))))
    shifts = {GeometricAugmentation(10.0).draw(0, position).shift for position in range(60)}
    assert {abs(v) for shift in shifts for v in shift} == {0.0, 0.45}


@pytest.mark.parametrize("level", [-1.0, 10.5, math.nan])
def test_a_level_out_of_range(level: float) -> None:
    with pytest.raises(ValueError, match="a level from 0 to 10"):
        GeometricAugmentation(level)


def test_a_turn_depends_on_seed_stream_and_position_only() -> None:
    def turns(seed: int, stream: int, positions: range) -> list[Turn]:
        return [GeometricAugmentation(seed=seed).draw(stream, position) for position in positions]

    first = turns(3, LABELED, range(40))
    assert turns(3, LABELED, range(39, -1, -1)) == first[::-1]
    for other in (turns(4, LABELED, range(40)), turns(3, UNLABELED, range(40)), turns(3, LABELED, range(1, 41))):
        assert other != first


# ---------------------------------------------------------------------------------------------- in the mapper
def test_boxes_go_with_the_pixels(marked: dict) -> None:
    mapper = Mapper((100, 140), 400, geometric=GeometricAugmentation(seed=1))
    kinds = set()
    for position in range(0, 60, 2):
        image, targets = mapper.labeled(marked, position)
        kinds.add(kind_of(mapper.geometric.draw(LABELED, position))[0])
        assert image.dtype == torch.uint8
        assert targets.classes.tolist() == [2]
        assert (targets.boxes.dtype, targets.classes.dtype) == (torch.float32, torch.int64)
        rows, columns = (torch.nonzero((image[0] > 190).any(d)).flatten() for d in (1, 0))
        edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(np.array(edges) - targets.boxes[0].numpy()).max() <= 2.0
        assert (image == 128).any()
    assert kinds == {"rotate", "translate", "shear"}


def test_boxes_stay_within_the_image(photo: dict) -> None:
    many = record_of(Path(photo["file_name"]), [[x, y, 20, 14] for x in range(0, 81, 8) for y in range(0, 47, 6)])
    geometric = GeometricAugmentation(10.0)
    mapper, plain = Mapper((60, 60), 400, geometric=geometric), Mapper((60, 60), 400)
    lost = 0
    for position in range(30):
        image, targets = mapper.labeled(many, position)
        height, width = image.shape[1:]
        boxes = targets.boxes
        assert len(boxes) == len(targets.classes)
        assert (boxes >= 0).all()
        assert (boxes[:, [0, 2]] <= width).all()
        assert (boxes[:, [1, 3]] <= height).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        lost += len(plain.labeled(many, position)[1].boxes) - len(boxes)
    assert lost > 100


@pytest.mark.parametrize("crowd", [0, 1])
def test_images_without_boxes(photo: dict, crowd: int) -> None:
    record = record_of(Path(photo["file_name"]), [[1, 2, 3, 4]] * crowd, crowd=crowd)
    targets = Mapper((60, 60), 400, geometric=GeometricAugmentation()).labeled(record, 3)[1]
    assert (targets.boxes.shape, targets.boxes.dtype) == ((0, 4), torch.float32)
    assert (targets.classes.shape, targets.classes.dtype) == ((0,), torch.int64)


class Watch:
    """A strong view that records its input and the state of the generator."""

    def __init__(self) -> None:
        self.seen: list[tuple[np.ndarray, int]] = []

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        self.seen.append((image.copy(), rng.bit_generator.state["state"]["state"]))
        return 255 - image


def test_the_views_share_the_geometry_and_no_other_random_number_changes(photo: dict) -> None:
    recorder, before = Watch(), Watch()
    geometric = GeometricAugmentation(seed=2)
    turned = Mapper((50, 90), 400, strong=recorder, geometric=geometric, seed=2)
    plain = Mapper((50, 90), 400, strong=before, seed=2)
    for position in range(12):
        weak, strong = turned.unlabeled(photo, position)
        straight, _ = plain.unlabeled(photo, position)
        assert torch.equal(strong, 255 - weak)
        wanted = geometric.draw(UNLABELED, position).image(straight.permute(1, 2, 0).contiguous().numpy())
        assert np.array_equal(weak.permute(1, 2, 0).numpy(), wanted)
        assert np.array_equal(recorder.seen[position][0], wanted)
        assert recorder.seen[position][1] == before.seen[position][1]


def test_a_labelled_strong_view_is_turned_too(photo: dict) -> None:
    options = {"geometric": GeometricAugmentation(), "strong": Watch()}
    weak, strong = (Mapper((60, 60), 400, strong_labeled=choice, **options) for choice in (False, True))
    for position in (1, 3, 5):
        (a, boxes), (b, others) = weak.labeled(photo, position), strong.labeled(photo, position)
        assert torch.equal(b, 255 - a)
        assert torch.equal(boxes.boxes, others.boxes)


# ---------------------------------------------------------------------------------------------- logged, configured
def test_dropped_boxes_are_logged_once(caplog) -> None:
    away = record_of(Path("none.jpg"), [[0, 0, 1, 1], [99, 59, 1, 1], [45, 25, 10, 10]])  # two corners, the middle
    away["annotations"].append({**away["annotations"][0], "iscrowd": 1})
    geometric = GeometricAugmentation(10.0)
    lost, total = geometric.dropped([away] * 50, LABELED)
    by_hand = sum(
        hull(geometric.draw(LABELED, position), box) is None
        for position in range(50)
        for box in ([0, 0, 1, 1], [99, 59, 100, 60], [45, 25, 55, 35])
    )
    assert (lost, total) == (by_hand, 150)
    assert 0 < lost <= 100
    with caplog.at_level(logging.INFO, "sed"):
        log_dropped(geometric, [away] * 50, LABELED)
        log_dropped(None, [away], LABELED)
    assert [record.getMessage() for record in caplog.records] == [
        f"geometric augmentation: of 150 boxes (first 50 labelled images) {lost} are dropped: more than half is outside"
    ]


def test_kinds() -> None:
    assert build_geometric("none", 5.0, 0) is None
    assert build_geometric("randaugment", 3.0, 7) == GeometricAugmentation(3.0, 7)
    with pytest.raises(ValueError, match="none or randaugment, got 'cutmix'"):
        build_geometric("cutmix", 5.0, 0)
    with pytest.raises(ConfigError, match=r"INPUT\.GEOMETRIC is 'affine'; it must be one of none, randaugment"):
        load_config(None, ["INPUT.GEOMETRIC", "affine"])
    with pytest.raises(ConfigError, match=r"INPUT\.GEOMETRIC_LEVEL must be from 0 to 10"):
        load_config(None, ["INPUT.GEOMETRIC_LEVEL", "11"])


def test_the_native_engine_reads_the_keys(make_coco, caplog) -> None:
    sets = [make_coco([(40, 60)] * 4, name, seed).write() for seed, name in enumerate(("train", "rest"))]
    words = ["DATASETS.TRAIN", str(sets[0]), "DATASETS.UNLABELED", str(sets[1]), "MODEL.ROI_HEADS.NUM_CLASSES", "2"]
    words += ["SEMI.IMS_PER_BATCH_LABELED", "2", "SEMI.IMS_PER_BATCH_UNLABELED", "2", "DATALOADER.NUM_WORKERS", "0"]
    words += ["INPUT.MIN_SIZE_TRAIN", "(40, 40)", "ENGINE", "torchvision", "SEED", "5"]
    batches = {}
    for choice in ("none", "randaugment"):
        cfg = load_config(None, [*words, "INPUT.GEOMETRIC", choice, "INPUT.GEOMETRIC_LEVEL", "8"])
        with caplog.at_level(logging.INFO, "sed"):
            labeled, unlabeled = open_streams(cfg, read_data(cfg), 1)
        batches[choice] = next(labeled), next(unlabeled)
        assert ("geometric augmentation" in caplog.text) == (choice == "randaugment")
    geometric = GeometricAugmentation(8.0, seed=5)
    (before, views), (after, turned) = batches["none"], batches["randaugment"]
    for slot in range(2):
        image = before.images.tensor[slot].permute(1, 2, 0).contiguous().numpy()
        if slot == 0:  # the other one is a strong view
            wanted, targets = geometric.labeled(image, before.targets[slot], LABELED, slot)
            assert np.array_equal(after.images.tensor[slot].permute(1, 2, 0).numpy(), wanted)
            assert torch.equal(after.targets[slot].boxes, targets.boxes)
        image = views.weak.tensor[slot].permute(1, 2, 0).contiguous().numpy()
        wanted = geometric.unlabeled(image, UNLABELED, slot)
        assert np.array_equal(turned.weak.tensor[slot].permute(1, 2, 0).numpy(), wanted)


def test_targets_keep_their_classes() -> None:
    targets = Targets(torch.tensor([[45.0, 25, 55, 35], [99, 59, 100, 60], [40, 20, 60, 40]]), torch.tensor([3, 1, 2]))
    geometric = GeometricAugmentation(10.0)
    seen = set()
    for position in range(30):
        found = geometric.labeled(noise(*WIDE), targets, LABELED, position)[1]
        seen.add(tuple(found.classes.tolist()))
    assert seen == {(3, 1, 2), (3, 2)}
