"""Two gloo processes against one, torchrun, and which engine runs."""

import importlib.util
import os

import pytest
import torch

from sed.evaluation.coco import evaluate
from sed.runtime.engine import EngineError, select_engine
from sed.runtime.launch import LaunchError, launch, rank, world_size
from tests.reference.metrics import hand_made
from tests.reference.training import both, make_trainer, same


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launch(both, num_gpus=2, args=(str(folder),))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "accumulate"), [("plain", 1), ("accumulate", 2)])
def test_two_processes_equal_one_with_the_whole_batch(pair, tmp_path, name, accumulate):
    """Batch 4 as 2 + 2, over four steps, two of them with unlabelled images."""
    one = make_trainer(tmp_path, max_iter=4, checkpoint_period=4, accumulate=accumulate)
    start = {k: v.clone() for k, v in one.method.state_dict().items()}
    one.train()
    ranks = [torch.load(pair / name / f"rank{r}.pth", weights_only=True) for r in (0, 1)]
    same(ranks[0], ranks[1])  # the processes never part
    for key, value in one.method.state_dict().items():
        torch.testing.assert_close(ranks[0][key], value, rtol=1e-4, atol=1e-4)
    moved = max((one.method.state_dict()[k].float() - v.float()).abs().max().item() for k, v in start.items())
    assert moved > 1e-2  # far more than the tolerance


@pytest.mark.slow
def test_a_bad_step_of_one_process_is_skipped_by_both(pair):
    (skipped0, state0), (skipped1, state1) = (torch.load(pair / f"poison{r}.pth", weights_only=True) for r in (0, 1))
    assert skipped0 == skipped1 == 2
    same(state0, state1)
    assert all(torch.isfinite(value).all() for value in state0.values())


@pytest.mark.slow
def test_checkpoint_of_two_holds_both_random_states(pair):
    state = torch.load(pair / "plain" / "checkpoint_0000004.pth", weights_only=True)
    assert len(state["rng"]) == 2


@pytest.mark.slow
def test_metrics_of_two_processes_equal_those_of_one(pair):
    dataset, detector, loader = hand_made()
    alone = evaluate(detector, loader, dataset, "cpu")
    for r in (0, 1):
        assert same(torch.load(pair / f"metrics{r}.pth", weights_only=True), alone) is None


def whoami(offset):
    return rank() + offset, world_size()


def test_one_process_needs_no_group():
    assert launch(whoami, args=(5,)) == (5, 1)


def test_torchrun_is_recognised(monkeypatch):
    from sed.runtime.launch import _free_port

    values = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for key, value in {**values, "MASTER_PORT": str(_free_port())}.items():
        monkeypatch.setenv(key, value)
    backend = []
    assert launch(lambda: (backend.append(torch.distributed.get_backend()), whoami(0))[1], num_gpus=7) == (0, 1)
    assert backend[0] in ("gloo", "undefined")
    assert not torch.distributed.is_initialized()  # put away again


def test_impossible_launches_are_told(monkeypatch):
    with pytest.raises(LaunchError, match="--dist-url tcp://HOST:PORT"):
        launch(whoami, num_gpus=1, num_machines=2, args=(0,))
    with pytest.raises(LaunchError, match="--machine-rank 3"):
        launch(whoami, num_machines=2, machine_rank=3, dist_url="tcp://127.0.0.1:1", args=(0,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(LaunchError, match="--num-gpus 4, but this machine has 2"):
        launch(whoami, num_gpus=4, args=(0,))


@pytest.mark.parametrize(
    ("installed", "wanted", "engine", "why"),
    [
        ((), "auto", "torchvision", "Detectron2 is not installed"),
        (("detectron2",), "auto", "torchvision", "no Detectron2 extension"),
        (("detectron2", "sed.d2"), "auto", "detectron2", "is installed"),
        (("detectron2", "sed.d2"), "torchvision", "torchvision", "ENGINE names it"),
        (("detectron2", "sed.d2"), "detectron2", "detectron2", "ENGINE names it"),
    ],
)
def test_engine(monkeypatch, installed, wanted, engine, why):
    monkeypatch.setattr(
        "sed.runtime.engine.find_spec", lambda name: importlib.util.find_spec("os") if name in installed else None
    )
    assert select_engine(wanted)[0] == engine
    assert why in select_engine(wanted)[1]


@pytest.mark.parametrize("installed", [(), ("detectron2",)])
def test_detectron2_without_it_names_the_installation_page(monkeypatch, installed):
    monkeypatch.setattr("sed.runtime.engine.find_spec", lambda name: os if name in installed else None)
    with pytest.raises(EngineError, match=r"https://detectron2.readthedocs.io/tutorials/install.html"):
        select_engine("detectron2")
