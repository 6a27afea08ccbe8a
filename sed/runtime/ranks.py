"""The processes of a run on this machine: started, waited for and ended together; what went wrong is told once."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from sed.data.processes import die_with_parent, end_workers
from sed.runtime.stopping import Stopped, catch_signals

SETTLE_SECONDS = 3.0  # after a process has failed the others have so long to say what they met, and to end
STOP_SECONDS = 20.0  # after a process has stopped, as all were asked to, so have the others


class LaunchError(RuntimeError):
    """The processes that were asked for cannot be started here, or one of them is gone."""


class _Remote(Exception):
    """The traceback of another process, as the cause of its exception here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"in another process of the run:\n{self.text}"


@dataclass
class _Rank:
    process: Any
    report: Connection
    error: BaseException | None = None
    when: float = 0.0

    def listen(self) -> None:
        """Read what the process has sent, if anything."""
        try:
            if self.error is None and self.report.poll():
                self.when, self.error, text = pickle.loads(self.report.recv_bytes())
                self.error.__cause__ = _Remote(text)
        except (EOFError, OSError):
            pass


def run_ranks(target: Callable[..., Any], count: int, args: tuple[Any, ...]) -> None:
    """Call `target(local rank, *args)` in `count` new processes, and wait for them.

    None of them outlives this process. SIGINT and SIGTERM are passed on to all of them.

    Raises:
        BaseException: what the process that failed first raised; the others are ended.
        LaunchError: where it was killed.
    """
    context = multiprocessing.get_context("spawn")
    _start_quiet_tracker()
    ranks: list[_Rank] = []
    try:
        for local in range(count):
            report, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(theirs, os.getpid(), target, (local, *args)))
            process.start()
            theirs.close()
            ranks.append(_Rank(process, report))
        try:
            _wait(ranks, SETTLE_SECONDS)
        except KeyboardInterrupt as stop:
            for rank in ranks:
                if rank.process.is_alive():
                    os.kill(rank.process.pid, getattr(stop, "number", signal.SIGINT))
            _wait(ranks, STOP_SECONDS)
            failed = [
                rank.error
                for rank in ranks
                if not (rank.error is None or isinstance(rank.error, Stopped) or is_silent(rank.error))
            ]
            told = [rank.error for rank in ranks if isinstance(rank.error, Stopped)]
            raise ([*failed, *told, stop])[0] from None
        failed = _first_failure(ranks)
    finally:
        for rank in ranks:
            rank.process.kill()
        for rank in ranks:
            rank.process.join()
    if failed is not None:
        raise failed


def _start_quiet_tracker() -> None:
    """Start Python's tracker of shared memory, which after a killed process would have the last word, a warning."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before, "ignore:resource_tracker"]))
    try:
        resource_tracker.ensure_running()
    finally:
        del os.environ["PYTHONWARNINGS"]
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before


def _wait(ranks: list[_Rank], seconds: float) -> None:
    """Until all have ended; once one has failed or stopped, for `seconds` more."""
    deadline = None
    while alive := [rank for rank in ranks if rank.process.is_alive()]:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return
        silent = [rank.report for rank in alive if rank.error is None and not rank.report.closed]
        for ready in wait([*silent, *(rank.process.sentinel for rank in alive)], left):
            for rank in ranks:
                if rank.report is ready:
                    rank.listen()
                    if rank.error is None:  # closed: it ends
                        rank.report.close()
        if deadline is None and any(rank.error or rank.process.exitcode for rank in ranks):
            deadline = time.monotonic() + seconds


def _first_failure(ranks: list[_Rank]) -> BaseException | None:
    for number, rank in enumerate(ranks):
        if not rank.report.closed:
            rank.listen()
        code = rank.process.exitcode
        if code is not None and code < 0:  # what the others met is that it is gone
            name = signal.Signals(-code).name
            why = " (the system does so where memory runs out)" if name == "SIGKILL" else ""
            told = f"process {number} of {len(ranks)} was killed by {name}{why}"
            return LaunchError(f"{told}; go on from the last checkpoint with --resume")
    told = [rank for rank in ranks if rank.error is not None]
    if told:
        return min(told, key=lambda rank: (is_silent(rank.error), rank.when)).error
    codes = {number: rank.process.exitcode for number, rank in enumerate(ranks) if rank.process.exitcode}
    for number, code in codes.items():
        return LaunchError(f"process {number} of {len(ranks)} ended with exit code {code}")
    return None


def is_silent(error: BaseException | None) -> bool:
    """Whether an exception ends a process without a word, since another one has told why."""
    return isinstance(error, SystemExit) and not isinstance(error.code, str)


def _rank(report: Connection, parent: int, target: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """One process: what it raises is sent to its parent, which tells it."""
    die_with_parent(parent)
    with catch_signals():
        try:
            target(*args)
        except BaseException as error:
            report.send_bytes(_packed(error))
            report.close()
            sys.exit(1)
        finally:
            end_workers()


def _packed(error: BaseException) -> bytes:
    text, now = traceback.format_exc(), time.monotonic()
    try:
        content = pickle.dumps((now, error, text))
        pickle.loads(content)
    except Exception:  # an exception that pickle cannot make again
        content = pickle.dumps((now, RuntimeError(f"{type(error).__name__}: {error}"), text))
    return content
