"""tools/predict.py on each engine: a folder of images in, COCO json out."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from sed.cli import engines, predict
from sed.data.coco import load_coco
from sed.data.records import image_record
from sed.evaluation.files import find_images, number_images
from sed.evaluation.result_files import Rows

CONFIG = "configs/quickstart.yaml"


@pytest.fixture
def photos(tmp_path, digits):
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for source, name in (("00000", "b"), ("00001", "a"), ("00002", "deep/c")):
        shutil.copy(digits / "train" / f"{source}.png", folder / f"{name}.png")
    return folder


@pytest.fixture
def run(tmp_path, weights, opts):
    def call(*flags, inputs, more=()):
        output = tmp_path / "out" / "found.json"
        words = ["--config-file", CONFIG, "--weights", weights, "--input", *map(str, inputs)]
        predict.main([*words, "--output", str(output), "--score-threshold", "0", *flags, *opts, *more])
        return json.loads(output.read_text())

    return call


def test_boxes_are_in_the_pixels_of_the_file(run, photos, opts):
    image = cv2.resize(cv2.imread(str(photos / "a.png")), (256, 256), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(photos / "large.png"), image)
    driver = engines.pick(CONFIG, opts)
    mapper = driver.test_mapper(driver.load_config(CONFIG, opts))
    pixels, _ = mapper.test(image_record(photos / "large.png", 0))
    assert pixels.shape == (3, 128, 128)
    cv2.imwrite(str(photos / "seen.png"), pixels.numpy()[::-1].transpose(1, 2, 0))  # what the network sees of it
    rows = run(inputs=[photos])
    boxes = {name: [r["bbox"] for r in rows if r["file_name"] == name] for name in ("seen.png", "large.png")}
    assert len(boxes["seen.png"]) >= 3
    doubled = [[2 * v for v in box] for box in boxes["seen.png"]]
    assert boxes["large.png"] == [pytest.approx(box, abs=0.02) for box in doubled]


def test_results_name_image_and_category(run, photos):
    rows = run(inputs=[photos])
    assert {(r["image_id"], r["file_name"]) for r in rows} == {(1, "a.png"), (2, "b.png"), (3, "deep/c.png")}
    assert {r["category_id"] for r in rows} <= {1, 2, 3, 4, 5}  # the json's own ids, which begin at 1
    assert all(0 <= r["score"] <= 1 for r in rows)


def test_a_json_gives_its_images_and_their_ids(run, photos):
    rows = [{"id": i, "file_name": name, "height": 64, "width": 64} for i, name in ((7, "b.png"), (70, "deep/c.png"))]
    path = photos / "val.json"
    path.write_text(json.dumps({"images": rows}))
    assert {(r["image_id"], r["file_name"]) for r in run(inputs=[path])} == {(7, "b.png"), (70, "deep/c.png")}
    with pytest.raises(SystemExit, match=r"val\.json: a json is given alone"):
        run(inputs=[path, photos])
    path.write_text("{}")
    with pytest.raises(SystemExit, match=r"val\.json: not COCO: .*'images'"):
        run(inputs=[path])


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
    with pytest.raises(SystemExit, match=r"broken\.png: .*; or leave such files out by --skip-unreadable"):
        run(inputs=[photos])
    rows = run("--skip-unreadable", inputs=[photos])
    assert "skipped 2 unreadable images" in caplog.text
    assert "broken.png" in caplog.text
    assert {r["file_name"] for r in rows} == {"a.png", "b.png", "deep/c.png"}


def test_bad_input_is_one_clear_line(run, photos, tmp_path, opts):
    with pytest.raises(SystemExit, match="nowhere: no such file or folder"):
        run(inputs=[tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="no image in this folder"):
        run(inputs=[tmp_path / "empty"])
    words = ["--config-file", CONFIG, "--input", str(photos), "--output", str(tmp_path / "x.json"), *opts]
    with pytest.raises(SystemExit, match=r"holds no model_best\.pth"):
        predict.main([*words, "OUTPUT_DIR", str(tmp_path / "empty")])
    with pytest.raises(SystemExit, match="no such config file"):
        predict.main(["--config-file", "lost.yaml", *words[2:]])
    with pytest.raises(SystemExit, match=r"lost\.pth: (no such file|cannot be had)"):
        predict.main([*words[:2], "--weights", "lost.pth", *words[2:]])


def test_an_end_half_way_loses_nothing(run, photos, tmp_path, monkeypatch):
    whole = run(inputs=[photos])
    written, add = [], Rows.add

    def second_fails(rows, found):
        if written:
            raise KeyboardInterrupt
        add(rows, found)
        written.append(rows.count)

    monkeypatch.setattr(Rows, "add", second_fails)
    (tmp_path / "out" / "found.json").unlink()
    with pytest.raises(KeyboardInterrupt):
        run(inputs=[photos])
    kept = [json.loads(line) for line in (tmp_path / "out" / "found.json.part.jsonl").read_text().splitlines()]
    assert kept == whole[: written[0]]
    assert not (tmp_path / "out" / "found.json").exists()
    monkeypatch.undo()
    assert run(inputs=[photos]) == whole
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["found.json"]


def test_an_output_that_cannot_be_is_told_before_the_work(run, photos, tmp_path, opts, weights, monkeypatch):
    monkeypatch.setattr(predict, "detect_all", None)
    words = ["--config-file", CONFIG, "--weights", weights, "--input", str(photos)]
    (tmp_path / "file").touch()
    for output, message in (
        (tmp_path, "expected the path of a file to write, this is a folder"),
        ("/dev/full", "expected the path of a file to write, this is no regular file"),
        (tmp_path / "file" / "x.json", "expected a folder to write to"),
        ("/proc/x/p.json", "cannot be written to"),
    ):
        with pytest.raises(SystemExit, match=message):
            predict.main([*words, "--output", str(output), *opts])


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


def test_without_the_data_set_categories_are_numbers(run, photos, opts, caplog):
    rows = run(inputs=[photos], more=["DATASETS.TEST", "lost.json"])
    assert "category names are not known" in caplog.text
    assert {r["category_id"] for r in rows} <= {1, 2, 3, 4, 5}


@pytest.mark.slow
def test_it_runs_as_a_script(photos, tmp_path, weights, opts):
    output = tmp_path / "found.json"
    words = ["--config-file", CONFIG, "--weights", weights, "--input", str(photos), "--output", str(output), *opts]
    subprocess.run([sys.executable, "tools/predict.py", *words], check=True, cwd=Path(__file__).resolve().parents[2])
    assert isinstance(json.loads(output.read_text()), list)
