"""Splits and their manifests."""

from __future__ import annotations

import hashlib
import itertools
import json
import random

import pytest

from sed import __version__
from sed.data.errors import DataError
from sed.data.splits import check_manifest, file_hash, id_hash, read_manifest, split, write_manifest


def records(count: int) -> list[dict]:
    return [{"image_id": i, "annotations": [{"category_id": i % 2, "iscrowd": int(i % 10 == 0)}]} for i in range(count)]


def ids(items: list[dict]) -> list[int]:
    return [item["image_id"] for item in items]


def test_a_split_is_a_partition() -> None:
    every = records(1000)
    labeled, unlabeled = split(every, percent=10)
    assert len(labeled) == 100
    assert sorted(ids(labeled) + ids(unlabeled)) == list(range(1000))
    assert all("annotations" in r for r in labeled)
    assert not any("annotations" in r for r in unlabeled)
    assert all("annotations" in r for r in every), "the caller's records were changed"


def test_it_depends_on_ids_and_fold_only() -> None:
    every = records(200)
    shuffled = every.copy()
    random.Random(0).shuffle(shuffled)
    assert set(ids(split(every, percent=10)[0])) == set(ids(split(shuffled, percent=10)[0]))
    folds = [frozenset(ids(split(every, percent=10, fold=fold)[0])) for fold in range(5)]
    assert len(set(folds)) == 5


def test_it_is_the_same_on_every_machine() -> None:
    assert ids(split(records(30), count=5, fold=0)[0]) == [7, 15, 18, 20, 25]


def test_smaller_shares_lie_within_larger_ones() -> None:
    every = records(500)
    shares = [set(ids(split(every, percent=p, fold=3)[0])) for p in (1, 5, 10, 100)]
    assert [len(s) for s in shares] == [5, 25, 50, 500]
    assert all(small < large for small, large in itertools.pairwise(shares))


def test_labelled_images_are_drawn_evenly() -> None:
    hits = [0] * 50
    for fold in range(400):
        for i in ids(split(records(50), count=10, fold=fold)[0]):
            hits[i] += 1
    assert min(hits) > 45  # 80 expected, standard deviation 8
    assert max(hits) < 115


@pytest.mark.parametrize(
    ("total", "percent", "wanted"), [(118287, 10, 11828), (118287, 1, 1182), (1500, 2, 30), (1000, 0.7, 7)]
)
def test_percent_is_rounded_down(total: int, percent: float, wanted: int) -> None:
    assert len(split([{"image_id": i} for i in range(total)], percent=percent)[0]) == wanted


@pytest.mark.parametrize("bad", [{}, {"percent": 10, "count": 5}, {"percent": 0.1}, {"count": 101}, {"percent": 101}])
def test_bad_sizes(bad: dict) -> None:
    with pytest.raises(DataError, match="split: "):
        split(records(100), **bad)


def test_nothing_to_split() -> None:
    with pytest.raises(DataError, match="would label"):
        split([], percent=10)


def test_manifest_round_trip(tmp_path) -> None:
    labeled, unlabeled = split(records(100), count=20, fold=2)
    path = tmp_path / "split.json"
    write_manifest(path, labeled, unlabeled, ["a", "b"], source="set.json", fold=2, count=20)
    content = read_manifest(path)
    assert content["labeled_ids"] == ids(labeled)
    assert content["labeled_sha256"] == id_hash(labeled)
    assert content["source"] == "set.json"
    assert content["fold"] == 2
    uncrowded = [r for r in labeled if r["image_id"] % 10]
    assert sum(content["boxes_per_class"].values()) == len(uncrowded)
    assert content["boxes_per_class"]["b"] == sum(r["image_id"] % 2 for r in uncrowded)
    assert content["images_per_class"] == content["boxes_per_class"]
    assert (content["tool_version"], content["convention"]) == (__version__, "sed")
    check_manifest(path, labeled[::-1], unlabeled)
    check_manifest(path, labeled)
    assert [p.name for p in tmp_path.iterdir()] == ["split.json"]


def test_manifest_of_what_was_not_split_here(tmp_path) -> None:
    labeled, unlabeled = split(records(100), count=20)
    for convention, written in (("", "given"), ("stac", "stac")):
        path = tmp_path / "split.json"
        details = {"notes": ["a note"], "left_out": 3}
        write_manifest(path, labeled, unlabeled, ["a", "b"], source="s", convention=convention, details=details)
        content = read_manifest(path)
        assert content["convention"] == written
        assert (content["notes"], content["left_out"]) == (["a note"], 3)


def test_images_and_boxes_per_class_are_counted_separately(tmp_path) -> None:
    def boxes(*classes: int) -> list[dict]:
        return [{"category_id": abs(c), "iscrowd": int(c < 0)} for c in classes]

    made = [{"image_id": 1, "annotations": boxes(0, 0, 1)}, {"image_id": 2, "annotations": boxes(0, -1)}]
    write_manifest(tmp_path / "split.json", made, [], ["a", "b", "c"], source="s")
    content = read_manifest(tmp_path / "split.json")
    assert content["boxes_per_class"] == {"a": 3, "b": 1, "c": 0}
    assert content["images_per_class"] == {"a": 2, "b": 1, "c": 0}


def test_a_manifest_of_the_first_release_is_read_and_checked(tmp_path) -> None:
    """Written by version 0.1.0, before conventions and versions were recorded."""
    labeled, unlabeled = split(records(100), count=20)
    old = {
        **{"version": 1, "source": "set.json", "fold": 0, "percent": 0.0, "count": 20},
        **{"labeled": 20, "unlabeled": 80, "labeled_sha256": id_hash(labeled), "unlabeled_sha256": id_hash(unlabeled)},
        **{"boxes_per_class": {"a": 8, "b": 10}, "labeled_ids": ids(labeled)},
    }
    path = tmp_path / "split.json"
    path.write_text(json.dumps(old))
    check_manifest(path, labeled, unlabeled)
    with pytest.raises(DataError, match="labeled images differ"):
        check_manifest(path, labeled[1:], unlabeled)


def test_file_hash(tmp_path) -> None:
    content = bytes(range(256)) * 9000  # more than one block
    (tmp_path / "a").write_bytes(content)
    assert file_hash(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    with pytest.raises(DataError, match="b: no such file"):
        file_hash(tmp_path / "b")


def test_manifest_of_another_split(tmp_path) -> None:
    labeled, unlabeled = split(records(100), count=20)
    path = tmp_path / "split.json"
    write_manifest(path, labeled, unlabeled, ["a", "b"], source="set.json", count=20)
    other, rest = split(records(100), count=20, fold=1)
    with pytest.raises(DataError, match=r"split\.json: the labeled images differ"):
        check_manifest(path, other, rest)
    with pytest.raises(DataError, match="the unlabeled images differ"):
        check_manifest(path, labeled, unlabeled[1:])


@pytest.mark.parametrize("text", [None, "{", "[]", '{"version": 0}'])
def test_no_manifest(tmp_path, text: str | None) -> None:
    path = tmp_path / "split.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match="manifest"):
        read_manifest(path)
