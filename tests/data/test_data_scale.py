"""Data sets of COCO's size: packed records, and a tenth of COCO (all of it: tests/data/bench_scale.py)."""

from __future__ import annotations

import gc
import json
import pickle
import sys
import time
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from sed.data.loaders import Stream, start_worker
from sed.data.packing import PackedRecords, pack, without_gc
from sed.data.partition import Split, partition
from tests.data import bench_scale


def record(index: int, boxes: int = 1) -> dict:
    items = [{"bbox": [1.5, 2, index + 1, 4], "category_id": index % 3, "iscrowd": 0} for _ in range(boxes)]
    return {"file_name": f"{index}.jpg", "image_id": index, "height": 40 + index, "width": 60, "annotations": items}


RECORDS = [record(index, index % 4) for index in range(9)]


# ---------------------------------------------------------------------------------------------- packed records
def test_packed_records_are_the_records() -> None:
    packed = PackedRecords(RECORDS)
    assert len(packed) == 9
    assert [packed[i] for i in range(9)] == list(packed) == RECORDS
    assert (packed[-1], packed[-9]) == (RECORDS[8], RECORDS[0])
    assert packed[2:7:2] == RECORDS[2:7:2]
    assert packed[:0] == []
    assert packed.sizes.tolist() == [[40 + i, 60] for i in range(9)]
    assert RECORDS[3] in packed
    assert packed == RECORDS
    assert packed != RECORDS[:-1]
    assert packed != RECORDS[::-1]


@pytest.mark.parametrize("index", [9, -10])
def test_beyond_the_end(index: int) -> None:
    with pytest.raises(IndexError, match=f"record {index} of 9"):
        PackedRecords(RECORDS)[index]


def test_no_record() -> None:
    packed = PackedRecords([])
    assert (len(packed), list(packed), packed.sizes.shape) == (0, [], (0, 2))
    assert not packed
    assert pickle.loads(pickle.dumps(packed)) == []


def test_what_is_changed_is_a_copy() -> None:
    packed = PackedRecords(RECORDS)
    packed[1]["annotations"].clear()
    next(iter(packed))["file_name"] = "other"
    assert packed == RECORDS


def test_nothing_is_packed_twice() -> None:
    packed = pack(RECORDS)
    assert pack(packed) is packed
    stream = Stream(packed, lambda r, p: r["image_id"], 3, 0, 0, list, aspect_grouping=False)
    assert stream._work.records is packed
    data = partition(
        lambda: _dataset(RECORDS[:4]),
        lambda: _dataset(RECORDS[4:]),
        list,
        divide=Split(),
        method="sed",
        filter_empty=False,
        num_classes=3,
        classes_key="K",
    )
    assert isinstance(data.labeled.records, PackedRecords)
    assert isinstance(data.unlabeled, PackedRecords)
    assert data.labeled.records == RECORDS[:4]
    assert all("annotations" not in r for r in data.unlabeled)


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch) -> None:
    """The files that `RECORDS` name, each with other bytes."""
    monkeypatch.chdir(tmp_path)
    for index in range(9):
        (tmp_path / f"{index}.jpg").write_bytes(bytes([index]))


def _dataset(records: list[dict]):
    from sed.data.records import Dataset

    return Dataset("set", records, ("a", "b", "c"), (1, 2, 3))


# ---------------------------------------------------------------------------------------------- processes
def test_other_processes_share_the_records_and_copy_nothing() -> None:
    """The message to a spawned worker does not grow with the records: they are in shared memory."""
    few, many = (len(ForkingPickler.dumps(PackedRecords([record(i, 5) for i in range(n)]))) for n in (10, 3000))
    assert many < few + 100
    assert len(pickle.dumps(PackedRecords([record(i, 5) for i in range(3000)]))) > 100 * many


def _predict(packed: PackedRecords, queue: mp.Queue) -> None:
    queue.put([packed[5]["image_id"], len(packed), packed.sizes[3].tolist()])


@pytest.mark.slow
def test_a_spawned_process_reads_them() -> None:
    context = mp.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_predict, args=(PackedRecords(RECORDS), queue))
    process.start()
    assert queue.get(timeout=120) == [5, 9, [43, 60]]
    process.join(60)
    assert process.exitcode == 0


def test_workers_copy_no_shared_page() -> None:
    """A started worker's garbage collector does not track the objects of its parent."""
    threads, mine = torch.get_num_threads(), [[] for _ in range(1000)]
    try:
        start_worker()
        assert gc.get_freeze_count() > 1000
        assert not any(item is mine for item in gc.get_objects())
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)


def test_without_gc() -> None:
    @without_gc()
    def fails() -> None:
        assert not gc.isenabled()
        with without_gc():
            pass
        assert not gc.isenabled()
        raise KeyError

    assert gc.isenabled()
    for _ in range(2):
        with pytest.raises(KeyError):
            fails()
        assert gc.isenabled()


# ---------------------------------------------------------------------------------------------- a tenth of COCO
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("engine", ["torchvision", "detectron2"])
def test_a_tenth_of_coco(tenth, engine: str) -> None:
    """Bounds are a tenth of 1 GiB, and half as much processor time again as Python's json takes for the same file.

    Of both the least of up to three: other work only adds. It was ten times as much while every record was a dict.
    """
    if engine == "detectron2":
        pytest.importorskip("detectron2", reason="needs Detectron2")

    def measured(name: str) -> dict:
        return bench_scale.measure(engine, tenth / name, workers=1, batches=40)

    everything, few = measured("all"), measured("few")
    for kind in ("rss", "pss", "uss"):
        used = [max(worker[kind] for worker in result["workers"]) for result in (everything, few)]
        assert used[0] - used[1] < 1024 / 10, kind
    assert everything["main"]["rss"] - few["main"]["rss"] < 1024 / 10
    bound = 1.5 * min(seconds_of_json(tenth / "all/labeled.json") for _ in range(3))
    cpu = [everything["cpu"], few["cpu"]]
    for _ in range(2):
        if cpu[0] - cpu[1] >= bound:
            cpu = [min(cpu[0], measured("all")["cpu"]), min(cpu[1], measured("few")["cpu"])]
    assert cpu[0] - cpu[1] < bound
    assert len(everything["workers"]) == 2


def seconds_of_json(path: Path) -> float:
    """Processor time of reading a file by Python's json."""
    start = time.process_time()
    json.loads(path.read_text())
    return time.process_time() - start


@pytest.fixture(scope="module")
def tenth(tmp_path_factory):
    """A tenth of COCO's size, and 200 images."""
    folder = tmp_path_factory.mktemp("scale")
    for name, share in (("all", 0.1), ("few", 200 / bench_scale.LABELED)):
        bench_scale.make_data(folder / name, share)
    return folder
