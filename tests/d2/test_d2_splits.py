"""Unbiased Teacher's index file counts the list that Detectron2's loader makes: so does `--like unbiased_teacher`."""

from __future__ import annotations

import json
import random

import pytest

pytest.importorskip("detectron2")

from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.datasets import load_coco_json

from sed.data.protocols import choose_unbiased_teacher


def test_the_list_is_detectron2s(tmp_path) -> None:
    generator = random.Random(3)
    ids = generator.sample(range(10**6), 200)
    triangle, line = [[0, 0, 9, 0, 9, 9]], [[0, 0, 9, 9]]
    annotations = [
        {
            **{"id": n, "image_id": generator.choice(ids), "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81},
            **{"iscrowd": int(generator.random() < 0.5)},
            **generator.choice([{}, {"segmentation": []}, {"segmentation": line}, {"segmentation": triangle}]),
        }
        for n in range(1, 300)
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 10, "width": 10} for i in ids],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    source, index = tmp_path / "set.json", tmp_path / "index.txt"
    source.write_text(json.dumps(content))
    dicts = filter_images_with_only_crowd_annotations(load_coco_json(str(source), str(tmp_path)))
    assert 50 < len(dicts) < 150
    drawn = generator.sample(range(len(dicts)), len(dicts) // 10)
    index.write_text(json.dumps({"10.0": {"1": drawn}}))
    choice = choose_unbiased_teacher(content, 10, 1, index)
    assert choice.labeled == {dicts[i]["image_id"] for i in drawn}
    assert choice.unlabeled == {d["image_id"] for d in dicts} - choice.labeled
