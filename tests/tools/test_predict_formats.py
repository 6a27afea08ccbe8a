"""`ssod predict`: the formats of other tools, a video, the images to label next, and the folder of a run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from sed.cli import predict
from sed.data.records import Dataset
from sed.data.yolo import load_yolo
from sed.evaluation.prediction_formats import label_studio, least_certain, write_yolo
from tests.data.test_own_sets import video

CONFIG = "configs/quickstart.yaml"
CLASSES = Dataset("", [], ("cat", "owl"), (3, 7))
RECORDS = [
    {"image_id": 1, "file_name": "/photos/a.jpg", "width": 200, "height": 100},
    {"image_id": 2, "file_name": "/photos/deep/b.png", "width": 50, "height": 50},
]
NAMES = {1: "a.jpg", 2: "deep/b.png"}
ROWS = [
    {"image_id": 1, "category_id": 7, "bbox": [20.0, 10.0, 100.0, 40.0], "score": 0.75},
    {"image_id": 1, "category_id": 3, "bbox": [190.0, 90.0, 20.0, 10.0], "score": 0.5},
]


def test_yolo_lines_by_hand(tmp_path):
    write_yolo(tmp_path, ROWS, RECORDS, NAMES, CLASSES)
    lines = (tmp_path / "labels/a.txt").read_text().splitlines()
    assert lines[0] == "1 0.350000 0.300000 0.500000 0.400000 0.7500"
    assert lines[1] == "0 1.000000 0.950000 0.100000 0.100000 0.5000"
    assert (tmp_path / "labels/deep/b.txt").read_text() == ""
    assert (tmp_path / "classes.txt").read_text() == "cat\nowl\n"


def test_label_studio_by_hand():
    first, second = label_studio(ROWS, RECORDS, NAMES, CLASSES)
    assert first["data"] == {"image": "a.jpg"}
    assert first["predictions"][0]["score"] == 0.625
    part = first["predictions"][0]["result"][0]
    assert part["value"] == {
        **{"x": 10.0, "y": 10.0, "width": 50.0, "height": 40.0, "rotation": 0},
        "rectanglelabels": ["owl"],
    }
    assert (part["original_width"], part["original_height"], part["score"]) == (200, 100, 0.75)
    assert (part["type"], part["from_name"], part["to_name"]) == ("rectanglelabels", "label", "image")
    assert second["predictions"] == [{"model_version": "ssod", "score": 0.0, "result": []}]


def test_doubt_by_hand():
    rows = [{"image_id": i, "score": s} for i, s in ((1, 0.9), (1, 0.5), (2, 0.5), (2, 0.5), (3, 1.0))]
    assert least_certain(rows, [1, 2, 3, 4], 2) == [(2, 0.5), (1, pytest.approx(0.34))]
    assert [i for i, _ in least_certain(rows, [1, 2, 3, 4], 9)] == [2, 1, 3, 4]


@pytest.fixture
def trained(tmp_path, weights, opts):
    """The folder of a training: its config with all words in it, and its weights."""
    from sed.cli.engines import pick
    from sed.config import leaves

    cfg = pick(CONFIG, opts).load_config(CONFIG, opts)
    nested: dict = {}
    for key, value in leaves(cfg):
        *parents, leaf = key.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = list(value) if isinstance(value, tuple) else value
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(nested))
    shutil.copy(weights, folder / "model.pth")
    return folder


@pytest.fixture
def photos(tmp_path, digits):
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for source, name in (("00000", "b"), ("00001", "a"), ("00002", "deep/c")):
        shutil.copy(digits / "train" / f"{source}.png", folder / f"{name}.png")
    return folder


def test_a_run_in_each_format_with_pictures_and_what_to_label_next(trained, photos, tmp_path):
    words = ["--run", str(trained), "--input", str(photos), "--score-threshold", "0"]
    more = ["--draw", str(tmp_path / "drawn"), "--least-certain", "2"]
    predict.main([*words, "--output", str(tmp_path / "out" / "found.json"), *more])
    rows = json.loads((tmp_path / "out" / "found.json").read_text())
    assert {row["file_name"] for row in rows} == {"a.png", "b.png", "deep/c.png"}
    assert sorted(p.name for p in (tmp_path / "drawn").rglob("*.png")) == ["a.png.png", "b.png.png", "c.png.png"]
    chosen = (tmp_path / "out" / "least_certain.txt").read_text().split()
    doubt = {}
    for row in rows:
        doubt[row["file_name"]] = doubt.get(row["file_name"], 0) + row["score"] * (1 - row["score"])
    expected = sorted(doubt, key=lambda name: -doubt[name])[:2]
    assert [str(Path(name).relative_to(photos)) for name in chosen] == expected
    assert (tmp_path / "out" / "least_certain.png").exists()

    predict.main([*words, "--output", str(tmp_path / "yolo"), "--format", "yolo"])
    assert json.loads((tmp_path / "yolo" / "detections.json").read_text()) == rows
    lines = [line for p in (tmp_path / "yolo/labels").rglob("*.txt") for line in p.read_text().splitlines()]
    assert len(lines) == len(rows)
    predict.main([*words, "--output", str(tmp_path / "tasks.json"), "--format", "label-studio"])
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [len(task["predictions"][0]["result"]) for task in tasks] == [
        sum(row["file_name"] == name for row in rows) for name in ("a.png", "b.png", "deep/c.png")
    ]


def test_yolo_predictions_read_back_as_labels(tmp_path):
    """Their boxes come back through the reader of YOLO sets, which takes no scores: they are cut off first."""
    write_yolo(tmp_path, [ROWS[0]], RECORDS[:1], NAMES, CLASSES)
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images/a.jpg"), np.zeros((100, 200, 3), np.uint8))
    path = tmp_path / "labels/a.txt"
    path.write_text(" ".join(path.read_text().split()[:5]))
    (record,) = load_yolo(tmp_path).records
    assert record["annotations"][0]["bbox"] == pytest.approx(ROWS[0]["bbox"], abs=0.01)
    assert record["annotations"][0]["category_id"] == 1


def test_labels_that_are_no_predictions_are_not_written_over(trained, photos, tmp_path):
    (tmp_path / "mine" / "labels").mkdir(parents=True)
    words = ["--run", str(trained), "--input", str(photos), "--format", "yolo"]
    with pytest.raises(SystemExit, match="its labels/ are no predictions of this command"):
        predict.main([*words, "--output", str(tmp_path / "mine")])
    shutil.copy(photos / "a.png", photos / "a.bmp")
    with pytest.raises(SystemExit, match=r"two images have the same label file, labels/a\.txt"):
        predict.main([*words, "--output", str(tmp_path / "other")])


def test_links_of_several_inputs_keep_their_own_names(trained, photos, tmp_path):
    (tmp_path / "more").mkdir()
    os.symlink(photos / "a.png", tmp_path / "more" / "linked.png")
    out = tmp_path / "found.json"
    words = ["--run", str(trained), "--output", str(out), "--score-threshold", "0"]
    predict.main([*words, "--input", str(photos), str(tmp_path / "more")])
    names = {row["file_name"] for row in json.loads(out.read_text())}
    assert names == {"photos/a.png", "photos/b.png", "photos/deep/c.png", "more/linked.png"}


def test_a_video_has_rows_by_frame_and_a_drawn_copy(trained, digits, tmp_path):
    pictures = [cv2.imread(str(digits / "train" / f"0000{i}.png")) for i in range(3)]
    clip = video(tmp_path / "clip.mp4", pictures)
    words = ["--run", str(trained), "--score-threshold", "0", "--output", str(tmp_path / "found.json")]
    predict.main([*words, "--input", str(clip), "--draw", str(tmp_path / "drawn")])
    rows = json.loads((tmp_path / "found.json").read_text())
    assert {row["image_id"] for row in rows} == {0, 1, 2}
    assert {row["file_name"] for row in rows} == {"clip.mp4"}
    drawn = cv2.VideoCapture(str(tmp_path / "drawn" / "clip_found.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert drawn.get(cv2.CAP_PROP_FPS) == 10
    with pytest.raises(SystemExit, match="a video is given alone"):
        predict.main([*words, "--input", str(clip), str(tmp_path)])
    with pytest.raises(SystemExit, match="a video is given alone, with --format results"):
        predict.main([*words, "--input", str(clip), "--format", "yolo", "--output", str(tmp_path / "yolo")])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.mp4", b"", "OpenCV cannot open this video"),
        ("text.avi", b"hello", "OpenCV cannot open this video"),
        (None, None, "no such file; expected a video"),
    ],
)
def test_what_is_no_video_is_one_line(trained, tmp_path, name, content, message):
    path = tmp_path / (name or "nowhere.mov")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit, match=message):
        predict.main(["--run", str(trained), "--input", str(path), "--output", str(tmp_path / "found.json")])


def test_no_run_and_an_unfinished_run_are_told(trained, photos, tmp_path):
    words = ["--input", str(photos), "--output", str(tmp_path / "found.json")]
    with pytest.raises(SystemExit, match=r"--run .*photos: no config\.yaml in it"):
        predict.main(["--run", str(photos), *words])
    (trained / "model.pth").unlink()
    with pytest.raises(SystemExit, match=r"no model\.pth in it; the training has not ended"):
        predict.main(["--run", str(trained), *words])
