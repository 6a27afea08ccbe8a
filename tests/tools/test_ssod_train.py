"""`ssod train`: the whole of it on a small set, what it refuses, and that it goes on after a kill."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

from sed.cli import main as ssod
from sed.cli import train, train_config
from sed.config import load_config
from tests.reference.small_data import Small

TINY = """MODEL.WEIGHTS '' MODEL.BACKBONE.NAME build_small_fpn_backbone MODEL.BACKBONE.FREEZE_AT 0 MODEL.RESNETS.NORM GN
MODEL.FPN.NORM '' MODEL.FPN.OUT_CHANNELS 16 MODEL.ANCHOR_GENERATOR.SIZES [[12],[24],[48],[96]]
MODEL.ROI_BOX_HEAD.FC_DIM 32
INPUT.MIN_SIZE_TRAIN (64,64) INPUT.MIN_SIZE_TEST 64 SEMI.IMS_PER_BATCH_LABELED 2 SEMI.IMS_PER_BATCH_UNLABELED 2
SED_PLUS.THRESHOLD 0.1"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    small = Small(tmp_path_factory.mktemp("own") / "set")
    small.names = small.write()
    return small


def words(small, output, *more):
    data, photos = small.names["labelled"][0], str(small.folder / "photos")
    return ["--data", data, "--unlabeled", photos, "--output", str(output), "--steps", "40", *more, *shlex.split(TINY)]


def weights(output):
    return torch.load(output / "model.pth", weights_only=True)


@pytest.mark.slow
def test_the_whole_of_it(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ssod train", "--some", "words"])
    output = tmp_path / "run"
    train.main(words(small, output))
    told = capsys.readouterr().out
    assert "to evaluate on: a fifth of the labelled images, 3 images" in told
    cfg = load_config(output / "config.yaml")
    assert (cfg.SOLVER.MAX_ITER, cfg.SEMI.BURN_IN, cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.ENGINE) == (
        40,
        8,
        3,
        "torchvision",
    )
    page = (output / "report.html").read_text()
    verdict = page.split('class="lead">')[1].split("</p>")[0]
    assert verdict.startswith("With the same 11 labelled images and the same number of steps, SED plus")
    assert "There are too few test images to tell it from luck" in verdict  # 3
    assert "3 images to evaluate on" in verdict
    results = {name: json.loads((output / name / "results.json").read_text()) for name in ("supervised", "sed_plus")}
    best = max(row["AP"] for row in results["supervised"]["scores"].values())
    behind = results["sed_plus"]["scores"]["teacher"]["AP"] < best
    assert ("model.pth is the baseline, which is better here" in verdict) == behind
    assert weights(output).classes == ["cat", "dog", "owl"]
    assert "ssod train --some words" in page
    assert "Class by class" in page

    before = {path: path.stat().st_mtime_ns for path in output.glob("*/model_final.pth")}
    train.main(words(small, output))  # finished: nothing is trained again
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(SystemExit, match=r"asked for with steps 40, now 41.*choose another --output"):
        train.main([word if word != "40" else "41" for word in words(small, output)])


@pytest.mark.slow
def test_without_a_baseline_it_says_that_nothing_can_be_told(small, tmp_path, capsys):
    output = tmp_path / "run"
    train.main(words(small, output, "--no-baseline", "--method", "pseudo_label"))
    assert "Whether the unlabelled images helped only a baseline can tell" in capsys.readouterr().out
    assert sorted(p.name for p in output.iterdir() if p.is_dir()) == ["pseudo_label", "sets"]
    assert (output / "model.pth").exists()


@pytest.mark.slow
def test_time_is_turned_into_steps(small, tmp_path, monkeypatch):
    command = words(small, tmp_path / "run", "--method", "supervised")
    at = command.index("--steps")
    command[at : at + 2] = ["--time", "0.5s"]
    del command[command.index("--unlabeled") : command.index("--unlabeled") + 2]
    with pytest.raises(SystemExit, match=r"--time 0\.5s: that is \d+ steps here \(.* s a supervised step"):
        train.main(command)
    assert not (tmp_path / "run" / "sets").exists()
    assert not (tmp_path / "run" / "asked.json").exists()
    monkeypatch.setattr(train_config, "measure_steps", lambda *_: (0.2, 0.5))
    train.main([word if word != "0.5s" else "20s" for word in command])
    assert (
        load_config(tmp_path / "run" / "config.yaml").SOLVER.MAX_ITER == 77
    )  # (0.85 * 20 - 10 passes * 3 images * 0.05) / 0.2
    assert "# --time; 0.20 s a supervised step, 0.50 s" in (tmp_path / "run" / "config.yaml").read_text()


def test_errors_in_the_data_stop_it_before_training_and_all_are_named(tmp_path, capsys):
    small = Small(tmp_path / "set")
    for annotation in small.train["annotations"][:2]:
        annotation["category_id"] = 77
    small.names = small.write()
    with pytest.raises(SystemExit, match="77"):
        train.main(words(small, tmp_path / "run"))
    for annotation in small.train["annotations"][:2]:
        annotation["category_id"] = 1
    small.names = small.write()
    photos = sorted((small.folder / "photos").iterdir())
    for path in photos[:2]:  # their header and their end are whole
        content = bytearray(path.read_bytes())
        content[len(content) // 3 : -2] = bytes(len(content) - 2 - len(content) // 3)
        path.write_bytes(bytes(content))
    photos[2].write_bytes(photos[2].read_bytes()[:200])
    run = tmp_path / "run"
    code = None
    try:
        train.main(words(small, run))
    except SystemExit as stop:
        code = stop.code
    told = capsys.readouterr().out
    assert "warning: 1 unlabelled images cannot be read and were left out, such as" in told
    assert code == 1, told
    assert "error [image-" in told
    assert all(path.name in told for path in photos[:2])
    assert (run / "check.html").exists()
    assert not (run / "sets").exists()  # the same command after the repair reads all anew
    for path in photos[:2]:
        path.unlink()
    train.claim(train.parse(words(small, run)), run)  # and is not refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--data": "nowhere.json"}, "nowhere.json: neither a file, a folder nor a known data set"),
        ({"--unlabeled": "nowhere"}, "--unlabeled nowhere: no such file or folder"),
        ({"--val": "nowhere"}, "nowhere: neither a file, a folder"),
        ({"--output": "{file}"}, "expected a folder to write to"),
        ({"--output": "{full}"}, "holds something else than such a run"),
    ],
)
def test_what_cannot_be_is_one_line(small, tmp_path, change, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    command = words(small, tmp_path / "run", "--val", small.names["test"][0])
    for flag, value in change.items():
        command[command.index(flag) + 1] = value.format(file=tmp_path / "file", full=tmp_path / "full")
    with pytest.raises(SystemExit) as stop:
        train.main(command)
    assert message in str(stop.value)
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "5"], "--steps is 5; expected 40 or more"),
        (["--time", "5"], "'5' is no time"),
        ([], "--unlabeled PHOTOS is missing"),
        (["SEED", "3", "OUTPUT_DIR", "x"], "OUTPUT_DIR is chosen by ssod train itself"),
    ],
)
def test_what_the_command_line_refuses(more, message, capsys):
    extra = ["--unlabeled", "x"] if more else []
    with pytest.raises(SystemExit):
        train.parse(["--data", "x", *extra, *more])
    assert message in capsys.readouterr().err


def test_words_of_the_config_may_follow_the_photos():
    args = train.parse(["--data", "x", "--unlabeled", "a", "b", "SEED", "3"])
    assert (args.unlabeled, args.opts) == (["a", "b"], ["SEED", "3"])


def test_the_command_names_its_parts(capsys):
    ssod.main([])
    told = capsys.readouterr().out
    assert all(f"  {name} " in told for name in ssod.COMMANDS)
    with pytest.raises(SystemExit, match="ssod tain: no such command"):
        ssod.main(["tain"])


KILLS = int(os.environ.get("SED_KILLS", "2"))


@pytest.mark.slow
@pytest.mark.timeout(300 * max(KILLS, 2))
def test_killed_anywhere_it_ends_with_the_same_report_and_weights(small, tmp_path):
    def start(output):
        command = [sys.executable, "-m", "sed.cli.main", "train", *words(small, output)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def left(output):
        """What a run leaves that a user reads: scores of both runs and the verdict, without the seconds."""
        files = [output / name / "results.json" for name in ("supervised", "sed_plus")]
        scores = [path.read_text().split('"dataset"')[0] for path in files]
        return [*scores, (output / "report.html").read_text().split('class="lead">')[1].split(" AP50")[0]]

    began = time.monotonic()
    whole = start(tmp_path / "whole")
    told, _ = whole.communicate()
    assert whole.returncode == 0, told
    seconds, rng, killed = time.monotonic() - began, random.Random(7), 0
    for kill in range(KILLS):
        output = tmp_path / f"killed_{kill}"
        run = start(output)
        try:
            run.wait(rng.uniform(0.05, 0.95) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)  # the trainings, too
            run.wait()
            killed += 1
        again = start(output)
        told, _ = again.communicate()
        assert again.returncode == 0, told
        expected, found = weights(tmp_path / "whole"), weights(output)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert left(output) == left(tmp_path / "whole")
    assert killed
