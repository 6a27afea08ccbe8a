"""The command `ssod`: train a detector on one's own data and use it. The `sed` of Unix is another program."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import sed
from sed.cli.last_resort import last_resort

COMMANDS = {
    "train": "from labelled images and a folder or a video without labels to a detector and a report",
    "predict": "detections in images and videos",
    "export": "a trained detector as ONNX",
    "check": "look for faults in the data of a config",
    "visualize": "draw data, training batches or predictions",
}
USAGE = f"""usage: ssod COMMAND ...

{{commands}}

ssod COMMAND --help says more. Version {sed.__version__}.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a subcommand: the module of its name beside this one."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    usage = USAGE.format(commands="\n".join(f"  {name:<11}{what}" for name, what in COMMANDS.items()))
    if not words or words[0] in ("-h", "--help"):
        print(usage, end="")
        return
    if words[0] == "--version":
        print(sed.__version__)
        return
    if words[0] not in COMMANDS:
        sys.exit(f"error: ssod {words[0]}: no such command\n\n{usage}")
    sys.argv = [f"ssod {words[0]}", *words[1:]]  # what help and errors of the command say
    with last_resort():
        import_module(f"sed.cli.{words[0]}").main()


if __name__ == "__main__":
    main()
