"""Training on the GPU: exact resume, one process with NCCL, mixed precision of a whole run, and who synchronises."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from sed.cli.engines import pick
from sed.methods.build import build_method
from sed.runtime.checkpoint_files import checkpoint_path
from sed.runtime.launch import _free_port, launch, sum_over_processes
from tests.gpu.test_gpu_numbers import METHODS, NAMED, SCHEDULE, SIZES
from tests.reference.cases import CASES
from tests.reference.detectors import make_detector, make_labeled, make_unlabeled
from tests.reference.small import ENGINES
from tests.reference.squares import write_set
from tests.reference.training import same

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.gpu
STEPS, BURN_IN = 8, 3


# ---------------------------------------------------------------------------------------------- whole runs
@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_set(folder, "train", 10, 0), write_set(folder, "test", 5, 1)


def run(engine, data, output, device, *more, resume=False):
    """Train on an engine into `output`."""
    words = (
        f"ENGINE {engine} OUTPUT_DIR {output} MODEL.DEVICE {device.type} DATASETS.TRAIN ['{data[0]}'] "
        f"DATASETS.TEST ['{data[1]}'] INPUT.MIN_SIZE_TRAIN (64,96) INPUT.MIN_SIZE_TEST 64 "
        "MODEL.ROI_HEADS.NUM_CLASSES 2 SEMI.LABELED_COUNT 4 SEMI.METHOD sed_plus SED_PLUS.THRESHOLD 0.1 "
        f"SEMI.IMS_PER_BATCH_LABELED 2 SEMI.IMS_PER_BATCH_UNLABELED 2 SEMI.BURN_IN {BURN_IN} "
        f"SOLVER.MAX_ITER {STEPS} SOLVER.STEPS (6,) SOLVER.WARMUP_ITERS 2 "
        "SOLVER.CHECKPOINT_PERIOD 1 SOLVER.CHECKPOINTS_KEPT 9 TEST.EVAL_PERIOD 0"
    )
    config_file = str(ROOT / "configs" / "digits.yaml")
    driver = pick(config_file, [*words.split(), *more])
    return driver.train(driver.load_config(config_file, [*words.split(), *more]), resume)


@pytest.fixture
def deterministic():
    """Only deterministic kernels, as an exact resume on a GPU needs; where there is none torch raises an error."""
    torch.use_deterministic_algorithms(True)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False):
        yield
    torch.use_deterministic_algorithms(False)


def trained(folder):
    """Weights of student and teacher, and the optimizer's state, after the last step."""
    state = torch.load(checkpoint_path(folder, STEPS), weights_only=True)
    if "method" in state:
        return state["method"], state["optimizer"]
    return state["model"], state["trainer"]["_trainer"]["optimizer"]["state"]


@pytest.mark.parametrize("method", ["sed_plus", "sed"])
@pytest.mark.parametrize("engine", ENGINES)
def test_resumed_equals_uninterrupted_bit_for_bit(engine, data, device, tmp_path, method, deterministic):
    whole, halves, at = tmp_path / "whole", tmp_path / "halves", 4
    for folder in (whole, halves):
        run(engine, data, folder, device, "SEMI.METHOD", method)
    expected = trained(whole)
    same(expected, trained(halves))  # two runs are one and the same
    for step in range(at + 1, STEPS + 1):
        checkpoint_path(halves, step).unlink()
    if engine == "detectron2":
        (halves / "last_checkpoint").write_text(checkpoint_path(halves, at).name)
    torch.manual_seed(12345)  # the new process starts from other random numbers
    run(engine, data, halves, device, "SEMI.METHOD", method, resume=True)
    same(expected, trained(halves))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_in_mixed_precision(engine, data, device, tmp_path, dtype):
    """It goes through; float16 starts with a loss scale of 65536, which its first steps may have to bring down."""
    if dtype == "float16" and device.type == "cpu":
        pytest.skip("float16 training is for GPUs")
    more = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype]
    found = run(engine, data, tmp_path / "run", device, *more)
    if engine == "torchvision":
        assert found.skipped <= (4 if dtype == "float16" else 0)
    weights = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    values = list(weights.get("model", weights).values())
    assert values
    assert all(torch.isfinite(torch.as_tensor(value)).all() for value in values)


# ---------------------------------------------------------------------------------------------- NCCL
def in_a_group(device: str) -> None:
    """The gradients of DistributedDataParallel in a group of one are those without; counts are summed."""
    gradients = []
    for wrapped in (False, True):
        method = build_method("sed_plus", make_detector(), SCHEDULE, METHODS["sed_plus"][1]).to(device).train()
        ids = [torch.cuda.current_device()] if device == "cuda" else None
        model = DistributedDataParallel(method, device_ids=ids, broadcast_buffers=False) if wrapped else method
        torch.manual_seed(3)
        losses = model(make_labeled(SIZES).to(device), make_unlabeled(SIZES).to(device), 5)
        sum(losses.values()).backward()
        gradients.append(torch.cat([w.grad.flatten() for w in method.student.parameters() if w.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4 * gradients[0].abs().max().item())
    counts, world = sum_over_processes(torch.arange(3.0, device=device))
    assert world == dist.get_world_size() == 1
    assert dist.get_backend() == ("nccl" if device == "cuda" else "gloo")
    assert counts.tolist() == [0, 1, 2]


def test_one_process_with_nccl(device, monkeypatch, tmp_path):
    for key, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("MASTER_PORT", str(_free_port()))
    launch(in_a_group, args=(device.type,))  # as torchrun starts it


# ---------------------------------------------------------------------------------------------- synchronisation
# Where our own code waits for the GPU in a training step, and why it must
OURS = {
    "sed/methods/pseudo_label.py:confident_targets": "the number of pseudo-labels is a shape",
    "sed/detectors/torchvision_models.py:detect": "the number of detections is a shape",
    "sed/core/matching.py:match_views": "the Hungarian matching runs on the CPU",
}
BACKWARD = "backward"  # of an indexing by a mask in a framework's loss; the optimizer waits for nothing
LIBRARIES = ("torchvision", "detectron2", "transformers")


def synchronisations(call) -> Counter:
    """Who waits for the GPU in `call`: (this project's innermost frame, the library below it or "") -> how often."""
    found: Counter = Counter()

    def note(message, category, filename, lineno, file=None, line=None):
        if "synchroniz" not in str(message):
            return
        frames = [f for f in traceback.extract_stack()[:-1] if "/warnings.py" not in f.filename]
        own = [f for f in frames if f.filename.startswith(str(ROOT / "sed"))]
        below = frames[frames.index(own[-1]) :] if own else []
        library = next((n for f in reversed(below) for n in LIBRARIES if f"/{n}/" in f.filename), "")
        owner = f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].name}" if own else BACKWARD
        found[(owner, library)] += 1

    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return found


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("case", [c for c in CASES if c.name in NAMED], indirect=True, ids=lambda c: c.name)
def test_only_named_places_wait_for_the_gpu(case, device, name, record_property):
    """The frameworks' own waits are theirs; ours are those of `OURS`."""
    if device.type == "cpu":
        pytest.skip("nothing to wait for on a CPU")
    kind, options = METHODS[name]
    method = build_method(kind, case.make().to(device), SCHEDULE, options).train()
    optimizer = torch.optim.SGD([w for w in method.student.parameters() if w.requires_grad], lr=1e-5, fused=True)
    labeled, unlabeled = make_labeled(SIZES).to(device), make_unlabeled(SIZES).to(device)

    def step() -> None:
        losses = method(labeled, unlabeled, 5)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        method.update_teacher(5)

    step()  # what happens once does not count
    found = synchronisations(step)
    told = [f"{n} x {owner}{library and ' in ' + library}" for (owner, library), n in found.items()]
    record_property("waits", ", ".join(told))
    assert found  # the frameworks' losses choose boxes: without any wait nothing was watched
    ours = {owner for owner, library in found if not library} - {BACKWARD}
    assert ours <= OURS.keys(), ours - OURS.keys()
