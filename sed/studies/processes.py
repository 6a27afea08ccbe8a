"""Commands that run in a process of their own: started, waited for, stopped, what they print kept in a file."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

logger = logging.getLogger(__name__)
_running: set[subprocess.Popen] = set()
_starting = threading.Lock()
POLL_SECONDS = 0.5


def call(
    script: str | Path, words: Sequence[str], log: Path, threads: int = 1, stopped: threading.Event | None = None
) -> None:
    """Run a Python script or module to its end; what it prints is appended to `log`.

    Where a process that was started with the same `log` still runs (its caller was killed), its end is waited for.

    Args:
        script: path of a script, or the name of a module.
        words: its command line.
        log: a file; its folder is made.
        threads: of the process, whatever this machine has.
        stopped: once it is set nothing is started any more.

    Raises:
        SystemExit: where it fails, with its command and the end of its log; where it is not started.
    """
    stopped = stopped or threading.Event()
    command = [sys.executable, *([] if str(script).endswith(".py") else ["-m"]), str(script), *words]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as out:
        _lock(out, stopped)
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with _starting:
            if stopped.is_set():
                raise SystemExit(f"{log}: stopped before it was started")
            process = subprocess.Popen(command, stdout=out, stderr=out, env=env)
            _running.add(process)
        with process:
            try:
                code = process.wait()
            except BaseException:  # an interrupt: what was started ends with its caller
                process.terminate()
                process.wait()
                raise
            finally:
                _running.discard(process)
    if code:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise SystemExit(f"{' '.join(command)}\nended with code {code}; the end of {log}:\n{tail}")


def stop_all(stopped: threading.Event | None = None) -> None:
    """End every process that `call` waits for, in whatever thread; those calls then fail. Sets `stopped` before."""
    with _starting:
        if stopped is not None:
            stopped.set()
        for process in list(_running):
            process.terminate()


def _lock(stream: TextIO, stopped: threading.Event) -> None:
    """Wait until no other process writes this file: a process keeps the lock of what it prints to while it lives."""
    told = False
    while not stopped.is_set():
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not told:
                logger.warning("%s: a process of an earlier call still runs; waiting for its end", stream.name)
            told = True
            time.sleep(POLL_SECONDS)
