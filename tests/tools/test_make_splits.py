"""`tools/make_splits.py`: every command of datasets/README.md, what the files hold, and what is refused."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import make_splits
import pytest

from sed.data.coco import load_coco
from sed.data.digits import make_digits
from sed.data.splits import check_manifest, file_hash, read_manifest, split
from tests.reference.small import SMALL
from tests.repo.test_docs import commands

ROOT = Path(__file__).resolve().parents[2]
SHORT = "SOLVER.MAX_ITER 2 SOLVER.STEPS (2,) SOLVER.CHECKPOINT_PERIOD 2 TEST.EVAL_PERIOD 0 SEMI.BURN_IN 1"
PAGE = [shlex.split(line) for line in commands((ROOT / "datasets/README.md").read_text())]
SPLITS = {words[-1]: words[2:] for words in PAGE if words[1] == "tools/make_splits.py"}
FILES = ["labeled.json", "manifest.json", "unlabeled.json"]
IMAGES = 200


def renumbered(content: dict, first: int, images: slice = slice(None)) -> dict:
    """Some images of a set, with ids from `first` on."""
    kept = {image["id"]: first + n for n, image in enumerate(content["images"][images])}
    return {
        **content,
        "images": [{**i, "id": kept[i["id"]]} for i in content["images"] if i["id"] in kept],
        "annotations": [
            {**a, "image_id": kept[a["image_id"]]} for a in content["annotations"] if a["image_id"] in kept
        ],
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the project's root, with a COCO of digits in datasets/, laid out as the page says."""
    folder = tmp_path_factory.mktemp("home")
    made = make_digits(tmp_path_factory.mktemp("data"), counts=(IMAGES, 20, 4))
    coco = folder / "datasets/coco"
    (coco / "annotations").mkdir(parents=True)
    for name in ("configs", "tools"):
        (folder / name).symlink_to(ROOT / name)
    for name, source in (("train2017", "train"), ("val2017", "test")):
        (coco / name).symlink_to(made / source)
    train, tune, test = (json.loads((made / f"{name}.json").read_text()) for name in ("train", "tune", "test"))
    val2014 = renumbered(train, 5000, slice(100, None))
    minival = renumbered(test, 9000)
    val2014["images"] += minival["images"]
    val2014["annotations"] = [  # as two files cannot share annotation ids
        {**a, "id": n} for n, a in enumerate(val2014["annotations"] + minival["annotations"], 1)
    ]
    for name, content in {
        "instances_train2017": renumbered(train, 1000),
        "instances_val2017": minival,
        "instances_train2014": renumbered(train, 3000, slice(0, 100)),
        "instances_val2014": val2014,
        "image_info_unlabeled2017": {"images": renumbered(tune, 7000)["images"]},
    }.items():
        (coco / "annotations" / f"{name}.json").write_text(json.dumps(content))
    (folder / "datasets/COCO_supervision.txt").write_text(json.dumps({"10.0": {"1": list(range(0, IMAGES, 10))}}))
    return folder


@pytest.fixture
def inside(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def ids(path: Path) -> set:
    return {image["id"] for image in read(path)["images"]}


def test_the_commands_of_the_data_page_run_as_they_stand(inside: Path) -> None:
    assert len(SPLITS) == 7
    for words in SPLITS.values():
        make_splits.main(words)
    made = inside / "datasets/splits"
    several = [made / f"coco/percent_{p}_fold_{f}" for p in ("0.5", "1", "2", "5", "10") for f in range(5)]
    folders = [Path(name) for name in SPLITS if not name.endswith("/coco")] + several
    for folder in folders:
        manifest = read_manifest(folder / "manifest.json")
        names = FILES if manifest["convention"] != "coco_35k" else sorted([*FILES, "test.json"])
        assert sorted(p.name for p in folder.iterdir()) == names
        labeled, unlabeled = read(folder / "labeled.json"), read(folder / "unlabeled.json")
        assert len(labeled["images"]) == manifest["labeled"] > 0
        assert len(unlabeled["images"]) == manifest["unlabeled"] > 0
        assert {a["image_id"] for a in labeled["annotations"]} <= set(manifest["labeled_ids"])
        assert sum(manifest["boxes_per_class"].values()) == len(labeled["annotations"])
        assert "annotations" not in unlabeled
        assert unlabeled["categories"] == labeled["categories"]
        for path, found in manifest["sources_sha256"].items():
            assert file_hash(path) == found
    sizes = [read_manifest(folder / "manifest.json")["labeled"] for folder in several]
    assert sizes == [n for n in (1, 2, 4, 10, 20) for _ in range(5)]


def test_what_is_labelled_is_what_a_run_would_label(inside: Path) -> None:
    source = "datasets/coco/annotations/instances_train2017.json"
    every = load_coco(source, "datasets/coco/train2017")
    for command in ("--percent 5 --fold 3", "--count 13 --fold 1"):
        words = command.split()
        make_splits.main([*words, "--annotations", source, "--output", f"out/{words[0]}"])
        labeled, unlabeled = split(
            every.records, **{words[0][2:]: float(words[1]) if "." in words[1] else int(words[1])}, fold=int(words[3])
        )
        folder = inside / "out" / words[0]
        assert ids(folder / "labeled.json") == {r["image_id"] for r in labeled}
        read_back = load_coco(folder / "labeled.json", "datasets/coco/train2017")
        assert read_back.records == labeled, "the boxes too"
        assert read_back.classes == every.classes
        stripped = load_coco(folder / "unlabeled.json", "datasets/coco/train2017", labeled=False)
        assert stripped.records == unlabeled
        check_manifest(folder / "manifest.json", read_back.records, stripped.records)


def test_labels_of_unlabelled_images_have_no_say(inside: Path, tmp_path: Path) -> None:
    source = inside / "datasets/coco/annotations/instances_train2017.json"
    other = {**read(source), "annotations": read(source)["annotations"][:1]}
    (tmp_path / "bare.json").write_text(json.dumps(other))
    for like in ([], ["--like", "soft_teacher", "--seed-offset", "77"], ["--like", "stac"]):
        chosen = []
        for path in (source, tmp_path / "bare.json"):
            folder = tmp_path / f"{path.stem}{len(like)}{like[-1:]}"
            make_splits.main(["--annotations", str(path), "--percent", "10", *like, "--output", str(folder)])
            chosen.append(ids(folder / "labeled.json"))
            assert not read_manifest(folder / "manifest.json")["reads_unlabeled_labels"]
        assert chosen[0] == chosen[1]


def test_a_convention_that_reads_them_says_so(inside: Path, tmp_path: Path, capsys) -> None:
    source = read(inside / "datasets/coco/annotations/instances_train2017.json")
    empty = source["images"][7]["id"]
    source["annotations"] = [a for a in source["annotations"] if a["image_id"] != empty]
    (tmp_path / "set.json").write_text(json.dumps(source))
    words = ["--annotations", str(tmp_path / "set.json"), "--percent", "10", "--like", "unbiased_teacher"]
    make_splits.main([*words, "--output", str(tmp_path / "out")])
    manifest = read_manifest(tmp_path / "out/manifest.json")
    assert manifest["reads_unlabeled_labels"]
    assert (manifest["left_out"], manifest["fold"], manifest["labeled"], manifest["unlabeled"]) == (1, 1, 19, 180)
    assert empty not in ids(tmp_path / "out/unlabeled.json")
    told = capsys.readouterr().out
    assert "note: 1 of 200 images without a box were left out, labelled or not: this convention reads" in told
    assert all(f"note: {note}" in told for note in manifest["notes"])


def test_file_names_of_protocols_with_several_folders(inside: Path, capsys) -> None:
    """One DATASETS.IMAGE_ROOT serves all parts, and the tool prints it."""
    make_splits.main(SPLITS["datasets/splits/coco_35k"])
    made = inside / "datasets/splits/coco_35k"
    first = {name: read(made / f"{name}.json")["images"][0]["file_name"] for name in ("labeled", "unlabeled", "test")}
    assert {name: file.split("/")[0] for name, file in first.items()} == {
        **{"labeled": "val2014", "unlabeled": "train2014", "test": "val2014"}
    }
    keys = "DATASETS.TEST datasets/splits/coco_35k/test.json DATASETS.IMAGE_ROOT datasets/coco SEMI"
    assert keys in capsys.readouterr().out
    manifest = read_manifest(made / "manifest.json")
    assert (manifest["labeled"], manifest["unlabeled"], manifest["test"]) == (100, 100, 4)
    assert read(made / "test.json")["annotations"]


def test_the_folder_of_the_images_is_told(inside: Path, tmp_path: Path, capsys) -> None:
    make_splits.main(SPLITS["datasets/splits/stac_10_1"])
    assert "DATASETS.IMAGE_ROOT datasets/coco/train2017 " in capsys.readouterr().out
    source = read(inside / "datasets/coco/annotations/instances_train2017.json")
    (tmp_path / "far.json").write_text(json.dumps(source))
    make_splits.main(["--annotations", str(tmp_path / "far.json"), "--count", "3", "--output", str(tmp_path / "out")])
    assert "DATASETS.IMAGE_ROOT FOLDER_OF_THE_IMAGES " in capsys.readouterr().out


def test_a_folder_keeps_its_split(inside: Path, tmp_path: Path) -> None:
    words = ["--annotations", "datasets/coco/annotations/instances_train2017.json", "--output", str(tmp_path / "out")]
    make_splits.main([*words, "--percent", "10"])
    before = (tmp_path / "out/labeled.json").read_bytes()
    make_splits.main([*words, "--percent", "10"])
    with pytest.raises(SystemExit, match="holds another split"):
        make_splits.main([*words, "--percent", "10", "--fold", "1"])
    assert (tmp_path / "out/labeled.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--percent 10 --annotations gone.json", "error: gone.json: no such file"),
        ("--percent 0.1", "would label 0 images; expected 1 to 199"),
        ("--count 200", "would label 200 images"),
        ("--per-class 150", "are on fewer images"),
        ("--percent 10 --like stac --fold -1", "seed -1"),
        ("--percent 10 --like unbiased_teacher --index-file gone.txt", "gone.txt: no such file"),
        ("--percent 5 --like unbiased_teacher --index-file datasets/COCO_supervision.txt", "its percents are 10.0"),
        ("--protocol full --unlabeled datasets/coco/annotations/instances_train2017.json", "200 images are in both"),
        ("--annotations twice.json --percent 10", "twice.json: image id 1000 occurs twice"),
        ("--annotations unknown.json --percent 10", "unknown.json: annotation 1 has the unknown category id 99"),
        ("--annotations stray.json --percent 10", "stray.json: annotation 1 has the unknown image id 5"),
        ("--annotations none.json --percent 10", "none.json: it lists no image"),
    ],
)
def test_what_a_user_can_put_right_is_one_line(inside: Path, tmp_path: Path, words: str, message: str) -> None:
    good = read(inside / "datasets/coco/annotations/instances_train2017.json")
    first = {**good["annotations"][0], "id": 1}
    for name, change in {
        "twice": {"images": good["images"][:2] + good["images"][:1]},
        "unknown": {"annotations": [{**first, "category_id": 99}]},
        "stray": {"annotations": [{**first, "image_id": 5}]},
        "none": {"images": []},
    }.items():
        Path(f"{name}.json").write_text(json.dumps({**good, **change}))
    source = "datasets/coco/annotations/instances_train2017.json"
    with pytest.raises(SystemExit, match=message):
        make_splits.main(["--annotations", source, *words.split(), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "one of --percent, --count and --per-class is needed"),
        ("--percent 10 --count 5", "not allowed with"),
        ("--percent 10 0", "greater than 0"),
        ("--percent nan", "greater than 0"),
        ("--count 0", "greater than 0"),
        ("--per-class -1", "greater than 0"),
        ("--count 5 --like stac", "--like goes with --percent"),
        ("--percent 5 --index-file x", "goes with --like unbiased_teacher"),
        ("--percent 5 --like stac --seed-offset 0", "goes with --like soft_teacher"),
        ("--percent 5 --unlabeled x", "--unlabeled goes with"),
        ("--protocol full", "--unlabeled goes with"),
        ("--protocol full --unlabeled x --minival x", "--minival goes with"),
        ("--protocol coco_35k --unlabeled x", "--minival goes with"),
        ("--protocol full --unlabeled x --percent 5", "leaves no choice"),
        ("--protocol full --unlabeled x --fold 0", "leaves no choice"),
    ],
)
def test_flags_that_do_not_go_together(words: str, message: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        make_splits.parse(["--annotations", "a", "--output", "b", *words.split()])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_trains_on_a_split_of_files(inside: Path) -> None:
    """The page's own command after the one that makes its split; only the model and the time are replaced."""
    make_splits.main(SPLITS["datasets/splits/stac_10_1"])
    train = [words for words in PAGE if words[1] == "tools/train_net.py"]
    assert len(train) == 1
    command = [sys.executable, *train[0][1:], *shlex.split(f"ENGINE torchvision {SHORT} {SMALL}")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment.pop("DETECTRON2_DATASETS", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    run, files = (read_manifest(f) for f in ("output/coco_10/split.json", "datasets/splits/stac_10_1/manifest.json"))
    for key in ("labeled_sha256", "unlabeled_sha256", "boxes_per_class", "labeled_ids"):
        assert run[key] == files[key]
    assert (run["convention"], files["convention"]) == ("given", "stac")
