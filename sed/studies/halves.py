"""Half of a data set: where there is only one set to evaluate on, one half is to choose by and the other to report.

A study says "val.json, first half" and "val.json, second half".
"""

from __future__ import annotations

import json
from pathlib import Path

from sed.config import ConfigError
from sed.data.coco import load_coco, read_json
from sed.data.files import save_text
from sed.data.splits import file_hash

HALVES = ("first half", "second half")


def half_of(dataset: str, image_root: str, folder: Path) -> str:
    """What DATASETS.TEST takes for a study's data set: the same, or a json of one half of it, written to `folder`.

    Images are ordered by the hash of their file, so that the halves depend on nothing else, and equal files are in one
    half.

    Args:
        dataset: a name, a path, or the path of a json and one of `HALVES`.
        image_root: of the json's images; see DATASETS.IMAGE_ROOT.
        folder: exists.

    Raises:
        DataError: for a json that cannot be used.
        ConfigError: for less than two different images.
    """
    path, _, which = dataset.rpartition(", ")
    if which not in HALVES:
        return dataset
    records = load_coco(path, image_root).records
    hashed = sorted((file_hash(record["file_name"]), str(record["image_id"]), record) for record in records)
    borders = [i for i in range(1, len(hashed)) if hashed[i][0] != hashed[i - 1][0]]
    if not borders:
        raise ConfigError(f"{dataset}: there are no two different images in it")
    middle = min(borders, key=lambda i: abs(i - len(hashed) // 2))
    chosen = hashed[:middle] if which == HALVES[0] else hashed[middle:]
    files = {record["image_id"]: str(Path(record["file_name"]).resolve()) for _, _, record in chosen}
    content = read_json(Path(path), labeled=True)
    images = [{**image, "file_name": files[image["id"]]} for image in content["images"] if image["id"] in files]
    annotations = [a for a in content["annotations"] if a["image_id"] in files]
    to = folder / f"{which.replace(' ', '_')}.json"
    save_text(json.dumps({**content, "images": images, "annotations": annotations}), to)
    return str(to)
