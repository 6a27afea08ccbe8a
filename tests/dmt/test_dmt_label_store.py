import os
from pathlib import Path

import numpy as np
import pytest

from dmt.label_store import TABLE, LabelStore
from sed.data.errors import DataError


def image(seed, shape=(7, 9)):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 256, shape).astype(np.uint8)
    return labels, rng.integers(0, 65536, shape).astype(np.uint16)


@pytest.fixture
def store(tmp_path):
    return LabelStore(tmp_path / "round" / "labels")


@pytest.mark.parametrize("shape", [(7, 9), (1, 1), (1, 300), (505, 3)])
def test_an_image_comes_back_as_it_was(store, shape):
    labels, codes = image(0, shape)
    labels[0, 0], codes[0, 0] = 255, 65535
    store.write("2007_000027", labels, codes)
    for found, expected in zip(store.read("2007_000027"), (labels, codes), strict=True):
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)
    assert sorted(path.name for path in store.folder.iterdir()) == ["2007_000027.conf.png", "2007_000027.png"]


def test_views_are_stored_too(store):
    labels, codes = image(1)
    store.write("a", labels[:, ::-1], codes[::2].repeat(2, 0)[:7])
    assert np.array_equal(store.read("a")[0], labels[:, ::-1])


def test_what_is_there_and_what_is_not(store):
    assert "a" not in store
    store.write("a", *image(0))
    assert "a" in store
    assert "b" not in store
    (store.folder / "a.png").unlink()
    assert "a" not in store
    with pytest.raises(DataError, match=r"a\.png: no such file; the images must be labelled first"):
        store.read("a")


@pytest.mark.parametrize("name", ["a.png", "a.conf.png"])
@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_damage_names_the_file_and_the_remedy(store, name, content):
    store.write("a", *image(0))
    path = store.folder / name
    path.write_bytes(path.read_bytes()[:20] if content is None else content)
    with pytest.raises(DataError, match=rf"{name}: not a whole PNG of one uint.* channel; delete it"):
        store.read("a")


def test_swapped_and_unequal_files_are_errors(store):
    store.write("a", *image(0))
    store.write("b", *image(0, (3, 3)))
    os.replace(store.folder / "b.png", store.folder / "a.png")
    with pytest.raises(DataError, match="differ in size"):
        store.read("a")
    os.replace(store.folder / "a.conf.png", store.folder / "a.png")
    (store.folder / "b.conf.png").rename(store.folder / "a.conf.png")
    with pytest.raises(DataError, match=r"a\.png: not a whole PNG of one uint8"):
        store.read("a")


@pytest.mark.parametrize("dying", ["imencode", "first", "second"])
def test_a_death_while_writing_leaves_the_image_to_be_labelled_again(store, monkeypatch, dying):
    store.write("a", *image(0))
    done = []

    def replace(one, two, real=os.replace):
        if len(done) == {"imencode": 9, "first": 0, "second": 1}[dying]:
            raise KeyboardInterrupt
        done.append(two)
        real(one, two)

    def imencode(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sed.data.files.os.replace", replace)
    if dying == "imencode":
        monkeypatch.setattr("dmt.label_store.cv2.imencode", imencode)
    with pytest.raises(KeyboardInterrupt):
        store.write("b", *image(1))
    monkeypatch.undo()
    assert "b" not in store
    assert np.array_equal(store.read("a")[0], image(0)[0])
    store.write("b", *image(1))
    assert np.array_equal(store.read("b")[1], image(1)[1])


@pytest.mark.parametrize("key", ["", "a/b", "../a", ".a", "a.conf"])
def test_keys_that_are_no_file_names(store, key):
    with pytest.raises(DataError, match="is no file name"):
        store.write(key, *image(0))


@pytest.mark.parametrize(
    ("labels", "codes"),
    [
        (np.zeros((3, 3), np.int64), np.zeros((3, 3), np.uint16)),
        (np.zeros((3, 3), np.uint8), np.zeros((3, 3), np.int32)),
        (np.zeros((3, 3), np.uint8), np.zeros((3, 4), np.uint16)),
        (np.zeros((3, 3, 1), np.uint8), np.zeros((3, 3, 1), np.uint16)),
        (np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.uint16)),
    ],
)
def test_other_shapes_and_types_are_refused(store, labels, codes):
    with pytest.raises(DataError, match="pseudo-labels of a: expected labels uint8 and codes uint16"):
        store.write("a", labels, codes)
    assert not store.folder.exists()


# ---------------------------------------------------------------- the table of whole images
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_a_table_comes_back_as_it_was(store, count):
    labels, codes = image(2, (count,))
    keys = [f"train_{i:05d}" for i in range(count)][::-1]
    store.write_table(keys, labels, codes)
    found = store.read_table()
    assert found[0] == keys
    for one, expected in zip(found[1:], (labels, codes), strict=True):
        assert one.dtype == expected.dtype
        assert np.array_equal(one, expected)
    assert [path.name for path in store.folder.iterdir()] == [TABLE]


def test_a_new_table_takes_the_old_ones_place_or_leaves_it(store, monkeypatch):
    store.write_table(["a", "b"], np.array([1, 2]), np.array([3, 4]))
    store.write_table(["c"], np.array([5]), np.array([6]))
    assert store.read_table()[0] == ["c"]

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sed.data.files.os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        store.write_table(["d"], np.array([7]), np.array([8]))
    assert store.read_table()[0] == ["c"]


def test_no_table_and_a_damaged_table(store):
    with pytest.raises(DataError, match=rf"{TABLE}: no such file; the images must be labelled first"):
        store.read_table()
    store.write_table(["a", "b"], np.array([1, 2]), np.array([3, 4]))
    path: Path = store.folder / TABLE
    whole = path.read_bytes()
    for damage in (b"", b"nonsense", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(damage)
        with pytest.raises(DataError, match="not a table of pseudo-labels"):
            store.read_table()
    with open(path, "wb") as stream:
        np.savez(stream, keys=np.array(["a"]))
    with pytest.raises(DataError, match="not a table of pseudo-labels"):
        store.read_table()


@pytest.mark.parametrize(
    ("keys", "labels", "codes", "message"),
    [
        (["a", "a"], [1, 2], [3, 4], r"2 keys \(1 different\)"),
        (["a"], [1, 2], [3, 4], r"1 keys"),
        (["a"], [[1]], [[3]], r"labels \(1, 1\)"),
        (["a"], [256], [3], "labels go from 256"),
        (["a"], [1], [65536], "codes go from 65536"),
        (["a"], [-1], [3], "labels go from -1"),
    ],
)
def test_tables_that_do_not_fit(store, keys, labels, codes, message):
    with pytest.raises(DataError, match=message):
        store.write_table(keys, np.array(labels), np.array(codes))
