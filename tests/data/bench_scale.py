"""Reading data of COCO's size: seconds to the first batch, memory of every process.

    python -m tests.data.bench_scale                      # 118k + 123k images, 860k boxes, native engine
    python -m tests.data.bench_scale --engine detectron2
    python -m tests.data.bench_scale --share 0.1          # a tenth of everything

The json files hold polygons as COCO's do. Their images are hard links to a few small files: as many paths, as little
disk. Each figure is of a fresh process. "Records" is what a process holds above the same run on 200 images.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

LABELED, UNLABELED, BOXES, CLASSES = 118_287, 123_403, 860_001, 80
FILES = 400  # distinct image files a set
SIZES = ((48, 64), (64, 48), (43, 64), (48, 60))  # (height, width)


def make_set(folder: Path, name: str, images: int, boxes: int, seed: int) -> Path:
    """A COCO json with `images` images and `boxes` boxes, and the images in folder/name."""
    rng = np.random.default_rng(seed)
    base, root = folder / f"{name}_base", folder / name
    base.mkdir(parents=True), root.mkdir()
    for number in range(min(FILES, images)):
        height, width = SIZES[number % len(SIZES)]
        path = base / f"{number}.png"
        cv2.imwrite(str(path), rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        with path.open("ab") as stream:  # after the picture's end: a tenth has a length and sides of the other set
            length = 9000 + 40 * number + (0 if number % 10 == 0 else 10 * seed)
            stream.write(b"\0" * (length - stream.tell()) + b"IEND")
    rows = []
    for index in range(images):
        number = index % FILES
        os.link(base / f"{number}.png", root / f"{index:012d}.png")
        height, width = SIZES[number % len(SIZES)]
        rows.append(
            f'{{"license": 3, "file_name": "{index:012d}.png", "coco_url": "http://images.example.org/{name}/'
            f'{index:012d}.png", "height": {height}, "width": {width}, "date_captured": "2013-11-14 11:18:45", '
            f'"id": {index + seed * 1_000_000}}}'
        )
    owner = np.sort(rng.integers(0, images, boxes)).tolist()
    corner = (rng.random((boxes, 2)) * 30).round(2).tolist()
    polygon = rng.random((boxes, 46)) * 500
    text = ", ".join(["%.2f"] * 46)  # COCO's mean
    items = [
        f'{{"segmentation": [[{text % tuple(points)}]], "area": 99.5, "iscrowd": 0, "image_id": '
        f'{image + seed * 1_000_000}, "bbox": [{x}, {y}, 11.25, 9.5], "category_id": {index % CLASSES + 1}, '
        f'"id": {index + 1}}}'
        for index, (image, (x, y), points) in enumerate(zip(owner, corner, polygon, strict=True))
    ]
    classes = json.dumps([{"id": i + 1, "name": f"c{i}"} for i in range(CLASSES)])
    path = folder / f"{name}.json"
    path.write_text(
        f'{{"info": {{}}, "images": [{", ".join(rows)}], "annotations": [{", ".join(items)}], "categories": {classes}}}'
    )
    return path


def make_data(folder: Path, share: float = 1.0) -> None:
    """Both sets, `share` of COCO's size: folder/labeled.json and folder/unlabeled.json."""
    make_set(folder, "labeled", round(LABELED * share), round(BOXES * share), seed=1)
    make_set(folder, "unlabeled", round(UNLABELED * share), 0, seed=2)


def memory(pid: int | str) -> dict[str, float]:
    """MiB of a process: rss, pss (shared pages by parts), uss (its own pages only)."""
    rows = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    kib = {key: int(value.split()[0]) for key, value in rows.items()}
    sizes = {"rss": kib["Rss"], "pss": kib["Pss"], "uss": kib["Private_Clean"] + kib["Private_Dirty"]}
    return {key: value / 1024 for key, value in sizes.items()}


def run(engine: str, folder: Path, workers: int, batches: int) -> dict:
    """In this process: read both sets, take batches, and look at the memory of this process and its workers."""
    import gc

    overrides = {
        "DATASETS.TRAIN": str(folder / "labeled.json"),
        "DATASETS.UNLABELED": str(folder / "unlabeled.json"),
        "DATALOADER.NUM_WORKERS": workers,
        "INPUT.MIN_SIZE_TRAIN": (48, 64),
        "SEMI.BURN_IN": 0,
        "MODEL.DEVICE": "cpu",
        "ENGINE": engine,
    }
    words = [str(word) for pair in overrides.items() for word in pair]
    if engine == "detectron2":
        from sed.d2.config import load_config
        from sed.d2.data import build_train_loader

        cfg = load_config(None, words)
        start = time.perf_counter()
        loader = iter(build_train_loader(cfg, 32))
    else:
        from sed.config import load_config
        from sed.engine.build import open_streams, read_data

        cfg = load_config(None, words)
        start = time.perf_counter()
        loader = zip(*open_streams(cfg, data := read_data(cfg), 32), strict=False)  # data: held, as in a run
        assert len(data.labeled)
    built = time.perf_counter() - start
    next(loader)
    first, cpu = time.perf_counter() - start, time.process_time()
    for _ in range(batches):
        next(loader)
    gc.collect()
    children = [memory(child.pid) for child in multiprocessing.active_children()]
    peak = int(next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x).split()[1]) / 1024
    return {"built": built, "first": first, "cpu": cpu, "main": memory("self"), "peak": peak, "workers": children}


def measure(engine: str, folder: Path, workers: int = 2, batches: int = 200) -> dict:
    """`run` in a fresh process."""
    command = [sys.executable, "-m", "tests.data.bench_scale", "--run", str(folder), "--engine", engine]
    command += ["--workers", str(workers), "--batches", str(batches)]
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    """Make the data, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("torchvision", "detectron2"), default="torchvision")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=2, help="of each of the two streams")
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--data", help="folder to make the data in, or where they are")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(run(args.engine, Path(args.run), args.workers, args.batches)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.data or temporary).resolve()
        for name, share in (("all", args.share), ("few", 200 / LABELED)):
            if not (folder / name / "unlabeled.json").exists():
                make_data(folder / name, share)
        everything, few = (measure(args.engine, folder / name, args.workers, args.batches) for name in ("all", "few"))
    print(f"{args.engine}: built after {everything['built']:.1f} s, first batch after {everything['first']:.1f} s")
    print(f"processor time of the main process until then, imports included: {everything['cpu']:.1f} s")
    print(f"main process: {everything['main']['rss']:.0f} MiB, at most {everything['peak']:.0f} MiB")
    for kind in ("rss", "pss", "uss"):
        values = [max(worker[kind] for worker in result["workers"]) for result in (everything, few)]
        print(f"largest worker, {kind}: {values[0]:.0f} MiB; records {values[0] - values[1]:.0f} MiB")


if __name__ == "__main__":
    main()
