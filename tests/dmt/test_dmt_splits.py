import random
from itertools import pairwise

import pytest

from dmt.splits import difference_maximised, hold_out, nested_split, per_class_split
from sed.data.errors import DataError


# ---------------------------------------------------------------- segmentation
@pytest.mark.parametrize(
    ("count", "ratio", "labeled"),
    [
        (10582, 105.82, 100),
        (10582, 50, 211),
        (10582, 20, 530),  # 529 = 1 mod 8
        (10582, 8, 1322),
        (10582, 4, 2645),
        (2975, 29.75, 100),
        (2975, 8, 371),
        (2975, 4, 743),
        (9, 1, 9),  # 9 = 1 mod 8, but there is no tenth
        (16, 1.77, 10),
    ],
)
def test_sizes(count, ratio, labeled):
    one, two = nested_split(count, ratio, 0)
    assert len(one) == labeled
    assert sorted(one + two) == list(range(count))


def authors_files(names, ratios, folds):
    """The published manner: one seed of the global generator, one list, shuffled again and again."""
    state = random.getstate()
    random.seed(7777)
    names, found = list(names), {}
    for fold in range(folds):
        random.shuffle(names)
        for ratio in ratios:
            size = int(len(names) / ratio)
            size += size % 8 == 1
            found[fold, ratio] = names[:size], names[size:]
    random.setstate(state)
    return found


def test_the_lists_are_the_authors():
    names = [f"image {i}" for i in range(2975)]
    for (fold, ratio), expected in authors_files(names, [4, 8, 29.75], 3).items():
        found = nested_split(len(names), ratio, fold)
        assert tuple([names[i] for i in part] for part in found) == expected


# Where the first names of the published *_labeled_<fold>.txt stand in the sorted list.
PUBLISHED = {
    (10582, 105.82): [(8270, 8180, 1072), (6510, 3897, 754), (9523, 4280, 5983)],  # fold 0: 2010_003648, ...
    (2975, 29.75): [(2419, 399, 2411), (607, 2177, 1583), (2777, 2879, 19)],
}


@pytest.mark.parametrize("fold", range(3))
@pytest.mark.parametrize("published", PUBLISHED)
def test_the_published_splits(published, fold):
    assert nested_split(*published, fold)[0][:3] == PUBLISHED[published][fold]


def test_nested_within_a_fold_and_different_between_folds():
    for fold in range(3):
        sets = [set(nested_split(1000, ratio, fold)[0]) for ratio in (100, 50, 20, 8, 4, 2, 1)]
        assert all(small < great for small, great in pairwise(sets))
    assert len({nested_split(1000, 8, fold) for fold in range(3)}) == 3
    assert nested_split(1000, 8, 0, seed=1) != nested_split(1000, 8, 0)


def test_the_global_generator_has_no_say_and_is_left_alone():
    random.seed(0)
    state = random.getstate()
    one = nested_split(100, 8, 1), difference_maximised(range(10)), per_class_split([0, 1] * 9, 2, 0)
    assert random.getstate() == state
    random.seed(1)
    assert one == (nested_split(100, 8, 1), difference_maximised(range(10)), per_class_split([0, 1] * 9, 2, 0))


@pytest.mark.parametrize(("count", "ratio", "fold"), [(10, 0.5, 0), (10, 11, 0), (10, 2, -1), (0, 1, 0)])
def test_splits_that_cannot_be(count, ratio, fold):
    with pytest.raises(DataError, match="expected a ratio from 1 to"):
        nested_split(count, ratio, fold)


# ---------------------------------------------------------------- classification
LABELS = [i * 7 % 10 for i in range(600)]  # 60 of each of 10 classes


@pytest.mark.parametrize("per_class", [1, 4, 25, 60])
def test_so_many_of_each_class(per_class):
    labeled, unlabeled = per_class_split(LABELS, per_class, 0)
    assert sorted(LABELS[i] for i in labeled) == [c for c in range(10) for _ in range(per_class)]
    assert sorted(labeled + unlabeled) == list(range(600))


def test_classes_nest_within_a_fold_and_differ_between_folds():
    for fold in range(5):
        sets = [set(per_class_split(LABELS, count, fold)[0]) for count in (1, 4, 25, 40)]
        assert all(small < great for small, great in pairwise(sets))
    assert len({per_class_split(LABELS, 4, fold)[0] for fold in range(5)}) == 5


def test_a_class_is_drawn_alike_whatever_the_others_hold():
    more = [*LABELS, 3, 3, 3]
    zeros = [i for i in per_class_split(LABELS, 4, 0)[0] if LABELS[i] == 0]
    assert zeros == [i for i in per_class_split(more, 4, 0)[0] if more[i] == 0]
    assert per_class_split([0, 0, 1, 1, 0, 1], 2, 0) == ((1, 2, 3, 4), (0, 5))  # on every machine


def test_candidates_alone_are_drawn():
    pool = range(100, 600)
    labeled, unlabeled = per_class_split(LABELS, 4, 0, pool)
    assert sorted(labeled + unlabeled) == list(pool)


@pytest.mark.parametrize(("per_class", "message"), [(61, "class 0 has 60 images, 61"), (0, "at least one")])
def test_more_than_there_are(per_class, message):
    with pytest.raises(DataError, match=message):
        per_class_split(LABELS, per_class, 0)


# ---------------------------------------------------------------- held out
def test_held_out_of_the_unlabelled_list():
    for fold in range(3):
        found = []
        for ratio in (50, 8, 2):
            labeled, unlabeled = nested_split(500, ratio, fold)
            held, rest = hold_out(unlabeled, 20)
            assert len(held) == 20
            assert rest + held == unlabeled
            assert not set(held) & set(labeled)
            found.append(held)
        assert len(set(found)) == 1  # the same at every ratio of a fold


def test_held_out_of_each_class_before_any_are_labelled():
    held, rest = hold_out(range(600), 5, LABELS)
    assert [LABELS[i] for i in held] == [c for c in range(10) for _ in range(5)]
    assert sorted(held + rest) == list(range(600))
    assert list(rest) == sorted(rest)
    for fold in range(3):
        for per_class in (1, 40):
            labeled, unlabeled = per_class_split(LABELS, per_class, fold, rest)
            assert not set(held) & set(labeled + unlabeled)
            assert len(labeled) + len(unlabeled) == 550


def test_cifar_leaves_49800():
    labels = [i % 10 for i in range(50_000)]
    held, rest = hold_out(range(50_000), 20, labels)
    assert (len(held), len(rest)) == (200, 49_800)


@pytest.mark.parametrize(("indices", "count", "labels"), [([1, 2], 2, None), ([], 1, None), ([1, 2], 0, None)])
def test_nothing_left(indices, count, labels):
    with pytest.raises(DataError, match="held-out images: expected from 1 to"):
        hold_out(indices, count, labels)
    with pytest.raises(DataError, match="from 1 to 59"):
        hold_out(range(600), 60, LABELS)


# ---------------------------------------------------------------- check 12: difference-maximised sampling
@pytest.mark.parametrize(
    ("count", "size", "overlap"), [(7, 5, 3), (10, 8, 6), (100, 80, 60), (211, 168, 125), (530, 424, 318)]
)
def test_two_parts(count, size, overlap):
    indices = range(1000, 1000 + count)
    one, two = difference_maximised(indices)
    assert len(one) == len(two) == size
    assert len(set(one) & set(two)) == overlap
    assert set(one) | set(two) == set(indices)
    left_out = count - size
    assert one[left_out:] == two[: count - 2 * left_out]  # R[n:L - n]


def test_parts_depend_on_the_seed_and_the_overlap():
    assert difference_maximised(range(50), 0) == difference_maximised(range(50), 0)
    assert difference_maximised(range(50), 0) != difference_maximised(range(50), 1)
    one, two = difference_maximised(range(50), common=1.0)
    assert one == two
    one, two = difference_maximised(range(50), common=0.0)
    assert not set(one) & set(two)
    assert (len(one), len(two)) == (25, 25)


@pytest.mark.parametrize(("count", "common"), [(0, 0.6), (1, 0.6), (10, 1.1), (10, -1.5)])
def test_parts_that_cannot_be(count, common):
    with pytest.raises(DataError, match="one would be empty"):
        difference_maximised(range(count), common=common)
