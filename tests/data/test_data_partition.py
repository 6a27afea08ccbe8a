"""The data of a run: split, annotations removed, empty images left out, and the checks between the sets."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from sed.data import images
from sed.data.catalog import load_dataset
from sed.data.errors import DataError
from sed.data.partition import Data, Split, check_num_classes, check_test_images, partition
from sed.data.records import Dataset

OPTIONS = {"method": "sed", "filter_empty": False, "num_classes": 2, "classes_key": "MODEL.X.NUM_CLASSES"}


def never() -> Dataset:
    raise AssertionError("was read")


@pytest.fixture
def loaders(make_coco) -> Callable[[str, int], Callable[[], Dataset]]:
    """loaders(name, seed) -> a function that reads a set of 6 images."""

    def make(name: str, seed: int) -> Callable[[], Dataset]:
        coco = make_coco([(40, 60)] * 6, name=name, seed=seed)
        return partial(load_dataset, str(coco.write()))

    return make


def run(train, unlabeled=None, tests=lambda: [], divide=Split(), **options) -> Data:  # noqa: B008 (frozen)
    return partition(train, unlabeled, tests, divide=divide, **{**OPTIONS, **options})


def ids(records: list[dict]) -> list[int]:
    return [record["image_id"] for record in records]


@pytest.mark.parametrize("divide", [Split(count=2, fold=1), Split(percent=40.0, fold=1)])
def test_a_split(loaders, divide: Split) -> None:
    train = loaders("train", 0)
    data = run(train, divide=divide)
    assert len(data.labeled) == 2
    assert sorted(ids(data.labeled.records) + ids(data.unlabeled)) == list(range(10, 16))
    assert all(record["annotations"] for record in data.labeled.records)
    assert not any("annotations" in record for record in data.unlabeled)
    assert (data.labeled.classes, data.labeled.category_ids) == (("dog", "cat"), (3, 7))
    assert data.tests == ()


def test_an_unlabelled_set_and_tests(loaders) -> None:
    train, extra, first, second = (loaders(name, seed) for seed, name in enumerate("abcd"))
    data = run(train, extra, lambda: [first(), second()])  # extra is labelled: its annotations must go
    assert (len(data.labeled), len(data.unlabeled)) == (6, 6)
    assert not any("annotations" in record for record in data.unlabeled)
    assert [test.name for test in data.tests] == [first().name, second().name]


def test_the_supervised_baseline_reads_no_unlabelled_image(loaders) -> None:
    train = loaders("train", 0)
    assert run(train, never, method="supervised").unlabeled == []
    split = run(train, divide=Split(count=2), method="supervised")  # the same labelled images as for the other methods
    assert (len(split.labeled), len(split.unlabeled)) == (2, 4)


def test_empty_labelled_images(make_coco, caplog) -> None:
    coco = make_coco([(40, 60)] * 6)
    coco.content["annotations"] = coco.content["annotations"][:1]
    train = partial(load_dataset, str(coco.write()))
    assert len(run(train, divide=Split(count=4)).labeled) == 4
    with caplog.at_level(logging.INFO):
        assert ids(run(train, filter_empty=True, method="supervised").labeled.records) == [10]
    assert re.search(r"set\.json: \d labelled images have no box and are left out; DATALOADER\.FILTER_", caplog.text)
    fold = next(f for f in range(9) if 10 not in ids(run(train, divide=Split(count=1, fold=f)).labeled.records))
    with pytest.raises(DataError, match=r"set\.json: none of its 1 images has a box"):
        run(train, divide=Split(count=1, fold=fold), filter_empty=True)


def test_configs_that_exclude_each_other(loaders) -> None:
    train = loaders("train", 0)
    with pytest.raises(DataError, match=r"DATASETS\.UNLABELED and a split .* exclude each other"):
        run(never, never, divide=Split(count=1))
    for none in ({}, {"divide": Split(percent=100.0)}):
        with pytest.raises(DataError, match=r"SEMI\.METHOD is sed, but there is no unlabelled image"):
            run(train, **none)
    with pytest.raises(DataError, match="expected 1 to 6"):
        run(train, divide=Split(count=7))
    with pytest.raises(DataError, match=r"MODEL\.X\.NUM_CLASSES is 5, but .*set\.json has 2 categories \(dog, cat\)"):
        run(train, divide=Split(count=1), num_classes=5)


def test_no_image_is_in_two_sets(loaders, make_coco) -> None:
    train, test = loaders("train", 0), loaders("test", 1)
    split = Split(count=3)
    with pytest.raises(DataError, match=r"both in the (un)?labelled and in the validation set"):
        run(train, None, lambda: [test(), train()], split)
    with pytest.raises(DataError, match=r"\(validation\) are the same image, byte for byte \(6 such in all\)"):
        run(train, loaders("other", 2), lambda: [loaders("copy", 0)()])  # other files, the same bytes


def test_labelled_images_are_left_out_of_the_unlabelled(loaders, make_coco, caplog, monkeypatch) -> None:
    """All photos in one folder, some of them labelled; a copy under another name is a warning."""
    monkeypatch.setattr(logging.getLogger("sed"), "propagate", True)
    coco = make_coco([(40, 60)] * 6, name="all")
    content = coco.content["images"]
    folder = partial(load_dataset, str(coco.folder), labeled=False)
    coco.content["images"] = content[:2]
    coco.content["annotations"] = [a for a in coco.content["annotations"] if a["image_id"] in (10, 11)]
    some = partial(load_dataset, str(coco.write()))
    with caplog.at_level(logging.INFO):
        data = run(some, folder)
    names = [[Path(r["file_name"]).name for r in records] for records in (data.labeled.records, data.unlabeled)]
    assert names == [["0.jpg", "1.jpg"], ["2.jpg", "3.jpg", "4.jpg", "5.jpg"]]
    assert "2 images are labelled and were left out of the unlabelled ones" in caplog.text
    with caplog.at_level(logging.WARNING):
        assert len(run(loaders("train", 0), loaders("copy", 0)).unlabeled) == 6
    assert "are the same image, byte for byte (6 such in all); the second is trained on without" in caplog.text
    with pytest.raises(DataError, match=r"all 2 images of DATASETS.UNLABELED are labelled ones of .*all/set\.json"):
        run(some, some)
    coco.content["images"] = content  # all are listed, two have boxes: the others are unlabelled
    every = partial(load_dataset, str(coco.write()))
    for filter_empty, count in ((True, 4), (False, 0)):
        if count:
            assert len(run(every, folder, filter_empty=filter_empty).unlabeled) == count
        else:
            with pytest.raises(DataError, match="all 6 images of"):
                run(every, folder, filter_empty=filter_empty)


def test_all_sets_have_the_same_classes(loaders, make_coco) -> None:
    other = make_coco([(40, 60)] * 2, name="other", seed=2)
    other.content["categories"][0]["name"] = "bird"
    tests = [loaders("test", 1)(), load_dataset(str(other.write()))]
    with pytest.raises(DataError, match=r"other/set\.json has the categories .*they are matched by name"):
        run(loaders("train", 0), None, lambda: tests, Split(count=3))


def test_number_of_classes() -> None:
    dataset = Dataset("mine", [], ("a", "b"), (1, 2))
    check_num_classes(dataset, 2, "K")
    with pytest.raises(DataError, match=r"^K is 80, but mine has 2 categories \(a, b\); set it to 2$"):
        check_num_classes(dataset, 80, "K")


def test_a_test_set_may_lack_classes_which_are_told(make_coco, caplog) -> None:
    coco = make_coco(name="val", seed=1)
    coco.content["categories"] = [{"id": 7, "name": "cat"}]
    coco.content["annotations"] = [a for a in coco.content["annotations"] if a["category_id"] == 7]
    val = partial(load_dataset, str(coco.write()))
    train = partial(load_dataset, str(make_coco().write()))
    with caplog.at_level(logging.WARNING):
        (test,) = run(train, tests=lambda: [val()], method="supervised").tests
    assert (test.classes, test.category_ids) == (("dog", "cat"), (8, 7))
    assert [a["category_id"] for record in test.records for a in record["annotations"]] == [1, 1]
    (message,) = {record.getMessage() for record in caplog.records}
    assert "lacks 1 categories of " in message
    assert message.endswith("(dog): they have no AP")
    coco.content["categories"] = [{"id": 7, "name": "cow"}]
    coco.write()
    with pytest.raises(DataError, match="matched by name"):
        run(train, tests=lambda: [val()], method="supervised")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "truncated or damaged"),
        (lambda path: path.write_text("<html>"), "not a readable image"),
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: cv2.imwrite(str(path), np.zeros((20, 30, 3), np.uint8)), r"20 x 30 .* says 40 x 60"),
        (lambda path: cv2.imwrite(str(path), np.zeros((60, 40, 3), np.uint8)), r"60 x 40 .* says 40 x 60"),
    ],
)
def test_faults_of_test_images_are_found_before_training(make_coco, spoil, message) -> None:
    coco = make_coco()
    test = load_dataset(str(coco.write()))
    check_test_images([test])
    spoil(coco.folder / "2.jpg")
    with pytest.raises(DataError, match=rf"2\.jpg: .*{message}"):
        check_test_images([test])


def test_headers_of_test_images_are_read_once(make_coco, monkeypatch) -> None:
    test, seen, plain = load_dataset(str(make_coco().write())), [], images._header
    monkeypatch.setattr(images, "_header", lambda path, stream: seen.append(path) or plain(path, stream))
    check_test_images([test])
    assert seen == [record["file_name"] for record in test.records]


def test_test_images_in_the_folder_of_all_photos_are_left_out_and_counted(make_coco, caplog) -> None:
    photos = make_coco([(40, 60)] * 8)
    parts = {"train": [0, 1, 2], "val": [3, 4, 5]}
    content, loaders = photos.content, {}
    for name, places in parts.items():
        photos.content = {**content, **{key: [content[key][i] for i in places] for key in ("images", "annotations")}}
        loaders[name] = partial(load_dataset, str(photos.write(f"{name}.json")))
    folder = partial(load_dataset, str(photos.folder), labeled=False)
    with caplog.at_level(logging.INFO):
        data = run(loaders["train"], folder, lambda: [loaders["val"]()])
    assert sorted(Path(record["file_name"]).name for record in data.unlabeled) == ["6.jpg", "7.jpg"]
    assert "3 images are labelled and were left out of the unlabelled ones" in caplog.text
    assert "3 images are to evaluate on and were left out of the unlabelled ones" in caplog.text
    for number in (6, 7):
        (photos.folder / f"{number}.jpg").unlink()
    with pytest.raises(DataError, match=r"all 3 unlabelled images of DATASETS\.UNLABELED are in DATASETS\.TEST"):
        run(loaders["train"], folder, lambda: [loaders["val"]()])
