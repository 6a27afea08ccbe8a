"""`tools/train_net.py` as a process: started on coloured squares, sent signals, its children counted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAIN = [sys.executable, str(ROOT / "tools/train_net.py"), "--config-file", str(ROOT / "configs/digits.yaml")]
TINY = {
    "INPUT.MIN_SIZE_TRAIN": "(64, 64)",
    "INPUT.MIN_SIZE_TEST": 64,
    "MODEL.DEVICE": "cpu",
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "SEMI.LABELED_COUNT": 4,
    "SEMI.IMS_PER_BATCH_LABELED": 2,
    "SEMI.IMS_PER_BATCH_UNLABELED": 2,
    "SEMI.BURN_IN": 3,
    "SED.REGIONS_PER_VIEW": 8,
    "SOLVER.MAX_ITER": 400,
    "SOLVER.STEPS": "(300,)",
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.CHECKPOINT_PERIOD": 5,
    "SOLVER.CHECKPOINTS_KEPT": 3,
    "TEST.EVAL_PERIOD": 0,
}


def start(
    data: dict[str, str], output: Path, *flags: str, engine: str = "torchvision", **more: object
) -> subprocess.Popen:
    """Train `TINY` on {"train", "test"}; `more` has "__" for the dots; in a process group of its own."""
    extra = {key.replace("__", "."): value for key, value in more.items()}
    sets = {"ENGINE": engine, "DATASETS.TRAIN": f"['{data['train']}']", "DATASETS.TEST": f"['{data['test']}']"}
    values = {**TINY, **sets, "OUTPUT_DIR": output, **extra}
    words = [str(word) for pair in values.items() for word in pair]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*TRAIN, *flags, *words], cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def wait_until(found: Callable[[], object], process: subprocess.Popen, seconds: float = 120.0) -> None:
    """Until `found` gives something, while the process runs."""
    deadline = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def ended(process: subprocess.Popen, seconds: float = 30.0) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process that ends within so many seconds."""
    out, error = process.communicate(timeout=seconds)
    return process.returncode, out, error


def family(group: int) -> list[int]:
    """The living processes of a process group: a run, its ranks, their workers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, of = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended
            continue
        if int(of) == group and state != "Z":
            found.append(int(folder.name))
    return sorted(found)


def left(group: int, seconds: float = 10.0) -> list[int]:
    """The processes of a group that live on, though they have had so many seconds to end."""
    deadline = time.monotonic() + seconds
    while (found := family(group)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found
