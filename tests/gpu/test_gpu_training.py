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

from sed.config import load_config
from sed.engine import checkpoint
from sed.engine.run import train
from sed.methods.build import build_method
from sed.runtime.checkpoint_files import checkpoint_path
from sed.runtime.launch import launch, sum_over_processes
from tests.gpu.test_gpu_numbers import METHODS, NAMED, SCHEDULE, SIZES
from tests.reference.cases import CASES
from tests.reference.detectors import make_detector, make_labeled, make_unlabeled
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


def config(data, output, device, *more):
    words = (
        f"ENGINE torchvision OUTPUT_DIR {output} MODEL.DEVICE {device.type} DATASETS.TRAIN ['{data[0]}'] "
        f"DATASETS.TEST ['{data[1]}'] INPUT.MIN_SIZE_TRAIN (64,96) INPUT.MIN_SIZE_TEST 64 "
        "MODEL.ROI_HEADS.NUM_CLASSES 2 SEMI.LABELED_COUNT 4 SEMI.METHOD sed_plus SED_PLUS.THRESHOLD 0.1 "
        f"SEMI.IMS_PER_BATCH_LABELED 2 SEMI.IMS_PER_BATCH_UNLABELED 2 SEMI.BURN_IN {BURN_IN} SOLVER.MAX_ITER {STEPS} "
        "SOLVER.STEPS (6,) SOLVER.WARMUP_ITERS 2 SOLVER.CHECKPOINT_PERIOD 1 SOLVER.CHECKPOINTS_KEPT 9 TEST.EVAL_PERIOD 0"
    )
    return load_config(ROOT / "configs" / "digits.yaml", [*words.split(), *more])


@pytest.fixture
def deterministic():
    """Only deterministic kernels, as an exact resume on a GPU needs; where there is none torch raises an error."""
    torch.use_deterministic_algorithms(True)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False):
        yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("method", ["sed_plus", "sed"])
def test_resumed_equals_uninterrupted_bit_for_bit(data, device, tmp_path, method, deterministic):
    more = ["SEMI.METHOD", method]
    train(config(data, tmp_path / "whole", device, *more))
    train(config(data, tmp_path / "halves", device, *more))
    expected, again = (checkpoint.read_full(checkpoint_path(tmp_path / f, STEPS)) for f in ("whole", "halves"))
    same(expected, again)  # two runs are one and the same
    for step in range(5, STEPS + 1):
        checkpoint_path(tmp_path / "halves", step).unlink()
    torch.manual_seed(12345)
    train(config(data, tmp_path / "halves", device, *more), resume=True)
    same(expected, checkpoint.read_full(checkpoint_path(tmp_path / "halves", STEPS)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_run_in_mixed_precision_skips_no_step(data, device, tmp_path, dtype):
    more = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype]
    if dtype == "float16" and device.type == "cpu":
        pytest.skip("float16 training is for GPUs")
    counters = train(config(data, tmp_path / "run", device, *more))
    # float16 starts with a loss scale of 65536, which the first steps bring down
    assert counters.skipped <= (4 if dtype == "float16" else 0)
    assert 0 <= counters.last["teacher"]["AP"] <= 100


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
    assert counts.tolist() == [0, 1, 2]


def test_one_process_with_nccl(device, monkeypatch, tmp_path):
    for key, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("MASTER_PORT", "29517")
    launch(in_a_group, args=(device.type,))  # as torchrun starts it


# ---------------------------------------------------------------------------------------------- synchronisation
# Where our own code waits for the GPU in a training step, and why it must
OURS = {
    "sed/methods/pseudo_label.py:confident_targets": "the number of pseudo-labels is a shape",
}


def synchronisations(call) -> Counter:
    """Who waits for the GPU in `call`: "file:function" of this project's innermost frame -> how often, by library."""
    found: Counter = Counter()

    def note(message, category, filename, lineno, file=None, line=None):
        if "synchroniz" not in str(message):
            return
        frames = traceback.extract_stack()[:-1]
        own = [f for f in frames if f.filename.startswith(str(ROOT / "sed"))]
        inner = next((f for f in reversed(frames) if "/warnings.py" not in f.filename), frames[-1])
        library = next(
            (n for n in ("torchvision", "detectron2", "transformers", "scipy") if f"/{n}/" in inner.filename), ""
        )
        owner = f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].name}" if own else "backward or optimizer"
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
    record_property("waits", ", ".join(f"{n} x {owner} ({library or 'own'})" for (owner, library), n in found.items()))
    ours = {owner for owner, library in found if not library}
    assert ours <= OURS.keys(), ours - OURS.keys()
