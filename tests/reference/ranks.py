"""Runs of two gloo processes that take seconds: `python -m tests.reference.ranks KIND FOLDER`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from sed.cli.last_resort import last_resort
from sed.detectors.base import Detector
from sed.runtime.launch import launch_main, rank, world_size


def main(args: argparse.Namespace) -> None:
    """One process."""
    torch.set_num_threads(1)
    if args.kind == "all fail":
        sys.exit("error: the same everywhere")
    if rank() == 0 and args.kind == "first fails":
        sys.exit("error: only here")
    if rank() == 1 and args.kind == "bug":
        raise KeyError("never seen")
    if args.kind not in ("train", "evaluate"):
        dist.barrier()
        return
    from tests.reference.training import make_trainer

    folder, options = Path(args.folder), {"rank": rank(), "world": world_size(), "burn_in": 10}

    def evaluate(detector: Detector) -> dict[str, float]:
        if list(folder.glob("checkpoint_*14.pth")):  # the second one
            (folder / f"evaluation_{rank()}").touch()
            time.sleep(60)
        return {"AP": 0.0}

    if args.kind == "evaluate":
        options |= {"evaluate": evaluate, "eval_period": 7}
    make_trainer(folder, max_iter=100_000, checkpoint_period=20, **options).train()


if __name__ == "__main__":
    one = {"num_gpus": 2, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    with last_resort():
        launch_main(main, argparse.Namespace(kind=sys.argv[1], folder=sys.argv[2], **one))
