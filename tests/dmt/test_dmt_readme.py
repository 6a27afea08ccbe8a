"""The commands of projects/DMT/README.md and projects/DST-CBC/README.md, word for word and in order, and their errors.

What is replaced is what a test cannot have: the published images and weights, ResNet-101, and time.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import compare
import pytest
import torch
import train

import dmt.build
from tests.reference.dmt_sets import squares

ROOT = Path(__file__).resolve().parents[2]
ALWAYS = "NUM_WORKERS 0 MODEL.DEVICE cpu SOLVER.MAX_STEPS 2 SOLVER.AMP.ENABLED False TEST.PICTURES 2"
SMALL = "SPLIT.RATIO 3.0 SPLIT.SELECT_COUNT 2 INPUT.CROP [33,41] INPUT.PAD_TEST [81,81] TEST.EVAL_PERIOD 1"


def commands(project: str) -> list[list[str]]:
    """Words of every command of a README's bash fences, in order, without the interpreter."""
    fences = (ROOT / "projects" / project / "README.md").read_text().split("```bash\n")[1:]
    text = "\n".join(fence.split("```")[0] for fence in fences).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in text.splitlines() if line.strip()]


@pytest.fixture
def home(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the project's root, with data and weights."""
    (tmp_path / "projects").symlink_to(ROOT / "projects")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "resnet101COCO-41f33a49.pth").symlink_to(folders / "coco.pth")
    (tmp_path / "datasets").mkdir()
    load = dmt.build.load_sets  # but for the digits on textured ground: their 1050 images take a while each time
    monkeypatch.setattr(
        dmt.build, "load_sets", lambda name, root: squares() if name == "textured_digits" else load(name, root)
    )
    for path in folders.iterdir():
        (tmp_path / "datasets" / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words: list[str]) -> None:
    """train.py with `words`."""
    small = SMALL if "voc" in " ".join(words) else ""
    sides = " INPUT.SIDES [33,50,41,60]" if "DST-CBC" in " ".join(words) else ""
    shares = "" if "METHOD.SHARES" in words else " METHOD.SHARES [0.5]"
    train.main(train.parse([*words, *f"{ALWAYS} {small}{sides}{shares}".split()]))


@pytest.mark.slow
def test_the_commands_run_as_they_stand(home: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    called = commands("DMT")
    assert [Path(words[0]).name for words in called] == ["train.py"] * 5 + ["compare.py"] * 2
    for words in called[:5]:
        run(words[1:])
    for name in ("textured_digits", "digits_classification", "dmt_voc_1_20"):
        assert (home / "output" / name / "model_final.pth").exists()
    assert "mIoU" in capsys.readouterr().out
    score = json.loads((home / "output" / "dmt_voc_1_20" / "evaluation.json").read_text())["score"]
    summary = json.loads((home / "output" / "dmt_voc_1_20" / "summary.json").read_text())
    assert score == pytest.approx(summary["test"]["score"], abs=1e-6)

    runs: list[list[str]] = []
    monkeypatch.setattr(compare, "call", lambda script, words, log: runs.append(words) or run(words))
    read = compare.read_study
    monkeypatch.setattr(compare, "read_study", lambda path: {**read(path), "seeds": [0]})
    for words, rows in zip(called[5:], (3, 10), strict=True):
        monkeypatch.setattr("sys.argv", [*words, "--jobs", "1"])
        compare.main()
        table = (home / words[-1] / "table.md").read_text()
        assert table.count("\n| ") - 2 == rows
        assert len(runs) == 2 * rows  # two cases
        runs.clear()


@pytest.mark.slow
def test_the_commands_of_dst_cbc_run_as_they_stand(home: Path) -> None:
    for words in commands("DST-CBC"):
        run(words[1:])
    stages = json.loads((home / "output" / "dst_cbc_voc_1_20" / "summary.json").read_text())["stages"]
    assert [stage["name"] for stage in stages] == ["00_baseline_A0", "01_label_A1", "02_train_A1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("METHOD.GAMA1 3", "unknown key METHOD.GAMA1; the nearest known one is METHOD.GAMMA1"),
        ("METHOD.WEIGHT soft", "METHOD.WEIGHT is 'soft'; it must be one of three_case, naive, flip, stored, threshold"),
        ("METHOD.SHARES [0.4,0.2]", "METHOD.SHARES is [0.4, 0.2]; it must hold numbers from 0 to 1, rising"),
        ("METHOD.RETRAIN True", "METHOD.RETRAIN goes with one model only"),
        ("METHOD.MUTUAL False METHOD.KEEP_BEST True", "set SPLIT.SELECT valtiny"),
        ("METHOD.RENORMALIZE True METHOD.RULE authors", "METHOD.RENORMALIZE goes with METHOD.RULE exact"),
        ("METHOD.MUTUAL False METHOD.ONLINE True METHOD.MIXUP 0.5", "METHOD.MIXUP and METHOD.ONLINE exclude"),
        ("INPUT.SCALE [3.0]", "INPUT.SCALE is [3.0]; it must hold numbers from 0.01 to 100, rising, 2 of them"),
        ("MODEL.INIT ['']", "it must name two, of model A and of model B"),
        ("METHOD.MUTUAL False METHOD.SHARES ['a']", "METHOD.SHARES is ['a']; it must hold numbers"),
        ("INPUT.RESIZE [512.5,1024]", "INPUT.RESIZE is [512.5, 1024]; it must hold whole numbers from 1 to inf"),
        ("MODEL.NORMALIZATION ['torch','half']", "each one of caffe, imagenet, cifar, half"),
        ("MODEL.DEPTH 34", "MODEL.DEPTH is 34; it must be one of 50, 101"),
        ("SOLVER.EPOCHS -1.0", "SOLVER.EPOCHS must be at least 0"),
        ("METHOD.THRESHOLD 90.0", "METHOD.THRESHOLD must be from 0 to 1"),
        ("METHOD.MUTUAL False SPLIT.DIFFERENCE_MAXIMISED True", "SPLIT.DIFFERENCE_MAXIMISED makes two models differ"),
        ("METHOD.MIXUP 0.5", "METHOD.MIXUP mixes whole images"),
        ("SPLIT.RATIO 1.0 SPLIT.SELECT valtiny", "SPLIT.RATIO leaves none"),
        ("SOLVER.EMA 1.5", "SOLVER.EMA must be from 0 to 1"),
        ("DATASETS.ROOT nowhere", "VOCtrainval_11-May-2012.tar"),
        ("DATASETS.NAME digits", "MODEL.NAME deeplab_v2 does not fit digits, a set for classification"),
        ("DATASETS.NAME digits MODEL.NAME small_classifier", "SPLIT.PER_CLASS is 0"),
        ("DATASETS.NAME digits MODEL.NAME small_classifier SPLIT.PER_CLASS 500", "500 of each class"),
        ("SPLIT.SELECT tune", "voc2012_aug has no such part; take valtiny"),
        ("MODEL.INIT_FILE gone.pth", "gone.pth: no such weights file"),
    ],
)
def test_what_cannot_be_is_one_clear_error(words: str, message: str, home: Path) -> None:
    config = ["--config-file", "projects/DMT/configs/voc_1_20.yaml"]
    with pytest.raises(SystemExit) as error:
        train.main(train.parse([*config, *SMALL.split(), *ALWAYS.split(), *words.split(" ")]))
    assert str(error.value).startswith("error: ")
    assert message in str(error.value)


def test_weights_of_another_model_are_refused(home: Path) -> None:
    torch.save({"a": torch.zeros(2)}, "other.pth")
    with pytest.raises(SystemExit, match=r"error: other\.pth: of another model \(39 tensors differ"):
        run(["--config-file", "projects/DMT/configs/digits.yaml", "--eval-only", "--weights", "other.pth"])
