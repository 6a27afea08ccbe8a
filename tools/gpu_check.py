"""Prove and measure everything on a GPU in one command, in twelve minutes at most.

    python tools/gpu_check.py                           # make gpu-check
    python tools/gpu_check.py --device cpu --small      # the check itself, in a minute

Parts: `numbers` (the tests marked gpu: detectors, methods, mixed precision, exact resume and NCCL as on the CPU, and
who waits for the GPU), `outside` (what losses and EMA take), `loading` (what worker processes read), `throughput`
(images/s of every method against its network passes), `training` (digits, two seeds). Each figure is in
OUTPUT/report.json and report.md as soon as it is measured, so the command may be stopped at any time; `--only` measures
a part anew.

A machine without a package registry needs, beside torch, torchvision, transformers, opencv, pytest and pytest-xdist,
the wheels of fvcore, iopath, yacs and pycocotools (`pip wheel fvcore iopath yacs pycocotools` elsewhere). timm's and
Detectron2's detectors are checked too where these are installed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from sed.cli.arguments import duration, stoppable
from sed.cli.last_resort import last_resort
from sed.data.errors import DataError
from sed.data.files import try_folder
from sed.studies.gpu_check import PARTS, Check, run


def main() -> None:
    """Measure, print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny networks, a few of everything")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--workers", type=int, default=10, help="test processes, and trainings side by side")
    parser.add_argument("--time", type=duration, default="12m", help="stop after so long, s, m or h (default 12m)")
    parser.add_argument("--output", type=Path, default=Path("output/gpu_check"))
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU; --device cpu --small tries the check itself")
    try:
        try_folder(args.output, "--output")
    except DataError as error:
        sys.exit(f"error: {error}")
    failed, check = [], Check(args.device, args.small, args.workers, args.output)
    try:
        with stoppable(args.time):
            for part, good in run(check, tuple(args.only)):
                print(f"{part}: {'done' if good else 'FAILED'}", flush=True)
                failed += [] if good else [part]
    except KeyboardInterrupt:
        failed.append("stopped")
    print((args.output / "report.md").read_text())
    if failed:
        sys.exit(f"error: {', '.join(failed)}; see {args.output / 'report.md'}")


if __name__ == "__main__":
    with last_resort():
        main()
