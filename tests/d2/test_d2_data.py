"""From a config to data sets and to the two streams of a training run on Detectron2."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="needs Detectron2 (https://detectron2.readthedocs.io/tutorials/install.html)")

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm

from sed.config import ConfigError
from sed.core.structures import Images, LabeledBatch, UnlabeledBatch
from sed.d2.config import load_config
from sed.d2.data import DualLoader, build_test_sets, build_train_loader, read_data
from sed.data.errors import DataError
from tests.data.conftest import Coco, write_image

SIZES = [(40, 60), (60, 40), (40, 60), (40, 60), (60, 40), (40, 60), (40, 60), (60, 40), (40, 60), (40, 60)]


@pytest.fixture(autouse=True)
def catalogs() -> Iterator[None]:
    """The tests' entries are taken out again."""
    before = [dict(catalog) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield
    for catalog, entries in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        catalog.data = entries


@pytest.fixture
def make_cfg(tmp_path) -> Callable[..., CfgNode]:
    """make_cfg(KEY, VALUE, ...) -> a config of 10 images, 4 of them labelled, and 2 test images."""
    train = Coco(tmp_path / "train", SIZES).write()
    test = Coco(tmp_path / "test", SIZES[:2], seed=1).write()

    def make(*overrides: object) -> CfgNode:
        values = {
            "MODEL.DEVICE": "cpu",
            "MODEL.ROI_HEADS.NUM_CLASSES": 2,
            "DATASETS.TRAIN": f"['{train}']",
            "DATASETS.TEST": f"['{test}']",
            "DATALOADER.NUM_WORKERS": 0,
            "INPUT.MIN_SIZE_TRAIN": "(32, 48)",
            "SEMI.LABELED_COUNT": 4,
            "SEMI.IMS_PER_BATCH_LABELED": 2,
            "SEMI.IMS_PER_BATCH_UNLABELED": 4,
            "SEMI.BURN_IN": 3,
            **dict(zip(overrides[::2], overrides[1::2], strict=True)),
        }
        return load_config(None, [str(word) for pair in values.items() for word in pair])

    return make


def take(loader: Iterator, count: int) -> list:
    return list(itertools.islice(loader, count))


def views_of(batch: LabeledBatch | UnlabeledBatch) -> list[Images]:
    return [batch.images] if isinstance(batch, LabeledBatch) else [batch.weak, batch.strong]


def contents(batch: LabeledBatch | UnlabeledBatch | None) -> list:
    """All numbers of a batch without its padding, image by image."""
    if batch is None:
        return []
    pixels = [
        [image[:, :h, :w].tolist() for image, (h, w) in zip(view.tensor, view.sizes, strict=True)]
        for view in views_of(batch)
    ]
    targets = [(t.boxes.tolist(), t.classes.tolist()) for t in getattr(batch, "targets", ())]
    return list(zip(*pixels, *([targets] if targets else []), strict=True))


def all_contents(steps: list) -> list:
    return [(contents(labeled), contents(unlabeled), step) for labeled, unlabeled, step in steps]


# ---------------------------------------------------------------------------------------------- data sets
def test_the_same_data_as_on_the_native_engine(make_cfg) -> None:
    from sed.engine import build

    cfg = make_cfg("SEMI.FOLD", 3)
    ours, native = read_data(cfg), build.read_data(cfg)
    assert ours.labeled == native.labeled
    assert ours.unlabeled == native.unlabeled
    assert ours.tests[0].records == native.tests[0].records
    assert (len(ours.labeled), len(ours.unlabeled), len(ours.tests[0])) == (4, 6, 2)


def test_a_folder_of_images_is_the_unlabelled_set(make_cfg, tmp_path) -> None:
    for number in range(5):
        write_image(tmp_path / "more" / f"{number}.jpg", 40, 60, seed=100 + number)
    cfg = make_cfg("SEMI.LABELED_COUNT", 0, "DATASETS.UNLABELED", f"['{tmp_path / 'more'}']", "SEMI.BURN_IN", 0)
    data = read_data(cfg)
    assert (len(data.labeled), len(data.unlabeled)) == (10, 5)
    assert not any("annotations" in record for record in data.unlabeled)
    assert str(tmp_path / "more") in DatasetCatalog
    _, unlabeled, _ = next(build_train_loader(cfg, 32, data=data))
    assert len(unlabeled) == 4


def test_several_test_sets(make_cfg, tmp_path) -> None:
    more = Coco(tmp_path / "more", SIZES[:3], seed=2)
    sources = [make_cfg().DATASETS.TEST[0], str(more.write())]
    cfg = make_cfg("DATASETS.TEST", sources)
    assert [len(test) for test in build_test_sets(cfg)] == [len(test) for test in read_data(cfg).tests] == [2, 3]
    assert all(MetadataCatalog.get(source).thing_classes == ["dog", "cat"] for source in sources)
    assert build_test_sets(make_cfg("DATASETS.TEST", "()")) == []


def test_configs_that_cannot_be(make_cfg) -> None:
    retina = ("MODEL.META_ARCHITECTURE", "ScaleConsistentRetinaNet")
    cases = [
        (("MODEL.ROI_HEADS.NUM_CLASSES", 5), DataError, r"MODEL\.ROI_HEADS\.NUM_CLASSES is 5, but .*set it to 2"),
        (retina, DataError, r"MODEL\.RETINANET\.NUM_CLASSES is 80"),
        (("SEMI.LABELED_COUNT", 0), DataError, "there is no unlabelled image"),
        (("DATASETS.UNLABELED", "['x']"), DataError, "exclude each other"),
        (("DATASETS.TRAIN", "()"), DataError, r"DATASETS\.TRAIN is empty"),
        (("DATASETS.TEST", "['nowhere']"), DataError, "nowhere: neither a file"),
        (("INPUT.FORMAT", "L"), ConfigError, "INPUT.FORMAT is 'L'; it must be one of RGB, BGR"),
        (("DATALOADER.SAMPLER_TRAIN", "Weighted"), ConfigError, "'Weighted'; with two streams it must be one of"),
    ]
    for overrides, error, message in cases:
        with pytest.raises(error, match=message):
            build_train_loader(make_cfg(*overrides), 32)
    with pytest.raises(DataError, match=r"NUM_CLASSES is 1, but .*test/set\.json"):
        build_test_sets(make_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 1))


# ---------------------------------------------------------------------------------------------- loader
def test_steps_and_shapes(make_cfg) -> None:
    loader = build_train_loader(make_cfg("SED.MAX_SCALE", 2), 16)
    steps = take(loader, 5)
    assert [step for _, _, step in steps] == [0, 1, 2, 3, 4]
    assert [unlabeled is None for _, unlabeled, _ in steps] == [True] * 3 + [False] * 2
    assert (len(steps[4][0]), len(steps[4][1])) == (2, 4)
    for labeled, unlabeled, _ in steps:
        assert all(side % 16 == 0 for side in labeled.images.padded_size)
        assert len({h > w for h, w in labeled.images.sizes}) == 1, "landscape and portrait images are apart"
        views = views_of(unlabeled) if unlabeled else []
        assert all(side % 64 == 0 for view in views for side in view.padded_size)
    assert loader.step == 5
    assert len(loader.data.labeled) == 4


def test_iterating_again_goes_on(make_cfg) -> None:
    loader = build_train_loader(make_cfg(), 16)
    first = [take(iter(loader), 2), take(iter(loader), 2)]
    assert all_contents(first[0] + first[1]) == all_contents(take(build_train_loader(make_cfg(), 16), 4))


@pytest.mark.parametrize("workers", [0, 2])
def test_seek_equals_reading_on(make_cfg, workers: int) -> None:
    whole = all_contents(take(build_train_loader(make_cfg(), 16), 9))
    cfg = make_cfg("DATALOADER.NUM_WORKERS", workers)
    loader = build_train_loader(cfg, 16)
    for start in (5, 1, 3, 0):  # forwards, back into burn-in, its end, the beginning
        loader.seek(start)
        assert loader.step == start
        assert all_contents(take(loader, 3)) == whole[start : start + 3]
    loader.close()
    assert all_contents(take(loader, 1)) == whole[3:4], "closing loses nothing"
    loader.close()


def test_the_unlabelled_stream_begins_after_burn_in(make_cfg) -> None:
    late, early = (take(build_train_loader(make_cfg("SEMI.BURN_IN", n), 16), 5) for n in (3, 0))
    assert [contents(b) for _, b, _ in late[3:]] == [contents(b) for _, b, _ in early[:2]]


def test_two_processes_see_what_one_sees(make_cfg, monkeypatch) -> None:
    whole = take(build_train_loader(make_cfg(), 16), 6)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        parts.append(take(build_train_loader(make_cfg(), 16), 6))
    for one, first, second in zip(whole, *parts, strict=True):
        for batch in (0, 1):
            assert contents(one[batch]) == contents(first[batch]) + contents(second[batch])
    with pytest.raises(DataError, match="cannot be divided among 2 processes"):
        build_train_loader(make_cfg("SEMI.IMS_PER_BATCH_LABELED", 3), 16)


def test_supervised_reads_no_unlabelled_image(make_cfg) -> None:
    loader = build_train_loader(make_cfg("SEMI.METHOD", "supervised"), 16)
    assert loader.unlabeled is None
    assert all(unlabeled is None for _, unlabeled, _ in take(loader, 5))
    loader.seek(4)
    rival = build_train_loader(make_cfg(), 16)
    rival.seek(4)
    assert contents(next(loader)[0]) == contents(next(rival)[0]), "the control sees the same labelled images"
    loader.close()


def image_ids(loader: DualLoader, batches: int, stream: str = "labeled") -> list[int]:
    """The order in which a stream reads its images."""
    part = getattr(loader, stream)
    part._work.sample = lambda record, position: record["image_id"]
    part._work.collate = list
    return [image_id for batch in take(part, batches) for image_id in batch]


def test_detectron2s_sampler_gives_the_order(make_cfg) -> None:
    cfg = make_cfg("DATALOADER.ASPECT_RATIO_GROUPING", False, "SEED", 7)
    data = read_data(cfg)
    for stream, number, records, count in (
        ("labeled", 0, data.labeled.records, 12),
        ("unlabeled", 1, data.unlabeled, 6),
    ):
        seed = int(np.random.SeedSequence([7, number]).generate_state(1)[0])
        order = take(iter(TrainingSampler(len(records), seed=seed)), 24)
        found = image_ids(build_train_loader(cfg, 16, data=data), count, stream)
        assert found == [records[index]["image_id"] for index in order]
        assert len(set(found[: len(records)])) == len(records)
    orders = {tuple(image_ids(build_train_loader(make_cfg("SEED", seed), 16, data=data), 8)) for seed in (7, 8, 9)}
    assert len(orders) == 3


def test_repeat_factors(make_cfg, tmp_path) -> None:
    coco = Coco(tmp_path / "rare", [(40, 60)] * 10)
    for item in coco.content["annotations"]:
        item["category_id"] = 7 if item["image_id"] == 10 else 3  # one cat, nine dogs
    options = ("DATASETS.TRAIN", f"['{coco.write()}']", "SEMI.METHOD", "supervised", "SEMI.LABELED_COUNT", 0)
    plain, often = (
        image_ids(build_train_loader(make_cfg(*options, "DATALOADER.SAMPLER_TRAIN", name), 16), 300).count(10) / 600
        for name in ("TrainingSampler", "RepeatFactorTrainingSampler")
    )
    assert plain == pytest.approx(0.1)
    assert often == pytest.approx(0.1)  # no category is below the default threshold of 0
    options += ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", 0.9)
    assert image_ids(build_train_loader(make_cfg(*options), 16), 300).count(10) / 600 == pytest.approx(0.25, abs=0.01)


def test_a_random_subset(make_cfg) -> None:
    cfg = make_cfg("DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler")
    with pytest.raises(ConfigError, match=r"DATALOADER\.RANDOM_SUBSET_RATIO is None, which leaves none of 4 images"):
        build_train_loader(cfg, 16)
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    runs = [image_ids(build_train_loader(cfg, 16), 20) for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 2


def test_another_seed_each_time_as_detectron2_has_it(make_cfg, monkeypatch) -> None:
    monkeypatch.setattr(comm, "shared_random_seed", lambda: 41)
    drawn = all_contents(take(build_train_loader(make_cfg("SEED", -1), 16), 4))
    assert drawn == all_contents(take(build_train_loader(make_cfg("SEED", 41), 16), 4))


def jittering_mapper(record: dict) -> dict:
    """A user's mapper that returns the image's number plus noise of NumPy's global generator."""
    pixels = np.full((3, 16, 16), record["image_id"], np.uint8)
    pixels[:, :8] += np.random.randint(0, 99, (3, 8, 16)).astype(np.uint8)  # noqa: NPY002
    return {"image": torch.from_numpy(pixels)}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mapper_of_the_users_own(make_cfg, workers: int) -> None:
    cfg = make_cfg("DATALOADER.NUM_WORKERS", workers, "SEMI.BURN_IN", 0)
    loader = build_train_loader(cfg, 16, mapper=jittering_mapper)
    batches = [next(loader.unlabeled).weak.tensor for _ in range(3)]
    loader.close()
    again = build_train_loader(make_cfg("SEMI.BURN_IN", 0), 16, mapper=jittering_mapper).unlabeled
    assert all(torch.equal(batch, next(again).weak.tensor) for batch in batches)
    assert not torch.equal(batches[0], batches[1])
    assert all((batch[:, :, 8:16, :16] == batch[:, :1, 8:9, :1]).all() for batch in batches)


def test_images_without_boxes(make_cfg, tmp_path) -> None:
    coco = Coco(tmp_path / "sparse", SIZES[:4])
    del coco.content["annotations"][1:]
    options = ("DATASETS.TRAIN", f"['{coco.write()}']", "SEMI.METHOD", "supervised", "SEMI.LABELED_COUNT", 0)
    assert len(build_train_loader(make_cfg(*options), 16).data.labeled) == 1
    loader = build_train_loader(make_cfg(*options, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False), 16)
    counts = [len(targets.boxes) for labeled, _, _ in take(loader, 8) for targets in labeled.targets]
    assert set(counts) == {0, 1}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_clear_error(make_cfg, workers: int) -> None:
    cfg = make_cfg("DATALOADER.NUM_WORKERS", workers)
    data = read_data(cfg)
    path = Path(data.unlabeled[0]["file_name"])
    path.write_bytes(path.read_bytes()[:-200])
    loader = build_train_loader(cfg, 16, data=data)
    with pytest.raises(DataError, match=rf"^{path}: truncated or damaged image") as error:
        take(loader, 10)
    assert "Traceback" not in str(error.value)
