"""Start the processes of a run: one, several on this machine, on several machines, or those that torchrun started.

All distributed work is `torch.distributed`: NCCL on GPUs, gloo on CPUs, where `--num-gpus N` means
N CPU processes.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sed.runtime.ranks import LaunchError, is_silent, run_ranks
from sed.runtime.stopping import Stopped, catch_signals

__all__ = ["LaunchError", "launch", "launch_main", "make_parser", "rank", "sum_over_processes", "world_size"]
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


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
    """`launch` with the flags of `make_parser`; errors and signals end this process with one line and a status."""
    try:
        with catch_signals():
            launch(main_fn, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (args,))
    except LaunchError as error:
        sys.exit(f"error: {error}")
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.code)


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
        LaunchError: for more processes than GPUs, several machines without a `dist_url`, an address that cannot be, or
            a process that is gone.
        Exception: where processes were spawned, what the first of them that failed raised.
    """
    started = _torchrun(num_machines)
    if started is not None:
        local, number, world = started
        _check_gpus(local + 1, f"LOCAL_RANK is {local}")
        return _run(local, main_fn, args, "env://", number, world)
    world = num_gpus * num_machines
    if num_gpus < 1 or num_machines < 1 or not 0 <= machine_rank < num_machines:
        raise LaunchError(
            f"--num-gpus {num_gpus} --num-machines {num_machines} --machine-rank {machine_rank}: expected at "
            "least one process, one machine and a rank below the number of machines"
        )
    _check_gpus(num_gpus, f"--num-gpus {num_gpus}")
    if world == 1:
        return main_fn(*args)
    if dist_url == "auto":
        if num_machines > 1:
            raise LaunchError("several machines need --dist-url tcp://HOST:PORT (an address of machine 0)")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    _check_url(dist_url)
    run_ranks(_spawned, num_gpus, (num_gpus, machine_rank, world, main_fn, args, dist_url))
    return None


def _torchrun(num_machines: int) -> tuple[int, int, int] | None:
    """LOCAL_RANK, RANK and WORLD_SIZE of torchrun; None where something else started this process."""
    found = {key: os.environ[key] for key in TORCHRUN if key in os.environ}
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= found.keys():
        if found.get("WORLD_SIZE", "1") != "1" and "RANK" in found and num_machines == 1:
            told = ", ".join(f"{key}={found[key]}" for key in found)
            raise LaunchError(
                f"the environment has {told} but no LOCAL_RANK: start with torchrun, which sets all of them, or unset "
                "them, or give --num-machines, --machine-rank and --dist-url"
            )
        return None
    numbers = {}
    for key in (k for k in TORCHRUN if k != "MASTER_ADDR"):
        text = found.get(key, "")
        if not text.isascii() or not text.isdigit():
            what = f"{key}={text}" if key in found else f"no {key}"
            raise LaunchError(
                f"the environment has {what}; torchrun sets a whole number. Start with torchrun, or unset it"
            )
        numbers[key] = int(text)
    local, number, world = numbers["LOCAL_RANK"], numbers["RANK"], numbers["WORLD_SIZE"]
    if not local <= number < world:
        told = f"LOCAL_RANK={local}, RANK={number}, WORLD_SIZE={world}"
        raise LaunchError(
            f"the environment has {told}; expected LOCAL_RANK <= RANK < WORLD_SIZE, as torchrun sets them"
        )
    _check_address("MASTER_ADDR and MASTER_PORT", found.get("MASTER_ADDR", ""), numbers["MASTER_PORT"])
    return local, number, world


def _check_gpus(needed: int, told: str) -> None:
    if torch.cuda.is_available() and needed > torch.cuda.device_count():
        raise LaunchError(f"{told}, but this machine has {torch.cuda.device_count()} GPU(s)")


def _check_url(url: str) -> None:
    found = re.fullmatch(r"tcp://(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/\[\]]+)):([0-9]{1,5})/?", url)
    if not found:
        raise LaunchError(f"--dist-url {url}: expected auto, or tcp://HOST:PORT with an address of machine 0")
    _check_address(f"--dist-url {url}", found[1] or found[2], int(found[3]))


def _check_address(told: str, host: str, port: int) -> None:
    """Raise LaunchError for what no machine has: torch would try it for half an hour."""
    if not 0 < port < 65536:
        raise LaunchError(f"{told}: the port is {port}; expected 1 to 65535")
    try:
        socket.getaddrinfo(host, port)
    except (OSError, UnicodeError) as error:
        raise LaunchError(f"{told}: no machine {host!r} is known here ({error})") from None


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
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", init_method=url, rank=rank, world_size=world)
    except (RuntimeError, ValueError) as error:
        where = url if url != "env://" else f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        told = " ".join(str(error).split())[:300]
        raise LaunchError(f"the {world} processes of the run do not find each other at {where}: {told}") from None
    try:
        return main_fn(*args)
    except Stopped as stop:
        if rank:  # all of them were asked; the first one says what it saved
            sys.exit(stop.code)
        raise
    except BaseException as error:
        if is_silent(error) or not _first_to_fail():
            sys.exit(1)
        if _is_lost_connection(error):
            raise LaunchError(
                "the connection to another process of the run is lost: it has ended. Go on from the last checkpoint "
                "with --resume"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def _first_to_fail() -> bool:
    """Whether no other process of the run has failed before: the first one tells what happened."""
    try:
        return dist.distributed_c10d._get_default_store().add("failed", 1) == 1
    except RuntimeError:  # the process that keeps the count is gone
        return False


def _is_lost_connection(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
