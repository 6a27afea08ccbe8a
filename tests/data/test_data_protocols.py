"""Which images every convention and protocol labels: published numbers, the projects' own sampling, hand-made sets."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator

import numpy as np
import pytest

from sed.data.errors import DataError
from sed.data.protocols import (
    MAX_SEED,
    choose_35k,
    choose_full,
    choose_per_class,
    choose_sed,
    choose_soft_teacher,
    choose_stac,
    choose_unbiased_teacher,
)
from sed.data.splits import hash_order, split

TRAIN2017 = 118287
EMPTY = 1021  # images of train2017 without a box


def content(labels: dict[int, list], classes: int = 2) -> dict:
    """A COCO json: image id -> class ids of its boxes, where a negative one is a crowd."""
    boxes = [(i, c) for i, found in labels.items() for c in found]
    return {
        "images": [{"id": i} for i in labels],
        "annotations": [
            {"id": n, "image_id": i, "category_id": abs(c), "iscrowd": int(c < 0)} for n, (i, c) in enumerate(boxes, 1)
        ],
        "categories": [{"id": c, "name": f"class {c}"} for c in range(1, classes + 1)],
    }


@pytest.fixture(scope="module")
def train2017() -> dict:
    """As many images as train2017, as many of them without a box, in no order, ids with gaps."""
    order = list(range(7, 7 + 3 * TRAIN2017, 3))
    random.Random(0).shuffle(order)
    return content({i: [] if place < EMPTY else [1] for place, i in enumerate(order)})


@pytest.fixture
def numpy_state() -> Iterator[None]:
    """The projects seed numpy's global generator; leave it as it was."""
    state = np.random.get_state()  # noqa: NPY002
    yield
    np.random.set_state(state)  # noqa: NPY002


def ids_of(made: dict) -> list:
    return [image["id"] for image in made["images"]]


# ---------------------------------------------------------------- the published numbers


def test_numbers_of_images_at_10_percent(train2017: dict) -> None:
    ids = ids_of(train2017)
    assert len(choose_sed(ids, 10).labeled) == 11828
    assert len(choose_soft_teacher(ids, 10, 1).labeled) == 11828
    assert [len(choose_stac(ids, 10, seed).labeled) for seed in range(1, 6)] == [11285, 11261, 11234, 11262, 11235]
    like = choose_unbiased_teacher(train2017, 10, 1)
    assert len(like.labeled) == 11726
    assert len(like.labeled | like.unlabeled) == 117266
    fives = [len(choose_stac(ids, 5, seed).labeled) for seed in range(1, 6)]
    assert (min(fives), max(fives)) == (5756, 5772)


@pytest.mark.parametrize(("percent", "wanted"), [(0.5, 591), (1, 1182), (2, 2365), (5, 5914), (10, 11828)])
def test_numbers_of_images_of_the_published_percents(percent: float, wanted: int) -> None:
    every = range(TRAIN2017)
    assert len(choose_sed(every, percent).labeled) == len(choose_soft_teacher(every, percent, 1).labeled) == wanted


def test_numbers_of_the_index_file(train2017: dict) -> None:
    """The lengths of the lists in dataseed/COCO_supervision.txt."""
    published = {0.01: 11, 0.1: 117, 0.5: 586, 1.0: 1172, 2.0: 2345, 5.0: 5863, 10.0: 11726}
    for percent, wanted in published.items():
        assert len(choose_unbiased_teacher(train2017, percent, 1).labeled) == wanted


def test_coco_35k_and_full_have_the_published_numbers() -> None:
    train, val = range(82783), range(100000, 100000 + 40504)
    made = [content({i: [] for i in part}) for part in (val, train, list(val)[::9][:4500] + list(val)[1::81][:500])]
    choice = choose_35k(*made)
    assert [len(part) for part in (choice.labeled, choice.unlabeled, choice.test)] == [35504, 82783, 5000]
    assert choice.labeled | choice.test == set(val)
    assert choice.labeled.isdisjoint(choice.test)
    assert choice.unlabeled == set(train)
    assert choice.notes == ()
    full = choose_full(content({i: [] for i in range(118287)}), content({-1 - i: [] for i in range(123403)}))
    assert (len(full.labeled), len(full.unlabeled), full.notes) == (118287, 123403, ())


# ---------------------------------------------------------------- this project's own rule


def test_it_labels_what_a_run_labels() -> None:
    every = [{"image_id": i, "annotations": []} for i in range(500)]
    for percent, count, fold in ((10, 0, 0), (0.7, 0, 4), (0, 33, 2)):
        labeled, unlabeled = split(every, percent, count, fold)
        choice = choose_sed([r["image_id"] for r in every][::-1], percent, count, fold)
        assert choice.labeled == {r["image_id"] for r in labeled}
        assert choice.unlabeled == {r["image_id"] for r in unlabeled}
        assert (choice.convention, choice.reads_labels) == ("sed", False)


def test_percents_are_nested_and_folds_differ() -> None:
    chosen = [choose_sed(range(2000), percent, fold=2).labeled for percent in (0.5, 1, 2, 5, 10, 50)]
    assert [len(part) for part in chosen] == [10, 20, 40, 100, 200, 1000]
    assert all(small < large for small, large in itertools.pairwise(chosen))
    folds = [choose_sed(range(2000), 10, fold=fold).labeled for fold in range(5)]
    shared = [len(a & b) for a, b in itertools.combinations(folds, 2)]
    assert 5 < min(shared)  # 20 expected of two draws
    assert max(shared) < 45


# ---------------------------------------------------------------- the projects' own sampling, as they have it


def as_in_semi_coco(ids: list, percent: float, seed: int, offset: int) -> set:
    np.random.seed(seed + offset)  # noqa: NPY002
    total = int(percent / 100.0 * len(ids))
    index = set(np.random.choice(range(len(ids)), size=total, replace=False))  # noqa: NPY002
    return {ids[i] for i in range(len(ids)) if i in index}


def as_in_prepare_coco_data(ids: list, percent: float, seed: int) -> set:
    np.random.seed(seed)  # noqa: NPY002
    total = int(percent / 100.0 * len(ids))
    index = set(np.random.choice(range(len(ids)), size=total))  # noqa: NPY002
    return {ids[i] for i in range(len(ids)) if i in index}


def as_in_divide_label_unlabel(made: dict, percent: float, run: int, path) -> tuple[set, set]:
    """The list that Detectron2's loader gives it (test_d2_splits holds it against the loader), then its indices."""
    boxes = {a["image_id"] for a in made["annotations"] if a["iscrowd"] == 0}
    dicts = [i for i in sorted(ids_of(made)) if i in boxes]
    index = set(json.loads(path.read_text())[str(percent)][str(run)])
    return {dicts[i] for i in index}, {dicts[i] for i in range(len(dicts)) if i not in index}


@pytest.mark.usefixtures("numpy_state")
@pytest.mark.parametrize(("percent", "seed"), [(0.5, 1), (1.0, 2), (5.0, 3), (10.0, 4), (10.0, 5)])
def test_soft_teacher_and_stac_sample_as_their_scripts(percent: float, seed: int) -> None:
    ids = [5 * i + 3 for i in range(4001)]
    random.Random(seed).shuffle(ids)
    for offset in (0, 12345):
        choice = choose_soft_teacher(ids, percent, seed, offset)
        assert choice.labeled == as_in_semi_coco(ids, percent, seed, offset)
        assert choice.unlabeled == set(ids) - choice.labeled
        assert f"offset {offset}" in choice.notes[0]
    choice = choose_stac(ids, percent, seed)
    assert choice.labeled == as_in_prepare_coco_data(ids, percent, seed)
    assert choice.unlabeled == set(ids) - choice.labeled
    assert not choice.reads_labels


def test_the_order_of_the_json_matters_to_them_and_not_to_us() -> None:
    ids = list(range(1000))
    for choose in (choose_soft_teacher, choose_stac):
        assert choose(ids, 10, 1).labeled != choose(ids[::-1], 10, 1).labeled
    assert choose_sed(ids, 10).labeled == choose_sed(ids[::-1], 10).labeled


def test_rounding_is_that_of_their_scripts() -> None:
    """0.7 % of 1000 is 7, and 6 in the floating-point order of their scripts."""
    assert len(choose_soft_teacher(range(1000), 0.7, 1).labeled) == 6
    assert len(choose_sed(range(1000), 0.7).labeled) == 7


def test_unbiased_teacher_with_its_index_file(tmp_path, train2017: dict) -> None:
    generator = random.Random(1)
    file = {str(p): {str(run): generator.sample(range(117266), n) for run in range(3)} for p, n in ((10.0, 11726),)}
    path = tmp_path / "COCO_supervision.txt"
    path.write_text(json.dumps(file))
    for percent, run in ((10, 0), (10.0, 2)):
        choice = choose_unbiased_teacher(train2017, percent, run, path)
        assert (choice.labeled, choice.unlabeled) == as_in_divide_label_unlabel(train2017, 10.0, run, path)
        assert choice.reads_labels
        assert f"{EMPTY} of {TRAIN2017} images" in choice.notes[0]
        assert choice.notes[1] == f"indices of COCO_supervision.txt, 10.0, run {run}"


@pytest.mark.usefixtures("numpy_state")
def test_unbiased_teacher_without_a_file_draws_as_its_authors_did() -> None:
    """Their index file was made by `np.random.choice(range(n), size, replace=False)` (their issue 22)."""
    made = content({i: [] if i % 5 == 0 else [1, -2] for i in range(300)})
    dicts = [i for i in range(300) if i % 5]
    choice = choose_unbiased_teacher(made, 10, 3)
    assert choice.labeled == as_in_semi_coco(dicts, 10, 3, 0)
    assert choice.labeled | choice.unlabeled == set(dicts)
    assert "drawn anew" in choice.notes[1]


def test_boxes_count_as_in_detectron2_s_loader() -> None:
    made = content({1: [1], 2: [], 3: [-1], 4: [-1, 1], 5: [1], 6: [1], 7: [1], 8: [1]})
    outlines = {5: [[0, 0, 1, 1]], 6: [[0, 0, 1, 1], [0, 0, 1, 1, 2, 0]], 7: {"counts": [0], "size": [1, 1]}, 8: []}
    for a in made["annotations"]:
        if a["image_id"] in outlines:
            a["segmentation"] = outlines[a["image_id"]]
    choice = choose_unbiased_teacher(made, 50, 1)
    assert choice.labeled | choice.unlabeled == {1, 4, 6, 7, 8}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such index file"),
        ("[1", "not an index file"),
        ("[1]", r'indices at \["10.0"\]\["1"\]; its percents are none'),
        ('{"10.0": [1]}', "its runs of 10.0 none"),
        ('{"5.0": {"1": [1]}}', "its percents are 5.0"),
        ('{"10.0": {"2": [1], "3": [1]}}', "its runs of 10.0 2, 3"),
        ('{"10.0": {"1": [1, 2]}}', "10 % of the 30 images with a box are 3; it has 2 indices, 2 different ones"),
        ('{"10.0": {"1": [1, 2, 30]}}', "3 indices, 2 different ones in 0 to 29"),
        ('{"10.0": {"1": [1, 2, 2]}}', "3 indices, 2 different ones"),
        ('{"10.0": {"1": [1, 2, "3"]}}', "3 indices, 2 different ones"),
        ('{"10.0": {"1": []}}', "0 indices"),
    ],
)
def test_index_files_that_do_not_fit(tmp_path, text: str | None, message: str) -> None:
    path = tmp_path / "index.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        choose_unbiased_teacher(content({i: [1] for i in range(30)}), 10, 1, path)
    assert "index.txt" in str(caught.value)


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_seeds_that_numpy_does_not_take(seed: int) -> None:
    with pytest.raises(DataError, match="seed"):
        choose_stac(range(100), 10, seed)


@pytest.mark.parametrize(("percent", "labels"), [(0.5, 0), (100, 100), (120, 120)])
def test_none_or_all_is_no_split(percent: float, labels: int) -> None:
    for choose in (choose_sed, choose_soft_teacher, choose_stac):
        with pytest.raises(DataError, match=f"would label {labels} images; expected 1 to 99"):
            choose(range(100), percent, **({} if choose is choose_sed else {"seed": 1}))


# ---------------------------------------------------------------- K images per class


def greedy(made: dict, count: int, fold: int) -> set:
    """In hash order, label each image that shows a class of which fewer than `count` images are labelled."""
    shown = {i: {a["category_id"] for a in made["annotations"] if a["image_id"] == i} for i in ids_of(made)}
    have = {c["id"]: 0 for c in made["categories"]}
    chosen = set()
    for i in hash_order(ids_of(made), fold):
        if any(have[c] < count for c in shown[i]):
            chosen.add(i)
            for c in shown[i]:
                have[c] += 1
    return chosen


@pytest.fixture(scope="module")
def mixed() -> dict:
    """300 images of five classes, each rarer than the one before, several on most images."""
    generator = random.Random(4)
    return content({i: [c for c in range(1, 6) if generator.random() < 0.8 / c] for i in range(300)}, classes=5)


@pytest.mark.parametrize("fold", range(5))
def test_per_class_is_the_greedy_walk(mixed: dict, fold: int) -> None:
    chosen = [choose_per_class(mixed, count, fold).labeled for count in (1, 2, 5, 10, 30)]
    assert [set(part) for part in chosen] == [greedy(mixed, count, fold) for count in (1, 2, 5, 10, 30)]
    assert all(small < large for small, large in itertools.pairwise(chosen))
    for count, part in zip((1, 2, 5, 10, 30), chosen, strict=True):
        for c in range(1, 6):
            on = {a["image_id"] for a in mixed["annotations"] if a["category_id"] == c}
            assert len(on & part) >= count


def test_per_class_by_hand() -> None:
    first, second, third, fourth = hash_order([1, 2, 3, 4], 0)
    made = content({first: [1], second: [1], third: [1, 2], fourth: [-2]})
    one = choose_per_class(made, 1)
    assert one.labeled == {first, third}, "a crowd is no object"
    assert one.unlabeled == {second, fourth}
    assert (one.convention, one.reads_labels) == ("per_class", True)
    with pytest.raises(
        DataError, match=r"--per-class 2: 1 classes are on fewer images \(class 2 on 1\); ask for at mos"
    ):
        choose_per_class(made, 2)


def test_per_class_depends_on_ids_and_fold_only(mixed: dict) -> None:
    turned = {key: value[::-1] for key, value in mixed.items()}
    assert choose_per_class(turned, 5).labeled == choose_per_class(mixed, 5).labeled
    assert len({choose_per_class(mixed, 5, fold).labeled for fold in range(5)}) == 5


def test_a_class_on_no_image_is_noted() -> None:
    choice = choose_per_class(content({1: [1], 2: [1]}, classes=3), 1)
    assert len(choice.labeled) == 1
    assert choice.notes[1] == "2 classes are on no image and stay without labels: class 2, class 3"


def test_per_class_that_labels_everything() -> None:
    with pytest.raises(DataError, match="2 images per class of 2 would label 2 images"):
        choose_per_class(content({1: [1], 2: [1]}, classes=1), 2)


# ---------------------------------------------------------------- errors


def test_other_numbers_than_the_published_ones_are_noted() -> None:
    val, train, minival = (content({i: [] for i in part}) for part in (range(10), range(20, 25), range(3)))
    note = choose_35k(val, train, minival).notes[0]
    assert note.startswith("not the published numbers of images: {'labeled': 7, 'unlabeled': 5, 'test': 3}")
    assert "123403" in choose_full(val, train).notes[0]


def test_files_in_the_wrong_place() -> None:
    a, b, c = (content({i: [] for i in part}) for part in (range(10), range(5, 15), range(20, 25)))
    with pytest.raises(DataError, match=r"5 images are in both the labelled and the unlabelled file.* id 5"):
        choose_full(a, b)
    with pytest.raises(DataError, match="10 images are in both"):
        choose_35k(a, a, content({1: []}))
    with pytest.raises(DataError, match="5 of 5 minival images are not in --annotations"):
        choose_35k(a, b, c)
    with pytest.raises(DataError, match="0 of 10 minival"):
        choose_35k(a, c, a)
