"""What a SED step costs, as ratios, measured in one process (docs/method.md 8, docs/benchmarks.md).

    python tools/bench.py                       # R50-FPN, 320 px, 2 + 2 images, one thread; about 3 minutes
    python tools/bench.py --device cuda --size 800 --images 4

Prints a table: SED step / supervised step against the floor of network passes, the share of the step spent outside
the network, two views against decode + resize, and peak memory against supervised. A number over its bound is marked.
"""

from __future__ import annotations

import argparse
import platform

import torch
import torchvision

from sed.cli.last_resort import last_resort
from sed.studies.cost import Setting, data_cost, step_cost


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=320, help="side of the square images; a multiple of 128")
    parser.add_argument("--images", type=int, default=2, help="n_s = n_u")
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--regions", type=int, default=256, help="proposals a view")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.size = -(-args.size // 128) * 128
    print(
        f"{platform.machine()}, {args.threads} thread(s), torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}; ResNet-{args.depth}-FPN, {args.size} px, "
        f"{args.images} + {args.images} images, {args.regions} proposals a view, median of {args.repeats}, "
        f"device {args.device}"
    )
    setting = Setting(torch.device(args.device), args.size, args.images, args.depth, args.regions, args.repeats)
    rows = [*step_cost(setting), data_cost()]
    print("\n| what | measured | bound | |\n| --- | --- | --- | --- |")
    for what, value, bound in rows:
        print(f"| {what} | {value:.3f} | {'' if bound is None else bound} | {verdict(value, bound)} |")


def verdict(value: float, bound: float | None) -> str:
    """A word for the last column."""
    return "" if bound is None else "ok" if value <= bound else "MISSED"


if __name__ == "__main__":
    with last_resort():
        main()
