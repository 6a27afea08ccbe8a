"""The score distance between X and its half-size copy: by hand, against literal transcriptions, and at its limits."""

import math

import pytest
import torch

from sed.core.matching import match_views
from sed.core.structures import DenseLevel, DensePrediction, Images, QueryPrediction, RegionPrediction
from sed.core.views import downscale, pair_levels, valid_anchors
from sed.data.mapper import ImageInfo
from sed.data.records import Dataset
from sed.detectors.base import Detector, Features
from sed.evaluation.scales import format_distances, score_distance
from tests.reference.cases import CASES

NAMES = ("small_rcnn", "resnet_retinanet", "rt_detr")
SIZES = ((64, 64), (50, 60), (70, 40), (64, 96))
FILES = 2.0  # the files are larger than what the detector sees


def make(name):
    return next(case for case in CASES if case.name == name).make().eval()


def annotated(boxes, crowd=False):
    """Annotations of (x0, y0, x1, y1, class) on the detector's image, in the pixels of the file."""
    return [
        {"bbox": [FILES * v for v in (x0, y0, x1 - x0, y1 - y0)], "category_id": c, "iscrowd": int(crowd)}
        for x0, y0, x1, y1, c in boxes
    ]


def make_set(sizes, annotations, seed=0):
    """Noise images of `sizes`, a dataset with their annotations, and one batch of all."""
    source = torch.Generator().manual_seed(seed)
    pixels = [torch.randint(0, 256, (3, h, w), generator=source, dtype=torch.uint8) for h, w in sizes]
    files = [(round(h * FILES), round(w * FILES)) for h, w in sizes]
    records = [
        {"file_name": "", "image_id": i, "height": size[0], "width": size[1], "annotations": rows}
        for i, (size, rows) in enumerate(zip(files, annotations, strict=True))
    ]
    infos = [ImageInfo(i, (1 / FILES, 1 / FILES), size) for i, size in enumerate(files)]
    return Dataset("noise", records, ("a", "b", "c"), (1, 2, 3)), [(Images.from_list(pixels), infos)]


OBJECTS = [
    annotated([(4, 4, 30, 36, 0), (20, 10, 44, 40, 2)]) + annotated([(40, 40, 64, 64, 1)], crowd=True),
    annotated([(-5, 10, 20, 58, 1), (10, 70, 20, 90, 1)]),  # over the border; wholly outside
    [],
    annotated([(90, 2, 96, 60, 2)]),
]


# -------------------------------------------------------------------------------------------------------------- by hand
class Told(Detector):
    """Says what it was told: `logits(level, padded height)` [A, C] for each level of a pyramid, for every image."""

    size_divisibility, num_classes = 16, 2

    def __init__(self, logits, levels=(2, 3, 4), per_cell=1, regions=None):
        super().__init__()
        self.logits, self.levels, self.per_cell, self.told, self.asked = logits, levels, per_cell, regions, []
        self.heads = frozenset({"dense", "region"} if regions else {"dense"})

    def encode(self, images):
        return Features({}, images)

    def dense(self, features):
        height, width = features.images.padded_size
        levels = []
        for f in self.levels:
            grid = (height // 2**f, width // 2**f)
            logits = self.logits(f, height).expand(len(features.images), -1, -1)
            assert logits.shape[1] == grid[0] * grid[1] * self.per_cell
            valid = valid_anchors(features.images.sizes, f, grid, self.per_cell, "cpu")
            levels.append(DenseLevel(f, grid, logits, torch.zeros(*logits.shape[:2], 4), valid))
        return DensePrediction(tuple(levels))

    def regions(self, features, proposals):
        self.asked.append([p.tolist() for p in proposals])
        logits = self.told(features.images.padded_size[0], sum(map(len, proposals)))
        return RegionPrediction(logits, torch.zeros(len(logits), 1, 4), tuple(map(len, proposals)))

    def supervised_losses(self, batch):
        raise NotImplementedError

    def detect(self, images):
        raise NotImplementedError

    def plain_state_dict(self):
        return {}


def logit(*p):
    return torch.tensor(p, dtype=torch.float64).logit().float()


def test_anchors_by_hand():
    """32 x 32, one object over the left half: levels 3 and 4 of X pair with 2 and 3 of X^; 4 x 4 and 2 x 2 cells."""
    base = torch.full((16, 2), 0.1)
    base[1 * 4 + 1, 1] = 0.95  # the object's centre (8, 15) lies in column 1, row 1 of the stride 8
    base[2 * 4 + 0, 0] = 0.45  # inside, not at its centre: counts for nothing
    base[0 * 4 + 3, 0] = 0.65  # right of it: background
    coarse = torch.tensor([[0.92, 0.1], [0.1, 0.1], [0.1, 0.1], [0.1, 0.1]])  # centre in column 0, row 0

    def logits(level, height):
        if height == 32:
            return {2: torch.zeros(64, 2), 3: base.logit(), 4: coarse.logit()}[level]
        return {2: torch.full((16, 2), 0.1).logit(), 3: logit(0.4, 0.1).expand(4, 2), 4: torch.zeros(1, 2)}[level]

    dataset, loader = make_set([(32, 32)], [annotated([(0, 0, 16, 30, 1)])])
    found = score_distance(Told(logits), loader, dataset, "cpu")
    assert found["images"] == 1
    near = found["foreground"]  # |.95 - .1| at level 3, |.92 - .4| at level 4
    assert near["mean"] == pytest.approx((0.85 + 0.52) / 2)
    assert near["histogram"] == [0, 0, 0, 0, 0, 1, 0, 0, 1, 0]
    far = found["background"]  # columns 2 and 3: 8 cells of level 3, one with .65 - .1; 2 of level 4 with |.1 - .4|
    assert far["per_image"] == 10
    assert far["mean"] == pytest.approx((0.55 + 2 * 0.3) / 10)
    # GT: the best of class 1 by the centre's anchors, all levels: level 2 of X says .5, level 3 says .95, level 4 .1;
    # of X^ level 4, which has no partner, says .5, the others .1
    assert found["objects"]["mean"] == found["GT"] == pytest.approx(0.95 - 0.5)


def test_regions_by_hand():
    """Total variation at the ground truth: (.7 .2 .1) and (.5 .3 .2) are .2 apart."""
    rows = {32: torch.tensor([[0.7, 0.2, 0.1], [1, 0, 0]]), 16: torch.tensor([[0.5, 0.3, 0.2], [0, 0, 1]])}
    detector = Told(
        lambda f, height: torch.zeros((height // 2**f) ** 2, 1),
        regions=lambda height, count: (rows[height][:count] + 1e-30).log(),
    )
    dataset, loader = make_set([(32, 32)], [annotated([(0, 0, 16, 30, 1), (8, 8, 20, 32, 0)])])
    found = score_distance(detector, loader, dataset, "cpu")
    assert found["GT"] == found["regions"]["mean"] == pytest.approx((0.2 + 1) / 2)
    assert found["regions"]["histogram"][9] == 1  # the last bin holds 1
    assert sum(found["regions"]["histogram"]) == 2
    assert detector.asked == [[[[0, 0, 16, 30], [8, 8, 20, 32]]], [[[0, 0, 8, 15], [4, 4, 10, 16]]]]
    assert found["background"]["mean"] == 0  # every score is one half


def test_a_detector_to_which_scale_is_nothing_is_at_distance_0():
    def logits(level, height):  # cell i of level f of X and of level f - 1 of X^ say the same
        cells = (height // 2**level) ** 2
        return torch.sin(torch.arange(cells * 4 * 3, dtype=torch.float32)).view(cells * 4, 3)

    detector = Told(logits, levels=(2, 3, 4, 5), per_cell=4)
    detector.size_divisibility = 32
    dataset, loader = make_set([(64, 64)] * 2, OBJECTS[:2])
    found = score_distance(detector, loader, dataset, "cpu")
    for kind in ("foreground", "background"):
        assert found[kind]["mean"] == 0
        assert found[kind]["histogram"][0] == found[kind]["per_image"] > 0
    assert found["foreground"]["per_image"] == 3 * 3 * 4 / 2  # levels, objects, anchors a cell; 2 images


# ----------------------------------------------------------------------------------------------- literal transcriptions
def literal_truth(annotations, size):
    """Objects and crowds in the frame of X, as lists of (x0, y0, x1, y1, class)."""
    objects, crowds = [], []
    for a in annotations:
        x, y, w, h = (v / FILES for v in a["bbox"])
        box = [max(x, 0), max(y, 0), min(x + w, size[1]), min(y + h, size[0])]
        if a["iscrowd"]:
            crowds.append(box)
        elif box[2] > box[0] and box[3] > box[1]:
            objects.append([*box, a["category_id"]])
    return objects, crowds


def literal_anchors(one, other, n, objects, crowds):
    """Foreground and background distances of one level's anchors, one after the other."""
    rows, columns = one.grid
    per_cell, stride = one.logits.shape[1] // (rows * columns), 2**one.level
    near, far = [], []
    for i in range(one.logits.shape[1]):
        if not (one.valid[n, i] and other.valid[n, i]):
            continue
        p, q = (level.logits[n, i].sigmoid().tolist() for level in (one, other))
        distance = max(abs(a - b) for a, b in zip(p, q, strict=True))
        y, x = divmod(i // per_cell, columns)
        centres = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in objects]
        if any(x * stride <= cx < (x + 1) * stride and y * stride <= cy < (y + 1) * stride for cx, cy in centres):
            near.append(distance)
            continue
        mx, my = (x + 0.5) * stride, (y + 0.5) * stride
        if not any(b[0] <= mx < b[2] and b[1] <= my < b[3] for b in [*objects, *crowds]):
            far.append(distance)
    return near, far


def same(summary, distances, images, bins=10):
    assert summary["per_image"] * images == pytest.approx(len(distances))
    assert summary["mean"] == pytest.approx(sum(distances) / len(distances), abs=1e-6)
    counts = [sum(min(int(d * bins), bins - 1) == b for d in distances) for b in range(bins)]
    off = [abs(count / images - got) for count, got in zip(counts, summary["histogram"], strict=True)]
    assert sum(off) <= 2 * 2 / images  # one on the edge of two bins may be rounded to either


@pytest.mark.parametrize("name", ["small_rcnn", "resnet_retinanet"])
@torch.no_grad()
def test_anchors_regions_and_objects_equal_the_definition(name):
    detector = make(name)
    dataset, loader = make_set(SIZES, OBJECTS)
    found = score_distance(detector, loader, dataset, "cpu")
    images = loader[0][0].pad_to_multiple(detector.size_divisibility * 2)
    views = [detector.encode(view) for view in (images, downscale(images, 1))]
    full, small = (detector.dense(view) for view in views)
    truths = [literal_truth(rows, size) for rows, size in zip(OBJECTS, SIZES, strict=True)]
    near, far, objects = [], [], []
    for n, (boxes, crowds) in enumerate(truths):
        for one, other in pair_levels(full, small, 1):
            a, b = literal_anchors(one, other, n, boxes, crowds)
            near += a
            far += b
        for x0, y0, x1, y1, c in boxes:
            if name == "small_rcnn":
                box = torch.tensor([[x0, y0, x1, y1]])
                nobody = [box[:0]] * len(SIZES)
                pair = [
                    detector.regions(view, [*nobody[:n], scaled, *nobody[n + 1 :]]).logits[0].softmax(0)
                    for view, scaled in zip(views, (box, box / 2), strict=True)
                ]
                objects.append(float((pair[0] - pair[1]).abs().sum() / 2))
            else:
                best = []
                for prediction, scale in ((full, 1), (small, 2)):
                    cx, cy = (x0 + x1) / 2 / scale, (y0 + y1) / 2 / scale
                    scores = [0.0]
                    for level in prediction.levels:
                        per_cell = level.logits.shape[1] // (level.grid[0] * level.grid[1])
                        cell = int(cy // 2**level.level) * level.grid[1] + int(cx // 2**level.level)
                        anchors = level.logits[n, cell * per_cell : (cell + 1) * per_cell, c]
                        scores += anchors.sigmoid().tolist()
                    best.append(max(scores))
                objects.append(abs(best[0] - best[1]))
    assert len(objects) == 4
    same(found["foreground"], near, len(SIZES))
    same(found["background"], far, len(SIZES))
    same(found["regions" if name == "small_rcnn" else "objects"], objects, len(SIZES))
    assert found["GT"] == pytest.approx(sum(objects) / 4, abs=1e-6)
    assert 0 < found["GT"] < 1


@pytest.mark.parametrize("name", ["detr", "rt_detr"])  # softmax and sigmoid
def test_queries_equal_the_definition(name):
    detector = make(name)
    size, size_divisibility = (128, 128), detector.size_divisibility * 2
    assert size[0] % size_divisibility == 0
    with torch.no_grad():
        _, loader = make_set([size], [[]])
        full = detector.queries(detector.encode(loader[0][0]))
        small = detector.queries(detector.encode(downscale(loader[0][0], 1)))
    cx, cy, w, h = full.boxes[0, 1].tolist()  # an object just where a query is
    box = [128 * v for v in (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)]
    dataset, loader = make_set([size], [annotated([(*box, 0)])])
    found = score_distance(detector, loader, dataset, "cpu")
    partners = match_views([(full, small)])[0][0].tolist()
    near, far = [], []
    clipped = [min(max(v, 0), 128) for v in box]
    for i, j in enumerate(partners):
        p, q = full.logits[0, i], small.logits[0, j]
        if full.softmax:
            distance = float((p.softmax(0) - q.softmax(0)).abs().sum() / 2)
        else:
            distance = float((p.sigmoid() - q.sigmoid()).abs().max())
        x, y, w, h = (128 * v for v in full.boxes[0, i].tolist())
        mine = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        wide = max(0.0, min(mine[2], clipped[2]) - max(mine[0], clipped[0]))
        high = max(0.0, min(mine[3], clipped[3]) - max(mine[1], clipped[1]))
        area = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (mine, clipped)) - wide * high
        (near if wide * high / area >= 0.5 else far).append(distance)
    assert near
    same(found["foreground"], near, 1)
    if far:
        same(found["background"], far, 1)
    assert found["GT"] == found["foreground"]["mean"]


class Asked(Told):
    """Queries instead: the same three for both views, in another order on X^."""

    def __init__(self):
        super().__init__(None)
        self.heads, self.seen = frozenset({"query"}), []

    def queries(self, features):
        self.seen.append((features.images.padded_size, features.images.sizes))
        logits = torch.tensor([[[4.0, -4], [-4, 4], [-2, -2]]])
        boxes = torch.tensor([[[0.25, 0.5, 0.5, 0.5], [0.75, 0.5, 0.5, 0.5], [0.5, 0.5, 0.1, 0.1]]])
        order = [0, 1, 2] if len(self.seen) % 2 else [2, 0, 1]
        return QueryPrediction(logits[:, order], boxes[:, order], softmax=False)


def test_matched_queries_are_compared_and_padding_is_out_of_the_way():
    detector = Asked()
    # the left half of the second, 50 x 60 image: query 0's box covers half of it, 30 x 25 of 30 x 50
    dataset, loader = make_set([(64, 64), (50, 60)], [[], annotated([(0, 0, 30, 50, 0)])])
    found = score_distance(detector, loader, dataset, "cpu")
    assert detector.seen == [((s, t), ((s, t),)) for s, t in [(64, 64), (32, 32), (64, 64), (32, 32)]]
    assert found["foreground"]["per_image"] == 1 / 2
    assert found["background"]["per_image"] == 5 / 2
    assert found["GT"] == found["background"]["mean"] == 0


# ---------------------------------------------------------------------------------------------- limits
@pytest.mark.parametrize("name", NAMES)
def test_without_an_object_there_is_no_number(name):
    dataset, loader = make_set([(128, 128)] * 2, [[], []])
    found = score_distance(make(name), loader, dataset, "cpu")
    assert math.isnan(found["GT"])
    assert found["foreground"]["per_image"] == 0
    assert found["background"]["per_image"] > 0
    assert "nan (GT)" in format_distances(found)


@pytest.mark.parametrize("name", NAMES)
def test_without_an_image_there_is_no_number(name):
    dataset, _ = make_set([(128, 128)], [[]])
    found = score_distance(make(name), [], dataset, "cpu")
    assert found["images"] == 0
    assert math.isnan(found["GT"])


@pytest.mark.parametrize("name", NAMES)
def test_images_in_batches_or_one_by_one_are_the_same(name):
    detector, sizes = make(name), [(128, 128)] * 3
    objects = [annotated([(4, 4, 60, 90, 0), (20, 30, 100, 120, 2)]), [], annotated([(0, 0, 128, 128, 1)])]
    dataset, [(images, infos)] = make_set(sizes, objects)
    single = [(Images(images.tensor[i : i + 1], images.sizes[i : i + 1]), infos[i : i + 1]) for i in range(3)]
    one, other = (score_distance(detector, loader, dataset, "cpu") for loader in ([(images, infos)], single))
    assert one["images"] == other["images"] == 3
    assert one["GT"] == pytest.approx(other["GT"], abs=1e-5, nan_ok=True)
    for kind in ("foreground", "background"):
        assert one[kind]["per_image"] == pytest.approx(other[kind]["per_image"])
        assert one[kind]["mean"] == pytest.approx(other[kind]["mean"], abs=1e-5, nan_ok=True)


def test_the_detector_is_left_as_it_was():
    detector = make("small_rcnn")
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    dataset, loader = make_set(SIZES, OBJECTS)
    score_distance(detector, loader, dataset, "cpu")
    assert not detector.training
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    assert all(weight.grad is None for weight in detector.parameters())
