"""The digits benchmark (docs/method.md 12)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from sed.data import digits
from sed.data.catalog import load_dataset
from sed.data.errors import DataError

COUNTS = (12, 4, 4)


def fingerprint(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits.make_digits(tmp_path_factory.mktemp("digits"), "digits", COUNTS)


def test_the_same_bytes_every_time(made: Path, tmp_path: Path) -> None:
    again = fingerprint(digits.make_digits(tmp_path, "digits", COUNTS))
    assert len(again) == sum(COUNTS) + 4
    assert again == fingerprint(made)


@pytest.mark.parametrize(("variant", "low", "high"), [("digits", 26, 100), ("digits_hard", 14, 84)])
def test_images_and_boxes_are_as_specified(tmp_path: Path, variant: str, low: int, high: int) -> None:
    folder = digits.make_digits(tmp_path, variant, (60, 1, 1))
    content = json.loads((folder / "train.json").read_text())
    assert [c["name"] for c in content["categories"]] == list("01234")
    per_image = np.bincount([a["image_id"] for a in content["annotations"]], minlength=61)[1:]
    assert per_image.min() >= 1
    assert per_image.max() <= 5
    heights = [a["bbox"][3] for a in content["annotations"]]
    assert low <= min(heights) < low * 1.3
    assert high * 0.75 < max(heights) <= high
    for image in content["images"]:
        pixels = cv2.imread(str(folder / "train" / image["file_name"]))
        assert pixels.shape == (128, 128, 3) == (image["height"], image["width"], 3)
    for x, y, w, h in (a["bbox"] for a in content["annotations"]):
        assert min(x, y) >= 0
        assert x + w <= 128
        assert y + h <= 128


def test_boxes_are_tight_to_the_ink() -> None:
    glyphs, _ = digits.load_glyphs()
    rng = np.random.default_rng(0)
    for glyph in glyphs[:40]:
        covered = digits.ink(rng, glyph, 50.0) > digits.FACE
        assert covered[0].any()
        assert covered[-1].any()
        assert covered[:, 0].any()
        assert covered[:, -1].any()
        assert covered.shape[0] in (48, 49, 50)


def test_boxes_overlap_little(made: Path) -> None:
    content = json.loads((made / "train.json").read_text())
    for image in content["images"]:
        boxes = [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]]
        for i, (x, y, w, h) in enumerate(boxes):
            for X, Y, W, H in boxes[:i]:
                cover = max(0, min(x + w, X + W) - max(x, X)) * max(0, min(y + h, Y + H) - max(y, Y))
                assert cover <= 0.1 * min(w * h, W * H)


def test_no_source_digit_is_shared_between_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[str, set[int]] = {split: set() for split in digits.SPLITS}
    glyphs, _ = digits.load_glyphs()
    numbers = {glyph.tobytes(): i for i, glyph in enumerate(glyphs)}
    draw, write = digits.ink, digits._write_split
    current = []

    def spy_ink(rng, glyph, height):
        used[current[-1]].add(numbers[glyph.tobytes()])
        return draw(rng, glyph, height)

    def spy_write(work, split, *rest):
        current.append(split)
        write(work, split, *rest)

    monkeypatch.setattr(digits, "ink", spy_ink)
    monkeypatch.setattr(digits, "_write_split", spy_write)
    digits.make_digits(tmp_path, "digits", (60, 30, 30))
    total = len(glyphs)
    assert max(used["train"]) < int(0.7 * total) <= min(used["tune"])
    assert max(used["tune"]) < int(0.85 * total) <= min(used["test"])
    assert all(len(indices) > 20 for indices in used.values())


def test_made_once_and_again_when_the_version_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = digits.make_digits(tmp_path, "digits", (2, 1, 1))
    before = (folder / "train.json").stat().st_mtime_ns
    digits.make_digits(tmp_path, "digits", (2, 1, 1))
    assert (folder / "train.json").stat().st_mtime_ns == before
    monkeypatch.setattr(digits, "VERSION", digits.VERSION + 1)
    digits.make_digits(tmp_path, "digits", (2, 1, 1))
    assert (folder / "train.json").stat().st_mtime_ns > before
    assert [p.name for p in tmp_path.iterdir()] == ["digits"], "temporary folders are left behind"


def test_a_link_to_another_disk_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, root = tmp_path / "elsewhere" / "digits", tmp_path / "root"
    root.mkdir()
    (root / "digits").symlink_to(elsewhere)
    assert digits.make_digits(root, "digits", COUNTS) == root / "digits"  # made where nothing was
    monkeypatch.setattr(digits, "VERSION", digits.VERSION + 1)
    digits.make_digits(root, "digits", COUNTS)  # and made again
    assert (root / "digits").is_symlink()
    assert json.loads((elsewhere / "version.json").read_text())["version"] == digits.VERSION
    assert [p.name for p in elsewhere.parent.iterdir()] == ["digits"]


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "_move_into_place", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        digits.make_digits(tmp_path, "digits", (1, 1, 1))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_digits_set_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="not a digits set"):
        digits.make_digits(tmp_path, "digits", (1, 1, 1))
    assert (tmp_path / "digits" / "thesis.txt").read_text() == "mine"


def test_unknown_variant(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="digits_hard"):
        digits.make_digits(tmp_path, "letters")


def test_load_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(digits.make_digits, "__defaults__", ("digits", COUNTS))
    dataset = load_dataset("digits_tune")
    assert dataset.name == "digits_tune"
    assert dataset.classes == tuple("01234")
    assert len(dataset) == COUNTS[1]
