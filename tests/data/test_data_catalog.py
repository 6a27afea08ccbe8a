"""Reading data sets, and the error for every fault of a json, a folder or a pair of sets."""

from __future__ import annotations

import logging
import shutil

import cv2
import pytest

from sed.data.catalog import known_names, load_dataset, load_datasets
from sed.data.coco import load_coco
from sed.data.errors import DataError
from sed.data.records import Dataset, check_disjoint, check_same_classes, reorder, strip_annotations, without_empty


def test_records_are_detectron2_dataset_dicts(make_coco) -> None:
    coco = make_coco()
    dataset = load_coco(coco.write())
    assert dataset.classes == ("dog", "cat")  # by id: 3, 7
    assert dataset.category_ids == (3, 7)
    assert dataset.records[1] == {
        "file_name": str(coco.folder / "1.jpg"),
        "image_id": 11,
        "height": 60,
        "width": 40,
        "annotations": [{"bbox": [4, 6, 10, 8], "bbox_mode": 1, "category_id": 0, "iscrowd": 0, "area": 80}],
    }


def test_the_json_of_a_set_is_known(make_coco, tmp_path) -> None:
    sources = [str(make_coco(name=name, seed=seed).write()) for seed, name in enumerate("ab")]
    assert load_dataset(sources[0]).json_file == sources[0]
    assert load_datasets(sources[:1]).json_file == sources[0]
    assert load_datasets(sources).json_file == ""  # none holds both
    assert load_dataset(str(tmp_path), labeled=False).json_file == ""


def test_unlabelled_records_have_no_annotations(make_coco) -> None:
    path = make_coco().write()
    assert all("annotations" not in r for r in load_dataset(str(path), labeled=False).records)
    stripped = strip_annotations(load_dataset(str(path)).records)
    assert stripped == load_dataset(str(path), labeled=False).records


def test_unlabelled_json_needs_no_annotations_and_reads_none(make_coco) -> None:
    coco = make_coco()
    coco.content["annotations"] = [{"nonsense": True}]
    assert len(load_dataset(str(coco.write()), labeled=False)) == 3
    del coco.content["annotations"], coco.content["categories"]
    assert len(load_dataset(str(coco.write()), labeled=False)) == 3


@pytest.mark.parametrize("where", ["images", "set"])
def test_images_are_found_beside_the_json(make_coco, where: str) -> None:
    coco = make_coco()
    (coco.folder / where).mkdir()
    for i in range(3):
        shutil.move(coco.folder / f"{i}.jpg", coco.folder / where)
    assert load_coco(coco.write()).records[0]["file_name"] == str(coco.folder / where / "0.jpg")
    (coco.folder / "elsewhere").mkdir()
    with pytest.raises(DataError, match="missing"):
        load_coco(coco.write(), image_root=coco.folder / "elsewhere")


def test_missing_image_names_the_file_and_what_was_tried(make_coco) -> None:
    coco = make_coco()
    (coco.folder / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"1\.jpg is missing \(1 of 3.*images, .*DATASETS\.IMAGE_ROOT"):
        load_coco(coco.write())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a json file"),
        ("[1, 2]", "not COCO: expected an object"),
        ('{"images": []}', "not COCO: .*'categories', 'annotations'. are missing"),
        ('{"images": {}, "annotations": [], "categories": []}', "not COCO: .*'images'"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', r"images\[0\] \(id 1\): lacks file_name"),
        ('{"images": [], "annotations": [7], "categories": []}', r"annotations\[0\]: lacks id"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no image"),
    ],
)
def test_not_coco(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        load_coco(path)
    assert str(path) in str(error.value)


def test_binary_file_is_not_coco(make_coco) -> None:
    with pytest.raises(DataError, match="not a json file"):
        load_dataset(str(make_coco().folder / "0.jpg"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][1].update(category_id=99), r"annotation 1 .*category id 99.*\[3, 7\]"),
        (lambda c: c["annotations"][1].update(image_id=99), "annotation 1 .*no image with this id"),
        (lambda c: c["annotations"][1].update(id=0), "annotation id 0 occurs twice"),
        (lambda c: c["images"][1].update(id=10), "image id 10 occurs twice"),
        (lambda c: c["categories"][1].update(id=7), "category id 7 occurs twice"),
        (lambda c: c["categories"][1].update(name="cat"), "category name 'cat' occurs twice"),
        (
            lambda c: c["annotations"][1].update(iscrowd="yes"),
            r"\[1\] .*: iscrowd is 'yes'; expected 0 or 1",
        ),
        (lambda c: c["annotations"][1].update(iscrowd=[]), r"annotations\[1\] .*: iscrowd is \[\]; expected 0 or 1"),
        (lambda c: c["categories"][1].update(id="seven"), r"categories\[1\]: id is 'seven'; expected a whole number"),
        (lambda c: c["images"][1].update(height=-1), r"images\[1\] \(id 11\): height is -1; expected .* pixels, 1 to"),
    ],
)
def test_faults_that_stop(make_coco, change, message: str) -> None:
    coco = make_coco()
    change(coco.content)
    path = coco.write()
    with pytest.raises(DataError, match=message) as error:
        load_coco(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("area", "expected", "told"),
    [(7.5, 7.5, 0), (7, 7, 0), ("7.5", 7.5, 0), (None, 0, 0), (0, 0, 0)]
    + [(bad, 0, 1) for bad in (-3, float("nan"), float("inf"), "wide", [1], {"a": 1}, True)],
)
def test_an_area_that_is_no_positive_number_is_that_of_the_box(make_coco, caplog, area, expected, told) -> None:
    """APs, APm and APl divide the objects by it."""
    builder = make_coco()
    first = builder.content["annotations"][0]
    first["area"] = area
    with caplog.at_level(logging.WARNING):
        found = load_coco(builder.write()).records[0]["annotations"][0]
    assert found["area"] == (expected or found["bbox"][2] * found["bbox"][3])
    assert sum("took 1 areas from the box" in record.getMessage() for record in caplog.records) == told


def test_faulty_boxes_are_dropped_or_clipped_with_one_warning(make_coco, caplog) -> None:
    coco = make_coco()
    boxes = [[5, 5, 0, 9], [5, 5, 9, -3], [70, 5, 9, 9], [-20, 5, 20, 9], [50, 30, 30, 30], [-0.5, 5, 9, 9]]
    for i, box in enumerate(boxes):  # image 0 is 60 wide, 40 high
        coco.content["annotations"].append({"id": 100 + i, "image_id": 10, "category_id": 7, "bbox": box})
    with caplog.at_level(logging.WARNING):
        records = load_coco(coco.write()).records
    assert [a["bbox"] for a in records[0]["annotations"]] == [[4, 6, 10, 8], [50, 30, 10, 10], [0, 5, 8.5, 9]]
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "dropped 4 boxes" in message
    assert "annotation 100)" in message
    assert "clipped 1 boxes" in message  # half a pixel is rounding and not counted
    assert "annotation 104)" in message


def test_a_clean_file_gives_no_warning(make_coco, caplog) -> None:
    load_coco(make_coco().write())
    assert caplog.records == []


def test_empty_labelled_set(make_coco) -> None:
    coco = make_coco()
    coco.content["annotations"] = coco.content["annotations"][:1]
    coco.content["annotations"][0]["iscrowd"] = 1
    with pytest.raises(DataError, match="no usable box"):
        load_coco(coco.write())


def test_without_empty(make_coco) -> None:
    coco = make_coco()
    del coco.content["annotations"][0]
    coco.content["annotations"][0]["iscrowd"] = 1
    records = load_coco(coco.write()).records
    assert [r["image_id"] for r in without_empty(records)] == [12]
    with pytest.raises(DataError, match="none of its 2 images has a box"):
        without_empty(records[:2])


def test_folder_of_images(tmp_path, make_image) -> None:
    for name, size in {"b.jpg": (20, 30), "a/c.PNG": (10, 12), "a/d.webp": (8, 9), "e.bmp": (5, 6)}.items():
        if name.endswith("PNG"):
            make_image(tmp_path / "a/c.png", *size).rename(tmp_path / name)
        else:
            make_image(tmp_path / name, *size)
    (tmp_path / "notes.txt").write_text("no image")
    dataset = load_dataset(str(tmp_path), labeled=False)
    found = [(r["image_id"], r["height"], r["width"]) for r in dataset.records]
    assert found == [("a/c.PNG", 10, 12), ("a/d.webp", 8, 9), ("b.jpg", 20, 30), ("e.bmp", 5, 6)]
    assert not any("annotations" in r for r in dataset.records)


def test_folder_without_image(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"no image in this folder; looked for \.jpg"):
        load_dataset(str(tmp_path), labeled=False)


def test_folder_with_a_file_that_is_no_image(tmp_path, make_image) -> None:
    make_image(tmp_path / "a.jpg", 10, 10)
    (tmp_path / "b.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"b\.jpg: not a readable image"):
        load_dataset(str(tmp_path), labeled=False)


def test_a_folder_cannot_be_labelled(tmp_path, make_image) -> None:
    make_image(tmp_path / "a.jpg", 10, 10)
    with pytest.raises(DataError, match="no annotations in this folder"):
        load_dataset(str(tmp_path))


def test_unknown_source_lists_the_names() -> None:
    with pytest.raises(DataError, match="coco_2017_train"):
        load_dataset("cooc_2017_train")
    assert "digits_hard_tune" in known_names()


def test_the_error_for_absent_coco_names_where_it_is_expected(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(DataError, match=r"instances_val2017\.json is missing.*DETECTRON2_DATASETS"):
        load_dataset("coco_2017_val")


def test_known_coco_is_read_from_the_data_root(tmp_path, monkeypatch, make_coco) -> None:
    coco = make_coco()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "coco/annotations").mkdir(parents=True)
    coco.write().rename(tmp_path / "coco/annotations/instances_val2017.json")
    coco.folder.rename(tmp_path / "coco/val2017")
    assert load_dataset("coco_2017_val").records[0]["file_name"] == str(tmp_path / "coco/val2017/0.jpg")


def test_several_sources_become_one_with_unique_ids(make_coco) -> None:
    first, second = make_coco(name="a").write(), make_coco(name="b").write()
    merged = load_datasets([str(first), str(second)])
    assert len({r["image_id"] for r in merged.records}) == len(merged) == 6
    assert load_datasets([str(first)]).records[0]["image_id"] == 10


def test_no_source_at_all() -> None:
    with pytest.raises(DataError, match="no data set given"):
        load_datasets([])


def test_classes_that_differ(make_coco) -> None:
    train = load_coco(make_coco(name="a").write())
    other = make_coco(name="b")
    other.content["categories"][0]["name"] = "cow"
    with pytest.raises(DataError, match=r"only in the first: \['cat'\]; only in the second: \['cow'\]"):
        check_same_classes(train, load_coco(other.write()))
    swapped = Dataset("swapped", train.records, train.classes[::-1], train.category_ids)
    with pytest.raises(DataError, match="the order differs"):
        check_same_classes(train, swapped)
    check_same_classes(train, train)


def test_classes_are_matched_by_name(make_coco) -> None:
    """In another order: every annotation keeps the name of its class and the id of its category."""
    data = load_coco(make_coco(name="a").write())
    other = data.classes[::-1]
    moved = reorder(data, other, "the model")
    assert moved.classes == other
    assert dict(zip(moved.classes, moved.category_ids, strict=True)) == dict(
        zip(data.classes, data.category_ids, strict=True)
    )
    for before, after in zip(data.records, moved.records, strict=True):
        names = [[s.classes[a["category_id"]] for a in r["annotations"]] for s, r in ((data, before), (moved, after))]
        assert names[0] == names[1]
        assert [a["bbox"] for a in before["annotations"]] == [a["bbox"] for a in after["annotations"]]
    assert any(r["annotations"] for r in moved.records)
    assert reorder(moved, data.classes, "x").records == data.records
    assert reorder(data, (), "nobody") is data
    with pytest.raises(DataError, match=r"the model has \['cow'\]: they are matched by name"):
        reorder(data, ["cow"], "the model")


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("how", ["path", "link", "content"])
def test_sets_that_overlap(make_coco, caplog, monkeypatch, pair: tuple[int, int], how: str) -> None:
    folders = [make_coco(name=n, seed=i).folder for i, n in enumerate("abc")]
    sets = [[{"file_name": str(folder / f"{i}.jpg")} for i in range(3)] for folder in folders]
    check_disjoint(*sets)
    names = ["labelled", "unlabelled", "validation"]
    source, target = sets[pair[0]][1]["file_name"], folders[pair[1]] / "2.jpg"
    target.unlink()
    if how == "path":
        sets[pair[1]][2]["file_name"] = source
    elif how == "link":
        target.symlink_to(source)
    else:
        shutil.copy(source, target)
    if (pair, how) == ((0, 1), "content"):  # no evaluation is better by it
        monkeypatch.setattr(logging.getLogger("sed"), "propagate", True)
        with caplog.at_level(logging.WARNING):
            check_disjoint(*sets)
        (told,) = {record.getMessage() for record in caplog.records if record.name == "sed.data.records"}
    else:
        with pytest.raises(DataError) as error:
            check_disjoint(*sets)
        told = str(error.value)
    assert source in told
    assert all(names[i] in told for i in pair)
    if how == "content":
        assert str(target) in told


def test_equal_images_within_one_set_are_no_overlap(make_coco) -> None:
    folder = make_coco().folder
    shutil.copy(folder / "0.jpg", folder / "1.jpg")
    records = [{"file_name": str(folder / f"{i}.jpg")} for i in range(3)]
    check_disjoint(records[:2], records[2:], [])


def test_files_of_equal_length_are_distinguished(tmp_path) -> None:
    paths = [tmp_path / name for name in "ab"]
    paths[0].write_bytes(b"x" * 9000)
    paths[1].write_bytes(b"y" + b"x" * 8999)  # differs outside the 4 KiB of the middle
    check_disjoint([{"file_name": str(paths[0])}], [], [{"file_name": str(paths[1])}])


def test_folder_sizes_follow_exif_orientation(tmp_path, make_image) -> None:
    from PIL import Image

    make_image(tmp_path / "flat.jpg", 20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tmp_path / "flat.jpg").save(tmp_path / "turned.jpg", exif=exif)
    records = load_dataset(str(tmp_path), labeled=False).records
    assert [(r["height"], r["width"]) for r in records] == [(20, 30), (30, 20)]
    assert cv2.imread(str(tmp_path / "turned.jpg")).shape[:2] == (30, 20)
