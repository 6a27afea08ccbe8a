"""Prediction files: detections are on the disk as soon as they are found, the whole file takes its place at the end."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sed.data.coco import MIN_SIDE
from sed.data.errors import DataError
from sed.data.files import replacing, save_text, try_file
from sed.data.records import Dataset, Record

log = logging.getLogger("predict")


class Rows:
    """Detections of a long work, a context: one JSON object a line in OUTPUT.part.jsonl until `finish` writes OUTPUT.

    Where the work ends before, by an error or a signal, that file stays, and a warning names it.

    Args:
        output: the file to write in the end.

    Raises:
        DataError: where it cannot be written.
    """

    def __init__(self, output: Path) -> None:
        self.output, self.part = try_file(output, "--output"), output.with_name(f"{output.name}.part.jsonl")
        self.count = 0
        self._stream = open(self.part, "w", encoding="utf-8")

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._stream.close()
        except OSError:  # of a full disk: `add` has said so
            pass
        if kind is None or not self.count:
            self.part.unlink(missing_ok=True)
        else:
            log.warning("what was found before: %s, %d detections", self.part, self.count)

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows at once.

        Raises:
            DataError: where they cannot be written, such as on a full disk.
        """
        try:
            for row in rows:
                self._stream.write(json.dumps(row) + "\n")
                self.count += 1
            self._stream.flush()
        except OSError as error:
            raise DataError(f"{self.part}: cannot be written ({os.strerror(error.errno or 0)}); make room") from None

    def read(self) -> Iterator[dict[str, Any]]:
        """The rows so far, one by one from the disk."""
        with open(self.part, encoding="utf-8") as rows:
            yield from map(json.loads, rows)

    def finish_with(self, text: str) -> None:
        """Write OUTPUT as this text.

        Raises:
            DataError: where it cannot be written.
        """
        try:
            save_text(text, self.output)
        except OSError as error:
            raise DataError(f"{self.output}: cannot be written ({os.strerror(error.errno or 0)}); make room") from None

    def finish(self, before: str, after: str, annotations: bool = False) -> None:
        """Write OUTPUT: the rows, as a JSON list, between two texts.

        Args:
            before: what comes before the list.
            after: what comes behind it.
            annotations: number the rows, and leave out boxes without area.

        Raises:
            DataError: where it cannot be written.
        """
        try:
            with replacing(self.output) as stream, open(self.part, encoding="utf-8") as rows:
                stream.write(f"{before}[".encode())
                number = 0
                for line in rows:
                    if annotations:
                        row = json.loads(line)
                        width, height = row["bbox"][2:]
                        if min(width, height) < MIN_SIDE:
                            continue
                        line = json.dumps({"id": number + 1, **row, "area": width * height, "iscrowd": 0})
                    stream.write((", " if number else "").encode() + line.rstrip("\n").encode())
                    number += 1
                stream.write(f"]{after}".encode())
        except OSError as error:
            raise DataError(f"{self.output}: cannot be written ({os.strerror(error.errno or 0)}); make room") from None


def file_names(records: Sequence[Record], root: Path) -> dict[int | str, str]:
    """Image id -> the name of its file below `root`, with slashes."""
    return {r["image_id"]: os.path.relpath(r["file_name"], root).replace(os.sep, "/") for r in records}


def write_annotations(rows: Rows, records: Sequence[Record], classes: Dataset, root: Path) -> None:
    """Write the rows as a whole COCO file, whose file names are relative to `root`.

    Raises:
        DataError: where it cannot be written.
    """
    names = file_names(records, root)
    head = {
        "info": {"description": "predictions of ssod predict", "image_root": str(root)},
        "images": [
            {"id": r["image_id"], "file_name": names[r["image_id"]], "height": r["height"], "width": r["width"]}
            for r in records
        ],
    }
    tail = [{"id": c, "name": n} for c, n in zip(classes.category_ids, classes.classes, strict=True)]
    before = json.dumps(head)[:-1] + ', "annotations": '
    rows.finish(before, f', "categories": {json.dumps(tail)}}}', annotations=True)
