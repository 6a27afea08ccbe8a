"""Two gloo processes against one: trainings, pseudo-labels, scores, and a whole run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sed.runtime.launch import launch
from tests.reference.dmt_processes import everything, network, whole_run

WORDS = (
    "DATASETS.NAME textured_digits NUM_WORKERS 0 MODEL.NAME small_segmenter MODEL.INIT ['',''] MODEL.DEVICE cpu "
    "MODEL.NORMALIZATION ['half','half'] INPUT.CROP [16,16] INPUT.PAD_TEST [] SPLIT.RATIO 3.0 SPLIT.SELECT tune "
    "SOLVER.BATCH_LABELED 1 SOLVER.BATCH_PSEUDO 3 SOLVER.MAX_STEPS 4 SOLVER.AMP.ENABLED False METHOD.SHARES [0.5] "
    "METHOD.RENORMALIZE True TEST.PICTURES 1"
).split(" ")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Of one process alone, then of each of two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    everything(str(one))
    launch(everything, num_gpus=2, args=(str(two),))
    files = [one / "rank0.pth", two / "rank0.pth", two / "rank1.pth"]
    return [torch.load(path, weights_only=True) for path in files]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dynamic", "online"])
def test_two_processes_train_as_one_with_the_whole_batch(found: list[dict], name: str) -> None:
    """N is that of the whole batch: the labelled image lies in the second process alone."""
    one, *two = (part["states"][name] for part in found)
    for key, value in one.items():
        assert torch.equal(two[0][key], two[1][key])
        torch.testing.assert_close(two[0][key], value, rtol=1e-4, atol=1e-6)
    assert (one["0.weight"] - network()[0].weight).abs().max() > 1e-2  # far more than the tolerance


@pytest.mark.slow
def test_two_processes_rank_and_score_as_one(found: list[dict]) -> None:
    one, *two = found
    for part in two:
        assert torch.equal(part["counts"], one["counts"])
        assert part["scores"] == pytest.approx(one["scores"], abs=1e-3)


@pytest.mark.slow
def test_a_whole_run_of_two_processes(tmp_path: Path) -> None:
    launch(whole_run, num_gpus=2, args=(str(tmp_path), WORDS, False))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["stages"]) == 6
    launch(whole_run, num_gpus=2, args=(str(tmp_path), WORDS, True))  # nothing is left to do
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
