"""Predictions as labels of other tools: YOLO's text files and Label Studio's pre-annotations.

Rows are those of `sed.evaluation.result_files.Rows`: COCO results with the file's name, boxes [x, y, w, h] in pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sed.data.errors import DataError
from sed.data.files import save_text
from sed.data.records import Dataset, Record

Row = Mapping[str, Any]


def by_image(rows: Iterable[Row]) -> dict[int | str, list[Row]]:
    """Image id -> its rows."""
    groups: dict[int | str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["image_id"], []).append(row)
    return groups


def write_yolo(
    folder: Path, rows: Iterable[Row], records: Sequence[Record], names: Mapping[int | str, str], classes: Dataset
) -> None:
    """labels/NAME.txt, "class cx cy w h score" a line in shares of the image, and classes.txt.

    An image without detections gets an empty file: background.

    Args:
        folder: exists.
        rows: see the module.
        records: of all images.
        names: image id -> its file below the common folder, with slashes.
        classes: the classes; their numbers are 0, 1, ... in this order.

    Raises:
        DataError: for two images whose names differ by the suffix alone.
    """
    paths = {i: PurePosixPath(name).with_suffix(".txt") for i, name in names.items()}
    if len(set(paths.values())) < len(paths):
        twice = next(path for path, count in Counter(paths.values()).items() if count > 1)
        raise DataError(f"--format yolo: two images have the same label file, labels/{twice}; rename one of them")
    number, found = {c: i for i, c in enumerate(classes.category_ids)}, by_image(rows)
    for record in records:
        lines, width, height = [], record["width"], record["height"]
        for row in found.get(record["image_id"], ()):
            x, y, w, h = row["bbox"]
            shares = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
            told = " ".join(f"{min(max(share, 0), 1):.6f}" for share in shares)
            lines.append(f"{number[row['category_id']]} {told} {row['score']:.4f}\n")
        path = folder / "labels" / paths[record["image_id"]]
        path.parent.mkdir(parents=True, exist_ok=True)
        save_text("".join(lines), path)
    save_text("".join(f"{name}\n" for name in classes.classes), folder / "classes.txt")


def label_studio(
    rows: Iterable[Row], records: Sequence[Record], names: Mapping[int | str, str], classes: Dataset
) -> list[dict[str, Any]]:
    """Tasks with predictions for Label Studio's import, for the control `label` on the image `image`.

    https://labelstud.io/guide/predictions. Arguments: see `write_yolo`.
    """
    label, found = dict(zip(classes.category_ids, classes.classes, strict=True)), by_image(rows)
    tasks = []
    for record in records:
        width, height, result = record["width"], record["height"], []
        for row in found.get(record["image_id"], ()):
            x, y, w, h = row["bbox"]
            value = {"x": 100 * x / width, "y": 100 * y / height, "width": 100 * w / width, "height": 100 * h / height}
            value |= {"rotation": 0, "rectanglelabels": [label[row["category_id"]]]}
            part = {"type": "rectanglelabels", "from_name": "label", "to_name": "image", "value": value}
            part |= {"original_width": width, "original_height": height, "score": row["score"]}
            result.append(part)
        score = sum(part["score"] for part in result) / len(result) if result else 0.0
        prediction = {"model_version": "ssod", "score": score, "result": result}
        tasks.append({"data": {"image": names[record["image_id"]]}, "predictions": [prediction]})
    return tasks


def least_certain(rows: Iterable[Row], ids: Sequence[int | str], count: int) -> list[tuple[int | str, float]]:
    """The images whose labels would tell most: (image id, doubt) of the `count` most doubtful, most doubtful first.

    The doubt of an image is the sum of p (1 - p) over its detections of score p: how many objects may be there or not.
    """
    doubt: dict[int | str, float] = dict.fromkeys(ids, 0.0)
    for row in rows:
        doubt[row["image_id"]] += row["score"] * (1 - row["score"])
    return sorted(doubt.items(), key=lambda item: -item[1])[:count]
