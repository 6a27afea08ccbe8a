"""Runs of two gloo processes that take seconds: `python -m tests.reference.ranks KIND FOLDER`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from sed.cli.last_resort import last_resort
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
    if args.kind != "train":
        dist.barrier()
        return
    from tests.reference.training import make_trainer

    options = {"rank": rank(), "world": world_size(), "checkpoint_period": 20, "burn_in": 10}
    make_trainer(Path(args.folder), max_iter=100_000, **options).train()


if __name__ == "__main__":
    one = {"num_gpus": 2, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    with last_resort():
        launch_main(main, argparse.Namespace(kind=sys.argv[1], folder=sys.argv[2], **one))
