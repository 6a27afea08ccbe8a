"""What a check of the data finds: each planted fault with its file and item, and nothing on a clean set."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest

from sed.checks.check import check_data
from sed.checks.duplicates import DISTANCE, near_pairs
from sed.checks.findings import ERROR, KEPT, KEPT_IN_ALL, KINDS, NOTE, SEVERITIES, WARNING, Findings
from sed.checks.images import examine, examine_files
from sed.data.catalog import load_dataset
from sed.data.errors import DataError
from sed.data.hashes import difference_hash
from tests.reference.faults import FAULTS
from tests.reference.small_data import SETUP, Small

# Faults of the config alone, or that need a set of another kind; each has its own test below
ELSEWHERE = {
    "train-empty",
    "test-empty",
    "no-unlabelled",
    "split-and-unlabelled",
    "refused",
    "classes-unequal",
    "told",
    "classes-missing",
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A folder with the clean set, to be copied."""
    folder = tmp_path_factory.mktemp("clean") / "set"
    Small(folder)
    return folder


@pytest.fixture
def small(tmp_path):
    return Small(tmp_path / "set")


def run(small, **changes):
    return check_data(small.write(), replace(SETUP, num_classes=small.num_classes, **changes))


def codes(report):
    return {code for code, _ in report.found.counts}


def codes_of(found, severity):
    return {finding.code for finding in found.kept if finding.kind.severity == severity}


def assert_named(report, code, file, item):
    """Whether a finding of this kind names the file and the item."""
    hits = [f for f in report.found.kept if f.code == code]
    assert any(f.file.endswith(file) and item in f.item for f in hits), hits


# ---------------------------------------------------------------------------------------------- faults
def test_a_clean_set_has_no_finding_at_all(small):
    report = run(small)
    assert report.found.kept == []
    assert (report.labelled, report.unlabelled, len(report.boxes)) == (14, 8, 28)
    assert report.balance == {"labelled": {"cat": 9, "dog": 9, "owl": 10}, "test": {"cat": 4, "dog": 4, "owl": 4}}


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.code for fault in FAULTS])
def test_each_fault_alone_is_found_with_file_and_item_and_nothing_else_is(small, fault):
    file, item = fault.plant(small)
    report = run(small)
    assert_named(report, fault.code, file, item)
    assert codes(report) - fault.also <= {fault.code}


def test_all_faults_together_are_found(small):
    wanted = [(fault.code, *fault.plant(small)) for fault in FAULTS]
    report = run(small)
    for code, file, item in wanted:
        assert_named(report, code, file, item)
    assert all(kind.remedy and kind.title for kind in KINDS.values())


def test_every_kind_of_finding_has_a_fault_that_shows_it():
    assert {fault.code for fault in FAULTS} | ELSEWHERE == set(KINDS)
    assert len(FAULTS) >= 30
    assert {kind.severity for kind in KINDS.values()} == set(SEVERITIES)


@pytest.mark.parametrize("fault", [f for f in FAULTS if KINDS[f.code].severity != ERROR], ids=lambda f: f.code)
def test_sets_without_errors_load(small, fault):
    """Sets with warnings and notes only are read by training without an error."""
    fault.plant(small)
    if any(KINDS[code].severity == ERROR for code in codes(run(small))):
        assert any(KINDS[code].severity == ERROR for code in fault.also)
        return
    names = small.write()
    for role, sources in names.items():
        for source in sources:
            assert len(load_dataset(source, labeled=role != "unlabelled")) > 0


def test_faults_of_the_config(small):
    names = small.write()
    empty = {role: [] for role in names}
    found = check_data(empty, SETUP).found
    assert {code for code, _ in found.counts} == {"train-empty", "test-empty", "no-unlabelled"}
    assert codes(run(small, percent=10.0)) >= {"split-and-unlabelled"}
    without = check_data(names | {"unlabelled": []}, replace(SETUP, method="supervised")).found
    assert without.kept == []
    found = check_data(names | {"unlabelled": []}, replace(SETUP, count=99)).found
    assert [f.item for f in found.kept if f.code == "refused"] == ["SEMI.LABELED_PERCENT or _COUNT"]


def test_an_error_of_the_loader_alone_is_found_too(small):
    def read(source, root, labeled):
        raise DataError(f"{source}: I do not like it")

    report = check_data(small.write(), SETUP, read=read)
    assert_named(report, "refused", "train.json", "DATASETS.TRAIN")


def test_a_split_is_counted_by_what_it_labels(small):
    names = small.write() | {"unlabelled": []}
    report = check_data(names, replace(SETUP, count=4))
    assert (report.labelled, report.unlabelled, len(report.boxes)) == (4, 10, 8)
    rare = [f for f in report.found.kept if f.code == "class-rare"]
    assert {f.item for f in rare} == {"category cat", "category dog", "category owl"}
    assert all("before the split" in f.text for f in rare)


def test_copies_within_a_split_set_are_reported_by_the_roles_of_training(small):
    """Whether a copy within one json stops training depends on the side of the split that it falls on."""
    small.bare(70)
    small.bare(71)
    shutil.copy(small.folder / "70.jpg", small.folder / "71.jpg")
    names = small.write() | {"unlabelled": []}
    seen = set()
    for fold in range(12):
        report = check_data(names, replace(SETUP, count=8, fold=fold))
        seen |= codes(report) & {"same-unlabelled", "same-within"}
    assert seen == {"same-unlabelled", "same-within"}


def test_very_unequal_classes(small):
    for i in range(120):
        number = 200 + i // 60
        if i % 60 == 0:
            small.image(small.train, number, boxes=0, size=(600, 640))
        small.box(small.train, number, [10 * (i % 60), 8, 8, 60], 1)
    small.train["categories"].append({"id": 9, "name": "fox"})
    small.val["categories"].append({"id": 9, "name": "fox"})
    small.box(small.train, 1, [90, 10, 20, 20], 9)
    small.num_classes = 4
    report = run(small)
    assert_named(report, "classes-unequal", "train.json", "category fox")


def test_a_number_written_as_text_is_read_as_training_reads_it(small):
    small.box(small.train, 3, [10, 70, 20, 20], image_id="3")
    report = run(small)
    assert report.found.kept == []
    assert len(report.boxes) == 29


def test_classes_are_compared_by_name(small):
    small.val["categories"] = [{"id": {1: 5, 2: 1, 5: 2}[c["id"]], "name": c["name"]} for c in small.val["categories"]]
    for a in small.val["annotations"]:
        a["category_id"] = {1: 5, 2: 1, 5: 2}[a["category_id"]]
    assert run(small).found.kept == []
    small.val["categories"] = [c for c in small.val["categories"] if c["name"] != "owl"]
    small.val["annotations"] = [a for a in small.val["annotations"] if a["category_id"] != 2]
    report = run(small)
    assert codes_of(report.found, ERROR) == set()
    assert_named(report, "classes-missing", "val.json", "categories")


def test_annotations_of_an_image_that_cannot_be_used_are_no_further_finding(small):
    small.train["images"][2]["width"] = "wide"
    small.train["categories"][0]["name"] = None
    small.num_classes = 2
    found = run(small).found
    assert codes_of(found, ERROR) == {"image-sides", "item-fields", "classes-differ"}


def test_large_boxes_that_stick_out_now_and_then_are_not_taken_for_corners(small):
    for image in small.train["images"]:
        small.box(small.train, image["id"], [2, 60, 100, 33])
    small.train["annotations"][-1]["bbox"] = [60, 60, 100, 33]
    assert codes(run(small)) == {"box-sticks-out"}


def test_only_so_many_items_of_a_kind_are_kept_but_all_are_counted():
    found = Findings()
    for i in range(KEPT + 50):
        found.add("box-empty", "a.json", f"annotation {i}", "zero")
    found.add("box-empty", "b.json", "annotation 0", "zero")
    found.add("image-grey", "x.png", "image 1", "grey")
    (warning, code, number, kept), (note, *_) = found.groups()
    assert (warning.severity, code, number, len(kept)) == (WARNING, "box-empty", KEPT + 51, KEPT + 1)
    assert note.severity == NOTE
    assert found.total(WARNING) == KEPT + 51
    assert not found.has(ERROR)
    for i in range(KEPT_IN_ALL + 5):  # each in its own file, as faults of images are
        found.add("image-alpha", f"{i}.png", f"image {i}", "RGBA")
    assert [(number, len(kept)) for _, code, number, kept in found.groups() if code == "image-alpha"] == [
        (KEPT_IN_ALL + 5, KEPT_IN_ALL)
    ]
    with pytest.raises(KeyError):
        found.add("no-such-kind", "a", "b", "c")


def test_the_report_is_plain_json(small):
    for fault in FAULTS:
        fault.plant(small)
    content = json.loads(json.dumps(run(small).as_dict()))
    assert {row["code"] for row in content["findings"]} >= {fault.code for fault in FAULTS}
    assert all(row["items"] for row in content["findings"])


# ---------------------------------------------------------------------------------------------- images
def test_several_threads_find_the_same_as_one(clean):
    paths = sorted(str(path) for path in clean.rglob("*.jpg"))
    alone = examine_files(paths, 1, lambda results, total: results)
    totals = []
    several = examine_files(paths, 3, lambda results, total: totals.append(total) or results)
    assert several == alone
    assert totals == [len(paths)] == [28]


def test_a_hash_survives_what_keeps_a_picture_and_not_another_picture(small):
    grey = cv2.imread(str(small.folder / "1.jpg"), cv2.IMREAD_GRAYSCALE)
    other = cv2.imread(str(small.folder / "2.jpg"), cv2.IMREAD_GRAYSCALE)

    def distance(a, b):
        return bin(difference_hash(a) ^ difference_hash(b)).count("1")

    assert distance(grey, grey) == 0
    assert distance(grey, cv2.resize(grey, None, fx=0.5, fy=0.5)) <= 4
    assert distance(grey, (grey * 0.7 + 30).astype(np.uint8)) <= 4
    assert distance(grey, other) > 16
    ramp = np.tile(np.arange(0, 90, dtype=np.uint8), (80, 1))  # each field darker than its right neighbour
    assert difference_hash(ramp) == 2**64 - 1
    assert difference_hash(ramp[:, ::-1].copy()) == 0


def test_a_file_that_is_gone_or_empty_is_a_fact(tmp_path):
    assert examine(str(tmp_path / "x.jpg")).fault == "image-missing"
    (tmp_path / "y.png").touch()
    fact = examine(str(tmp_path / "y.png"))
    assert (fact.fault, fact.reason) == ("image-unreadable", "not a readable image (the file is empty)")


@pytest.mark.parametrize("old_numpy", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_near_pairs_are_those_of_comparing_all_with_all(seed, old_numpy, monkeypatch):
    if old_numpy:
        monkeypatch.delattr(np, "bitwise_count", raising=False)
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, 300, dtype=np.uint64)
    for i in range(100, 200):  # neighbours of the first ones at distances 0..9
        hashes[i] = hashes[i - 100]
        for bit in rng.choice(64, rng.integers(0, 10), replace=False):
            hashes[i] ^= np.uint64(1) << np.uint64(bit)
    values = [int(h) for h in hashes]
    wanted = {(i, j) for j in range(300) for i in range(j) if bin(values[i] ^ values[j]).count("1") <= DISTANCE}
    first, second = near_pairs(hashes)
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == wanted
    assert len(wanted) > 30


def test_near_pairs_of_many_hashes_take_seconds():
    hashes = np.random.default_rng(0).integers(0, 2**64, 50_000, dtype=np.uint64)
    hashes[1] = hashes[0] ^ np.uint64(0b1111)
    started = time.process_time()
    first, second = near_pairs(hashes)
    assert (first.tolist(), second.tolist()) == ([0], [1])
    assert time.process_time() - started < 20  # all with all: 1.25e9 comparisons


def test_a_test_image_that_is_itself_in_the_unlabelled_folder_is_left_out_there(small):
    (small.folder / "photos/link.jpg").symlink_to(small.folder / "101.jpg")
    report = run(small)
    assert codes(report) == {"same-unlabelled"}
    assert_named(report, "same-unlabelled", "photos/link.jpg", "image link.jpg")
