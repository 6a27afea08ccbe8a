"""Whole runs of every pipeline on tiny images: what they leave; killing them at every stage changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import dmt.build
import dmt.run
from dmt.config import load
from dmt.label_store import LabelStore
from dmt.run import Run, evaluate_only
from dmt.training import Training
from sed.config import ConfigError
from sed.detectors.weights import WeightsError
from sed.runtime.checkpoint_files import read
from sed.runtime.output import OutputError
from tests.reference import dmt_sets

SHORT = (
    "NUM_WORKERS 0 SOLVER.CHECKPOINT_PERIOD 2 SOLVER.AMP.ENABLED False SOLVER.MAX_STEPS 5 SOLVER.BASELINE_LR 0.05 "
    "MODEL.DEVICE cpu MODEL.INIT ['',''] MODEL.NORMALIZATION ['half','half'] METHOD.SHARES [0.5,1.0] "
    "TEST.EVAL_PERIOD 2 TEST.PICTURES 2"
)
SEGMENTATION = (
    f"{SHORT} DATASETS.NAME textured_digits SPLIT.RATIO 3.0 MODEL.NAME small_segmenter INPUT.CROP [16,16] "
    "INPUT.PAD_TEST [] SOLVER.BATCH_LABELED 2 SOLVER.BATCH_PSEUDO 3 SOLVER.BASELINE_EPOCHS 5.0 SOLVER.EPOCHS 2.0"
)
CLASSIFICATION = (
    f"{SHORT} DATASETS.NAME digits SPLIT.PER_CLASS 3 MODEL.NAME small_classifier INPUT.CROP_PADDING 1 "
    "SOLVER.BATCH_LABELED 3 SOLVER.BATCH_PSEUDO 4 SOLVER.EMA 0.9 SOLVER.SCHEDULE cosine METHOD.MUTUAL False "
    "METHOD.RETRAIN True METHOD.CLASS_BALANCED False METHOD.GAMMA_RAMP True METHOD.MIXUP 0.75"
)
PIPELINES = {
    "mutual": SEGMENTATION,
    "mutual, difference maximised": f"{SEGMENTATION} SPLIT.DIFFERENCE_MAXIMISED True METHOD.WEIGHT flip",
    "one model": f"{SEGMENTATION} METHOD.MUTUAL False METHOD.WEIGHT naive METHOD.GAMMA1 9.0",
    "best of all rounds, re-normalised": f"{SEGMENTATION} METHOD.MUTUAL False METHOD.KEEP_BEST True "
    "METHOD.RENORMALIZE True SPLIT.SELECT valtiny SPLIT.SELECT_COUNT 2",
    "online": f"{SEGMENTATION} METHOD.MUTUAL False METHOD.ONLINE True METHOD.THRESHOLD 0.4 SPLIT.SELECT tune",
    "re-trained": CLASSIFICATION,
    "re-trained, valtiny": f"{CLASSIFICATION} SPLIT.SELECT valtiny SPLIT.SELECT_COUNT 2 METHOD.MIXUP 0.0",
}


class KilledError(Exception):
    """In the place of a signal."""


@pytest.fixture(autouse=True)
def small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    choose = {"textured_digits": dmt_sets.squares, "digits": dmt_sets.classes}
    monkeypatch.setattr(dmt.build, "load_sets", lambda name, root: choose[name]())


def config(words: str, folder: Path):
    return load(None, [*words.split(), "OUTPUT_DIR", str(folder)])


def outcome(folder: Path) -> tuple[dict, dict]:
    """Every stage's result but for the time, and every stage's weights."""
    results = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))}
    for result in results.values():
        result.pop("seconds")
    return results, {path.parent.name: read(path) for path in sorted(folder.glob("*/model.pth"))}


def plant_kills(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Kill every training after its third step, every labelling at its second image, every stage before its result."""
    kills: set[tuple[str, str]] = set()

    def once(stage: str, where: str) -> None:
        if (stage, where) not in kills:
            kills.add((stage, where))
            raise KilledError

    step, write, save = Training._step, LabelStore.write, dmt.run.save_text

    def stepping(self, batch):
        if self.step == 3:
            once(self.folder.name, "step")
        step(self, batch)

    def writing(self, key, labels, codes):
        if any(self.folder.glob("*.png")):
            once(str(self.folder.relative_to(self.folder.parents[1])), "image")
        write(self, key, labels, codes)

    def saving(text, path):
        if Path(path).name in ("result.json", "summary.json"):
            once(Path(path).parent.name, Path(path).name)
        save(text, path)

    monkeypatch.setattr(Training, "_step", stepping)
    monkeypatch.setattr(LabelStore, "write", writing)
    monkeypatch.setattr(dmt.run, "save_text", saving)
    return kills


@pytest.mark.parametrize("name", PIPELINES)
def test_killed_and_resumed_at_every_stage_a_run_ends_as_an_unbroken_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Run(config(PIPELINES[name], tmp_path / "whole")).run()
    kills = plant_kills(monkeypatch)
    for attempt in range(200):
        try:
            Run(config(PIPELINES[name], tmp_path / "broken"), resume=attempt > 0).run()
            break
        except KilledError:
            continue
    (whole, weights), (broken, broken_weights) = outcome(tmp_path / "whole"), outcome(tmp_path / "broken")
    assert whole == broken
    assert weights.keys() == broken_weights.keys()
    for stage, tensors in weights.items():
        for tensor_name, tensor in tensors.items():
            assert torch.equal(tensor, broken_weights[stage][tensor_name]), (stage, tensor_name)
    # every stage was killed: trainings in a step, labellings among images (masks only), both before their result
    segmentation = PIPELINES[name].startswith(SEGMENTATION)
    for stage, result in whole.items():
        assert (stage, "result.json") in kills
        if result["kind"] == "train":
            assert (stage, "step") in kills
        elif segmentation:
            assert any(place.endswith(stage) and how == "image" for place, how in kills), stage


def test_a_run_leaves_what_it_is_and_what_came_out(tmp_path: Path) -> None:
    summary = Run(config(f"{SEGMENTATION} SPLIT.SELECT tune", tmp_path)).run()
    names = {"config.yaml", "versions.json", "split.json", "log.txt", "summary.json", "model_final.pth"}
    assert names | {"pseudo_labels.png", "progress.html"} <= {path.name for path in tmp_path.iterdir()}
    assert len(summary["stages"]) == 10
    assert summary["final"] in ("07_train_B2", "09_train_A2")
    best = max(s["select"]["score"] for s in summary["stages"] if s["kind"] == "train" and s["round"] == 2)
    assert summary["select"]["score"] == best
    assert (tmp_path / "09_train_A2" / "metrics.jsonl").read_text().count("\n") >= 3
    assert list((tmp_path / "09_train_A2").glob("events.out.tfevents*"))
    assert not list(tmp_path.glob("*/checkpoint_*.pth")) + list(tmp_path.glob("*/model_best_*.pth"))
    split = json.loads((tmp_path / "split.json").read_text())
    assert (split["labeled"], split["unlabeled"], split["selecting"], split["test"]) == (4, 10, 4, 6)
    # labels of the rounds before the last are gone, but for the images of the picture
    assert len(list((tmp_path / "02_label_A1").glob("*.conf.png"))) == 2
    assert len(list((tmp_path / "06_label_A2").glob("*.conf.png"))) == 10


def test_parts_share_no_image(tmp_path: Path) -> None:
    for words in (
        f"{SEGMENTATION} SPLIT.SELECT valtiny SPLIT.SELECT_COUNT 3",
        f"{CLASSIFICATION} SPLIT.SELECT valtiny SPLIT.SELECT_COUNT 2",
    ):
        data = dmt.build.build_data(config(words, tmp_path))
        parts = [set(data.labeled), set(data.unlabeled), set(data.select.indices)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == len(data.train)
        assert data.select.images is data.train


def test_all_labels_is_a_baseline_alone(tmp_path: Path) -> None:
    summary = Run(config(f"{SEGMENTATION} SPLIT.RATIO 1.0 METHOD.MUTUAL False METHOD.SHARES []", tmp_path)).run()
    assert [s["name"] for s in summary["stages"]] == ["00_baseline_A0"]
    with pytest.raises(ConfigError, match="no image is left without a label"):
        Run(config(f"{SEGMENTATION} SPLIT.RATIO 1.0", tmp_path / "other"))


def test_another_runs_baseline_is_taken_over_where_it_is_the_same(tmp_path: Path) -> None:
    Run(config(f"{SEGMENTATION} METHOD.MUTUAL False METHOD.SHARES []", tmp_path / "base")).run()
    shared = f"{SEGMENTATION} METHOD.MUTUAL False SOLVER.BASELINE_FROM {tmp_path / 'base'}"
    Run(config(f"{SEGMENTATION} METHOD.MUTUAL False", tmp_path / "own")).run()
    Run(config(shared, tmp_path / "taken")).run()
    own, taken = outcome(tmp_path / "own"), outcome(tmp_path / "taken")
    assert taken[0]["00_baseline_A0"]["copied_from"] == str(tmp_path / "base")
    assert own[0]["04_train_A2"] == taken[0]["04_train_A2"]
    with pytest.raises(
        ConfigError, match=r"the baseline of .*base is another one: SOLVER\.BASELINE_LR: 0\.05 -> 0\.01"
    ):
        Run(config(f"{shared} SOLVER.BASELINE_LR 0.01", tmp_path / "x")).run()
    with pytest.raises(ConfigError, match=r"BATCH_PSEUDO: 5 -> 6"):
        Run(config(f"{shared} SOLVER.BATCH_PSEUDO 4", tmp_path / "y")).run()
    with pytest.raises(ConfigError, match="holds no run"):
        Run(config(f"{SEGMENTATION} SOLVER.BASELINE_FROM {tmp_path / 'no'}", tmp_path / "z")).run()


def test_dst_cbc_reports_the_best_of_all_rounds(tmp_path: Path) -> None:
    summary = Run(config(PIPELINES["best of all rounds, re-normalised"], tmp_path)).run()
    scores = {s["name"]: s["select"]["score"] for s in summary["stages"] if s["kind"] == "train"}
    assert summary["final"] == max(scores, key=scores.get)
    best = read(tmp_path / summary["final"] / "model.pth")
    assert all(torch.equal(value, best[name]) for name, value in read(tmp_path / "model_final.pth").items())


def test_a_first_mistake_does_not_lock_the_folder(tmp_path: Path) -> None:
    words = f"{SEGMENTATION} METHOD.MUTUAL False METHOD.SHARES []"
    with pytest.raises(WeightsError, match="no such weights file"):
        Run(config(f"{words} MODEL.INIT ['gone.pth','']", tmp_path)).run()
    Run(config(words, tmp_path)).run()


def test_more_pictures_than_were_kept_are_left_out(tmp_path: Path) -> None:
    Run(config(SEGMENTATION, tmp_path)).run()
    (tmp_path / "pseudo_labels.png").unlink()
    Run(config(f"{SEGMENTATION} TEST.PICTURES 9", tmp_path), resume=True).run()
    assert (tmp_path / "pseudo_labels.png").exists()


def test_the_model_that_is_evaluated_sees_its_own_pixels(tmp_path: Path) -> None:
    words = f"{SEGMENTATION} SPLIT.SELECT tune MODEL.NORMALIZATION ['caffe','half']"
    summary = Run(config(words, tmp_path)).run()
    assert evaluate_only(config(words, tmp_path))["score"] == pytest.approx(summary["test"]["score"])
    file = str(tmp_path / "07_train_B2" / "model.pth")
    with pytest.raises(ConfigError, match=r"model\.pth: is it --model A or B\?"):
        evaluate_only(config(words, tmp_path), file)
    wanted = next(s["test"]["score"] for s in summary["stages"] if s["name"] == "07_train_B2")
    assert evaluate_only(config(words, tmp_path), file, "B")["score"] == pytest.approx(wanted)


def test_what_does_not_go_with_the_set_is_said(tmp_path: Path) -> None:
    for words in (f"{SEGMENTATION} METHOD.MIXUP 0.5", f"{CLASSIFICATION} METHOD.RENORMALIZE True"):
        with pytest.raises(ConfigError, match=r"METHOD\.(MIXUP mixes whole images|RENORMALIZE is for segmentation)"):
            Run(config(words, tmp_path))


def test_a_folder_is_not_mixed_with_another_run(tmp_path: Path) -> None:
    words = f"{SEGMENTATION} METHOD.MUTUAL False METHOD.SHARES []"
    Run(config(words, tmp_path)).run()
    with pytest.raises(OutputError, match="holds another run"):
        Run(config(words, tmp_path))
    with pytest.raises(ConfigError, match=r"began with another config \(SEED: 0 -> 1\)"):
        Run(config(f"{words} SEED 1", tmp_path), resume=True)
    Run(config(f"{words} TEST.IMS_PER_BATCH 3", tmp_path), resume=True).run()  # says how, not what


def test_the_weights_of_the_labeler_are_those_of_the_round_before(tmp_path: Path) -> None:
    Run(config(SEGMENTATION, tmp_path)).run()
    results, _ = outcome(tmp_path)
    assert results["04_label_B1"]["labeler"] == "01_baseline_B0"
    for name in ("02_label_A1", "06_label_A2"):
        assert 0 <= results[name]["error"] <= 1
    assert results["02_label_A1"]["kept"] < results["06_label_A2"]["kept"] == 1.0
