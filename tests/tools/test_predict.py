"""tools/predict.py: a folder of images in, COCO json out."""

import json
import shutil

import cv2
import pytest

from sed.data.coco import load_coco
from sed.engine.inference import find_images, number_images
from tools import predict

CONFIG = "configs/quickstart.yaml"
OPTS = ["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.IMS_PER_BATCH", "2"]


@pytest.fixture
def photos(tmp_path, digits):
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for source, name in (("00000", "b"), ("00001", "a"), ("00002", "deep/c")):
        shutil.copy(digits / "train" / f"{source}.png", folder / f"{name}.png")
    return folder


@pytest.fixture
def run(tmp_path, weights, data_opts):
    def call(*flags, inputs):
        output = tmp_path / "out" / "found.json"
        words = ["--config-file", CONFIG, "--weights", weights, "--input", *map(str, inputs)]
        predict.main([*words, "--output", str(output), "--score-threshold", "0", *flags, *OPTS, *data_opts])
        return json.loads(output.read_text())

    return call


def test_boxes_are_in_the_pixels_of_the_file(run, photos):
    image = cv2.imread(str(photos / "a.png"))
    large = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(photos / "a_large.png"), large)  # its mean over 2 x 2 is the first image again
    rows = run(inputs=[photos])
    boxes = {name: [r["bbox"] for r in rows if r["file_name"] == name] for name in ("a.png", "a_large.png")}
    assert len(boxes["a.png"]) >= 3
    doubled = [[2 * v for v in box] for box in boxes["a.png"]]
    assert boxes["a_large.png"] == [pytest.approx(box, abs=0.02) for box in doubled]


def test_results_name_image_and_category(run, photos):
    rows = run(inputs=[photos])
    assert {(r["image_id"], r["file_name"]) for r in rows} == {(1, "a.png"), (2, "b.png"), (3, "deep/c.png")}
    assert {r["category_id"] for r in rows} <= {1, 2, 3, 4, 5}  # the json's own ids, which begin at 1
    assert all(0 <= r["score"] <= 1 for r in rows)


def test_the_threshold_leaves_the_rest_out(run, photos):
    scores = sorted(r["score"] for r in run(inputs=[photos]))
    middle = scores[len(scores) // 2]
    kept = run("--score-threshold", str(middle), inputs=[photos])
    assert 0 < len(kept) < len(scores)
    assert min(r["score"] for r in kept) >= middle


def test_predictions_can_be_trained_on(run, photos, tmp_path):
    content = run("--as-annotations", inputs=[photos])
    dataset = load_coco(tmp_path / "out" / "found.json", photos)
    assert [record["image_id"] for record in dataset.records] == [1, 2, 3]
    assert dataset.classes == ("0", "1", "2", "3", "4")
    assert sum(len(r["annotations"]) for r in dataset.records) == len(content["annotations"]) > 0
    assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"])


def test_an_unreadable_image_is_named_or_counted(run, photos, caplog):
    (photos / "broken.png").write_bytes((photos / "b.png").read_bytes()[:900])
    (photos / "text.jpg").write_text("no image")
    with pytest.raises(SystemExit, match=r"broken\.png"):
        run(inputs=[photos])
    rows = run("--skip-unreadable", inputs=[photos])
    assert "skipped 2 unreadable images" in caplog.text
    assert "broken.png" in caplog.text
    assert {r["file_name"] for r in rows} == {"a.png", "b.png", "deep/c.png"}


def test_bad_input_is_one_clear_line(run, photos, tmp_path, data_opts):
    with pytest.raises(SystemExit, match="nowhere: no such file or folder"):
        run(inputs=[tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="no image in this folder"):
        run(inputs=[tmp_path / "empty"])
    words = ["--config-file", CONFIG, "--input", str(photos), "--output", str(tmp_path / "x.json"), *data_opts]
    with pytest.raises(SystemExit, match=r"holds no model_best\.pth"):
        predict.main([*words, "OUTPUT_DIR", str(tmp_path / "empty")])
    with pytest.raises(SystemExit, match=r"lost\.pth: no such file"):
        predict.main([*words[:2], "--weights", "lost.pth", *words[2:]])


def test_files_are_found_once_below_a_common_folder(photos):
    single = [str(photos / "b.png"), str(photos / "a.png"), str(photos / "b.png")]
    root, files = find_images(single)
    assert (root, [f.name for f in files]) == (photos, ["b.png", "a.png"])
    root, files = find_images([str(photos / "deep"), str(photos / "a.png")])
    assert root == photos.resolve()
    assert [f.relative_to(root).as_posix() for f in files] == ["deep/c.png", "a.png"]


def test_numbered_files_keep_their_numbers(tmp_path):
    assert number_images([tmp_path / "000000000139.jpg", tmp_path / "000000000285.jpg"]) == [139, 285]
    assert number_images([tmp_path / "139.jpg", tmp_path / "deep/0139.jpg"]) == [1, 2]
    assert number_images([tmp_path / "139.jpg", tmp_path / "x.jpg"]) == [1, 2]
