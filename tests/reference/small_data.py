"""A small clean data set on disk, under construction: three sets whose faults `tests.reference.faults` plants."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from sed.checks.advice import Setup

SIZE = (96, 128)  # height, width


ANCHORS = [[32], [64], [128], [256], [512]]
RATIOS = [[0.5, 1.0, 2.0]]
SETUP = Setup(
    classes_key="MODEL.ROI_HEADS.NUM_CLASSES",
    num_classes=3,
    min_size=(640, 800),
    max_size=1333,
    min_size_test=800,
    max_size_test=1333,
    anchor_sizes=ANCHORS,
    anchor_ratios=RATIOS,
    labelled=4,
    unlabelled=4,
    rate=0.005,
    optimizer="SGD",
    iterations=18000,
    steps=(12000, 16000),
    burn_in=2000,
    method="sed",
    percent=0.0,
    count=0,
    fold=0,
)


class Small:
    """Three sets: 14 labelled images, 6 to test on, 8 photographs without labels; 3 classes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seed = folder, 0
        self.num_classes, self.extra_train, self.extra_unlabeled = 3, [], []
        self.train, self.val = ({"images": [], "annotations": [], "categories": []} for _ in range(2))
        for content, first, number in ((self.train, 1, 14), (self.val, 101, 6)):
            content["categories"] = [{"id": i, "name": name} for i, name in ((1, "cat"), (2, "dog"), (5, "owl"))]
            for i in range(number):
                self.image(content, first + i)
        for i in range(8):
            self.picture(folder / "photos" / f"p{i}.jpg")

    def picture(self, path: Path, size: tuple[int, int] = SIZE) -> Path:
        """A smooth picture like no other."""
        self.seed += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(self.seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        assert cv2.imwrite(str(path), cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC))
        return path

    def image(self, content: dict, number: int, name: str = "", boxes: int = 2, size: tuple[int, int] = SIZE) -> dict:
        """A picture and its entry, with boxes of alternating classes."""
        entry = {"id": number, "file_name": name or f"{number}.jpg", "height": size[0], "width": size[1]}
        self.picture(self.folder / entry["file_name"], size)
        content["images"].append(entry)
        for i in range(boxes):
            self.box(content, number, [8 + 40 * i, 10, 30, 44], (1, 2, 5)[(number + i) % 3])
        return entry

    def box(self, content: dict, image: int, box: object, category: int = 1, **more: object) -> int:
        """An annotation; its id."""
        number = 10 * image + sum(a["image_id"] == image for a in content["annotations"])
        entry = {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
        content["annotations"].append(entry | more)
        return number

    def bare(self, number: int, **options: object) -> dict:
        """A labelled image with one clean box."""
        return self.image(self.train, number, boxes=1, **options)

    def write(self) -> dict[str, list[str]]:
        """The jsons; role -> sources."""
        for name, content in (("train", self.train), ("val", self.val)):
            (self.folder / f"{name}.json").write_text(json.dumps(content))
        train, photos, val = (str(self.folder / name) for name in ("train.json", "photos", "val.json"))
        return {
            "labelled": [train, *self.extra_train],
            "unlabelled": [photos, *self.extra_unlabeled],
            "test": [val],
        }

    def other(self, name: str, images: int = 4, boxes: int = 1) -> dict:
        """One more labelled json; what it returns is written by `save`."""
        content = {"images": [], "annotations": [], "categories": self.train["categories"]}
        for i in range(images):
            self.image(content, i + 1, f"{name}_{i}.jpg", boxes)
        return content

    def save(self, name: str, content: object) -> str:
        path = self.folder / f"{name}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        self.extra_train.append(str(path))
        return path.name
