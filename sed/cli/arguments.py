"""The parts of a command line that several commands share."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sed.data.files import try_folder
from sed.runtime.stopping import SIGNALS, catch_signals


def config_parser(description: str | None, config_help: str | None = None) -> argparse.ArgumentParser:
    """A parser with --config-file and, at the end of the line, KEY VALUE words that override the config (`opts`)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help=config_help)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    return parser


def output_folder(given: Path | None, output_dir: str, *below: str) -> Path:
    """Where a command writes, tried before its work: --output, or a folder below OUTPUT_DIR.

    Raises:
        DataError: where nothing can be written.
    """
    if given is not None:
        return try_folder(given, "--output")
    return try_folder(try_folder(output_dir, "OUTPUT_DIR").joinpath(*below), "OUTPUT_DIR")


def duration(text: str) -> float:
    """Seconds of a time such as 90s, 12m or 2h: the type of an argument.

    Raises:
        argparse.ArgumentTypeError: for anything else, and for no time at all.
    """
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    try:
        seconds = float(text[:-1]) * unit
    except ValueError:
        seconds = 0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; expected one such as 90s, 12m or 2h")
    return seconds


@contextmanager
def stoppable(seconds: float | None = None) -> Iterator[None]:
    """A context that Ctrl-C, SIGTERM, and the end of so many seconds (None: any) leave by `Stopped`."""
    with catch_signals((*SIGNALS, signal.SIGALRM)):
        signal.setitimer(signal.ITIMER_REAL, seconds or 0)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
