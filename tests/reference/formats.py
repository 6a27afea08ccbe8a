"""Writes a COCO set as other tools would export it: literal transcriptions of their layouts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from sed.data.records import Dataset


def _copy(source: str, to: Path) -> Path:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, to)
    except OSError:
        shutil.copyfile(source, to)
    return to


def _coco(data: Dataset, folder: Path, name: Callable[[str], str] = str) -> dict:
    images = [
        {"id": i, "file_name": name(os.path.basename(r["file_name"])), "height": r["height"], "width": r["width"]}
        for i, r in enumerate(data.records)
    ]
    rows = [(i, a) for i, r in enumerate(data.records) for a in r["annotations"]]
    annotations = [
        {
            "id": n,
            "image_id": i,
            "category_id": a["category_id"] + 1,
            "bbox": a["bbox"],
            "area": a["area"],
            "iscrowd": 0,
        }
        for n, (i, a) in enumerate(rows, 1)
    ]
    categories = [{"id": k, "name": n} for k, n in enumerate(data.classes, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _write(content: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def roboflow(data: Dataset, folder: Path) -> None:
    for r in data.records:
        _copy(r["file_name"], folder / "train" / os.path.basename(r["file_name"]))
    _write(_coco(data, folder), folder / "train" / "_annotations.coco.json")


def cvat(data: Dataset, folder: Path) -> None:
    for r in data.records:
        _copy(r["file_name"], folder / "images" / "default" / os.path.basename(r["file_name"]))
    _write(_coco(data, folder), folder / "annotations" / "instances_default.json")


def coco(data: Dataset, folder: Path) -> None:
    for r in data.records:
        _copy(r["file_name"], folder / "train2017" / os.path.basename(r["file_name"]))
    _write(_coco(data, folder), folder / "annotations" / "instances_train2017.json")


def fiftyone(data: Dataset, folder: Path) -> None:
    for r in data.records:
        _copy(r["file_name"], folder / "data" / os.path.basename(r["file_name"]))
    _write(_coco(data, folder), folder / "labels.json")


def label_studio(data: Dataset, folder: Path) -> None:
    for r in data.records:
        _copy(r["file_name"], folder / "images" / os.path.basename(r["file_name"]))
    _write(_coco(data, folder, lambda name: f"images/{name}"), folder / "result.json")


def _yolo_lines(record: dict) -> str:
    h, w = record["height"], record["width"]
    boxes = [(a["category_id"], *a["bbox"]) for a in record["annotations"]]
    return "".join(
        f"{k} {(x + bw / 2) / w:.6f} {(y + bh / 2) / h:.6f} {bw / w:.6f} {bh / h:.6f}\n" for k, x, y, bw, bh in boxes
    )


def yolo(data: Dataset, folder: Path, images: str = "images/train", labels: str = "labels/train") -> None:
    (folder / labels).mkdir(parents=True)
    for r in data.records:
        to = _copy(r["file_name"], folder / images / os.path.basename(r["file_name"]))
        (folder / labels / f"{to.stem}.txt").write_text(_yolo_lines(r))
    names = "".join(f"  {n}: {json.dumps(name)}\n" for n, name in enumerate(data.classes))
    (folder / "data.yaml").write_text(f"path: .\ntrain: {images}\nval: {images}\nnames:\n{names}")


def yolo_roboflow(data: Dataset, folder: Path) -> None:
    yolo(data, folder, "train/images", "train/labels")
    names = json.dumps(list(data.classes))
    text = f"train: ../train/images\nval: ../valid/images\n\nnc: {len(data.classes)}\nnames: {names}\n"
    (folder / "data.yaml").write_text(text)


def yolo_label_studio(data: Dataset, folder: Path) -> None:
    yolo(data, folder, "images", "labels")
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text("\n".join(data.classes) + "\n")


def _xml(data: Dataset, record: dict, name: str) -> str:
    rows = []
    for a in record["annotations"]:
        x, y, w, h = a["bbox"]
        corners = zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + w, y + h), strict=True)
        box = "".join(f"<{tag}>{round(value)}</{tag}>" for tag, value in corners)
        label = data.classes[a["category_id"]].replace("&", "&amp;")
        rows.append(f"<object><name>{label}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>")
    size = f"<size><width>{record['width']}</width><height>{record['height']}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{size}{''.join(rows)}</annotation>"


def voc(data: Dataset, folder: Path) -> None:
    (folder / "Annotations").mkdir(parents=True)
    for r in data.records:
        to = _copy(r["file_name"], folder / "JPEGImages" / os.path.basename(r["file_name"]))
        (folder / "Annotations" / f"{to.stem}.xml").write_text(_xml(data, r, to.name))


def voc_roboflow(data: Dataset, folder: Path) -> None:
    for r in data.records:
        to = _copy(r["file_name"], folder / "train" / os.path.basename(r["file_name"]))
        to.with_suffix(".xml").write_text(_xml(data, r, to.name))


FORMATS = {
    f.__name__: f
    for f in (roboflow, cvat, coco, fiftyone, label_studio, yolo, yolo_roboflow, yolo_label_studio, voc, voc_roboflow)
}
