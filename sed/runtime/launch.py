"""Start the processes of a run: one, several on this machine, on several machines, or those that torchrun started.

All distributed work is `torch.distributed`: NCCL on GPUs, gloo on CPUs, where `--num-gpus N` means
N CPU processes.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor


class LaunchError(RuntimeError):
    """The processes that were asked for cannot be started here."""


def rank() -> int:
    """This process's number over all machines; 0 without torch.distributed."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_processes(counts: Tensor) -> tuple[Tensor, int]:
    """The counts of all processes together, in place, and how many processes there are: for Eq. 5."""
    if dist.is_initialized():
        dist.all_reduce(counts)
    return counts, world_size()


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Detectron2's flags of a training script, with the KEY VALUE words at the end of the line."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [flags] [KEY VALUE ...]",
    )
    parser.add_argument("--config-file", default=None, metavar="FILE", help="YAML; without it: all defaults")
    parser.add_argument("--resume", action="store_true", help="go on with the run in OUTPUT_DIR, where it stopped")
    parser.add_argument("--eval-only", action="store_true", help="evaluate trained weights on the test images")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine (CPU processes without GPU)")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0)
    parser.add_argument("--dist-url", default="auto", help="tcp://HOST:PORT of machine 0; auto: a free local port")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    return parser


def launch_main(main_fn: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """`launch` with the flags of `make_parser`; errors end this process with a message or a status."""
    try:
        launch(main_fn, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (args,))
    except LaunchError as error:
        sys.exit(f"error: {error}")
    except mp.ProcessExitedException as error:  # a process has said why
        sys.exit(error.exit_code or 1)


def launch(
    main_fn: Callable[..., Any],
    num_gpus: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple[Any, ...] = (),
) -> Any:
    """Call `main_fn(*args)` in every process.

    Args:
        main_fn: a module-level function (it is pickled when processes are spawned).
        num_gpus: processes on this machine; one GPU each where there are GPUs.
        num_machines: machines; each runs this command with its own `machine_rank`.
        machine_rank: 0 .. num_machines - 1.
        dist_url: "auto" (one machine: a free port) or tcp://HOST:PORT of machine 0.
        args: arguments of `main_fn`.

    Returns:
        What `main_fn` returned; None where processes were spawned.

    Raises:
        LaunchError: for more processes than GPUs, or several machines without a `dist_url`.
    """
    if all(key in os.environ for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):  # torchrun
        return _run(
            int(os.environ["LOCAL_RANK"]),
            main_fn,
            args,
            "env://",
            int(os.environ["RANK"]),
            int(os.environ["WORLD_SIZE"]),
        )
    world = num_gpus * num_machines
    if num_gpus < 1 or num_machines < 1 or not 0 <= machine_rank < num_machines:
        raise LaunchError(
            f"--num-gpus {num_gpus} --num-machines {num_machines} --machine-rank {machine_rank}: expected at "
            "least one process, one machine and a rank below the number of machines"
        )
    if torch.cuda.is_available() and num_gpus > torch.cuda.device_count():
        raise LaunchError(f"--num-gpus {num_gpus}, but this machine has {torch.cuda.device_count()}")
    if world == 1:
        return main_fn(*args)
    if dist_url == "auto":
        if num_machines > 1:
            raise LaunchError("several machines need --dist-url tcp://HOST:PORT (an address of machine 0)")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    mp.spawn(_spawned, args=(num_gpus, machine_rank, world, main_fn, args, dist_url), nprocs=num_gpus, join=True)
    return None


def _spawned(
    local_rank: int,
    num_gpus: int,
    machine_rank: int,
    world: int,
    main_fn: Callable[..., Any],
    args: tuple[Any, ...],
    url: str,
) -> None:
    if not torch.cuda.is_available():  # share the cores
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_gpus))
    os.environ["LOCAL_WORLD_SIZE"] = str(num_gpus)  # as torchrun has it
    _run(local_rank, main_fn, args, url, machine_rank * num_gpus + local_rank, world)


def _run(local_rank: int, main_fn: Callable[..., Any], args: tuple[Any, ...], url: str, rank: int, world: int) -> Any:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", init_method=url, rank=rank, world_size=world)
    try:
        return main_fn(*args)
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
