"""The documents: every command of a page is run by something, every link leads somewhere, files stay short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = {"build", "dist", "output", "shared"}  # and whatever begins with a dot

# Every command of a ```bash fence in PAGES, and what runs it: FILE::TEXT, where TEXT stands in FILE. A command
# that needs eight GPUs or a user's data names the test that runs the same path on what is here.
RUN_AS_IT_STANDS = "tests/tools/test_readme.py::def test_the_commands_run_as_they_stand"
ON_DETECTRON2 = "tests/tools/test_readme.py::def test_the_commands_for_detectron2_run_as_they_stand"
ON_OWN_DATA = "tests/tools/test_readme.py::def test_the_page_of_own_data_runs_as_it_stands"
MY_DATA = (
    "DATASETS.TRAIN my/train.json DATASETS.UNLABELED my/photos DATASETS.TEST my/val.json MODEL.ROI_HEADS.NUM_CLASSES 3"
)
ON_DETR = "tests/tools/test_readme.py::def test_the_page_of_the_detr_family_runs_as_it_stands"
ON_ABLATION = "tests/tools/test_ablate.py::def test_a_table_is_run_and_interrupted_runs_are_kept"
COCO = "--config-file configs/coco_10.yaml"
CUSTOM = "--config-file configs/custom.yaml"
ON_DATA = "tests/tools/test_make_splits.py::def test_the_commands_of_the_data_page_run_as_they_stand"
TRAIN_ON_SPLIT = "tests/tools/test_make_splits.py::def test_a_run_trains_on_a_split_of_files"
SPLITS = ".venv/bin/python tools/make_splits.py"
TRAIN2017 = "--annotations datasets/coco/annotations/instances_train2017.json --output datasets/splits"
DMT = ".venv/bin/python projects/DMT/train.py"
ON_DMT = "tests/dmt/test_dmt_readme.py::def test_the_commands_run_as_they_stand"
ON_DST_CBC = "tests/dmt/test_dmt_readme.py::def test_the_commands_of_dst_cbc_run_as_they_stand"
DMT_WORDS = (
    "textured_digits.yaml",
    "digits.yaml",
    *(f"voc_1_20.yaml{end}" for end in ("", " --resume", " --eval-only")),
)
COMPARE = ".venv/bin/python projects/DMT/compare.py --study projects/DMT"
STUDIES = ("compare_digits", "compare_textured_digits")
COMMANDS = {
    "make quickstart": "tests/tools/test_quickstart.py::def test_the_whole_quick_start",
    "make test": ".ci/run::make test",
    "make gpu-check": "tests/tools/test_gpu_check.py::def test_every_part_is_measured",
    ".venv/bin/ssod train --data my/train.json --val my/val.json --unlabeled my/photos": RUN_AS_IT_STANDS,
    ".venv/bin/ssod predict --run ssod_run --input my/photos --output predictions.json --draw pictures": (
        RUN_AS_IT_STANDS
    ),
    f".venv/bin/python tools/train_net.py {CUSTOM} {MY_DATA}": ON_OWN_DATA,
    f".venv/bin/python tools/train_net.py {CUSTOM} --resume": ON_OWN_DATA,
    f".venv/bin/python tools/train_net.py {CUSTOM} --eval-only --eval-model teacher": ON_OWN_DATA,
    f".venv/bin/python tools/visualize.py {CUSTOM} --mode views": ON_OWN_DATA,
    f".venv/bin/python tools/predict.py {CUSTOM} --weights output/custom/model_final.pth --input my/photos "
    "--output predictions.json": ON_OWN_DATA,
    ".venv/bin/python tools/train_net.py --num-gpus 8 --config-file configs/coco_10.yaml": RUN_AS_IT_STANDS,
    "make install": ".ci/run::make install",
    f".venv/bin/python tools/check_data.py {CUSTOM} {MY_DATA}": ON_OWN_DATA,
    ".venv/bin/python tools/train_net.py --config-file configs/digits_detr.yaml": ON_DETR,
    f".venv/bin/python tools/train_net.py {CUSTOM} MODEL.META_ARCHITECTURE ScaleConsistentDETR MODEL.DETR.CONFIG "
    "PekingU/rtdetr_r18vd_coco_o365 MODEL.WEIGHTS coco MODEL.DETR.NUM_CLASSES 3 MODEL.PIXEL_MEAN "
    '"[0.0,0.0,0.0]" MODEL.PIXEL_STD "[255.0,255.0,255.0]" SOLVER.OPTIMIZER AdamW SOLVER.BASE_LR 0.0001 '
    "SOLVER.BACKBONE_MULTIPLIER 0.1 SED_PLUS.THRESHOLD 0.5 "
    "DATASETS.TRAIN my/train.json DATASETS.UNLABELED my/photos DATASETS.TEST my/val.json": ON_DETR,
    f".venv/bin/python tools/ablate.py {COCO} --test coco_2017_val --output output/ablate": ON_ABLATION,
    ".venv/bin/python tools/ablate.py --config-file configs/digits.yaml --test digits_test --tables 4 --seeds 0 "
    "--output output/ablate_digits -- ENGINE torchvision": ON_ABLATION,
    "make bench": "tests/tools/test_bench.py::def test_bench_measures_every_figure_of_its_table",
    "ssod export --run ssod_run --output model.onnx": (
        "tests/tools/test_export.py::def test_a_run_is_exported_with_its_own_weights"
    ),
    ".venv/bin/python -m tests.tools.bench_export": "tests/tools/test_export.py::bench_export.measure(",
    ".venv/bin/python -m tests.data.bench_scale": "tests/data/test_data_scale.py::bench_scale.measure(",
    ".venv/bin/python tools/study.py --study configs/studies/digits.yaml --output output/studies/digits": (
        "tests/tools/test_study_file.py::def test_the_studies_hold_runs_that_load"
    ),
    f".venv/bin/python tools/train_net.py --num-gpus 8 {COCO} ENGINE detectron2": ON_DETECTRON2,
    f".venv/bin/python tools/train_net.py --num-gpus 8 {COCO} --resume ENGINE detectron2": ON_DETECTRON2,
    f".venv/bin/python tools/train_net.py {COCO} --eval-only ENGINE detectron2 "
    "MODEL.WEIGHTS output/coco_10/model_final.pth": ON_DETECTRON2,
    f".venv/bin/python tools/visualize.py {COCO} --mode predictions ENGINE detectron2": ON_DETECTRON2,
    f"{SPLITS} --percent 0.5 1 2 5 10 --fold 0 1 2 3 4 {TRAIN2017}/coco": ON_DATA,
    f"{SPLITS} --like unbiased_teacher --percent 10 --fold 1 --index-file datasets/COCO_supervision.txt "
    f"{TRAIN2017}/unbiased_teacher_10_1": ON_DATA,
    f"{SPLITS} --like soft_teacher --percent 10 --fold 1 {TRAIN2017}/soft_teacher_10_1": ON_DATA,
    f"{SPLITS} --like stac --percent 10 --fold 1 {TRAIN2017}/stac_10_1": ON_DATA,
    f".venv/bin/python tools/train_net.py {COCO} DATASETS.TRAIN datasets/splits/stac_10_1/labeled.json "
    "DATASETS.UNLABELED datasets/splits/stac_10_1/unlabeled.json DATASETS.IMAGE_ROOT datasets/coco/train2017 "
    "SEMI.LABELED_PERCENT 0": TRAIN_ON_SPLIT,
    f"{SPLITS} --protocol full --annotations datasets/coco/annotations/instances_train2017.json --unlabeled "
    "datasets/coco/annotations/image_info_unlabeled2017.json --output datasets/splits/coco_full": ON_DATA,
    f"{SPLITS} --protocol coco_35k --annotations datasets/coco/annotations/instances_val2014.json --unlabeled "
    "datasets/coco/annotations/instances_train2014.json --minival datasets/coco/annotations/instances_val2017.json "
    "--output datasets/splits/coco_35k": ON_DATA,
    f"{SPLITS} --per-class 10 --fold 0 {TRAIN2017}/coco_10_per_class": ON_DATA,
    **{f"{DMT} --config-file projects/DMT/configs/{words}": ON_DMT for words in DMT_WORDS},
    f"{DMT} --config-file projects/DST-CBC/configs/voc_1_20.yaml": ON_DST_CBC,
    f"{DMT} --config-file projects/DST-CBC/configs/voc_1_20.yaml --resume": ON_DST_CBC,
    **{f"{COMPARE}/configs/{name}.yaml --output output/{name}": ON_DMT for name in STUDIES},
}
PAGES = (
    "README.md",
    "docs/benchmarks.md",
    "docs/detectron2.md",
    "docs/detr.md",
    "docs/evidence.md",
    "docs/export.md",
    "docs/method.md",
    "docs/own_data.md",
    "datasets/README.md",
    "projects/DMT/README.md",
    "projects/DST-CBC/README.md",
    *(f"docs/results/{page.name}" for page in sorted((ROOT / "docs/results").glob("*.md"))),
)


def tree(pattern: str) -> list[Path]:
    """Files of the repository, without environments, outputs and generated data."""
    kept = []
    for path in sorted(ROOT.rglob(pattern)):
        parts = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") or part.endswith(".egg-info") for part in parts[:-1])
        generated = parts[0] in OUTSIDE or (parts[0] == "datasets" and parts != ("datasets", "README.md"))
        if not hidden and not generated:
            kept.append(path)
    return kept


def fences(markdown: str) -> list[tuple[str, str]]:
    """(language, text) of every code fence."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", markdown, re.MULTILINE | re.DOTALL)


def commands(markdown: str) -> list[str]:
    """Every command of the bash fences: continued lines joined, comments and surplus blanks left out."""
    found = []
    for language, text in fences(markdown):
        if language == "bash":
            joined = re.sub(r"\\\n", " ", text)
            stripped = [re.sub(r"(^|\s)#.*$", "", line) for line in joined.splitlines()]
            found += [" ".join(line.split()) for line in stripped if line.strip()]
    return found


def unknown_commands(markdown: str, table: dict[str, str]) -> list[str]:
    return [command for command in commands(markdown) if command not in table]


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def broken_links(path: Path) -> list[str]:
    """Relative links and anchors of a markdown file that lead nowhere."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "", text)
    broken = []
    for link in re.findall(r"\[[^\]]*\]\(([^)\s]+)[^)]*\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name) if name else path
        if not target.exists():
            broken.append(link)
        elif anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            if anchor not in {slug(heading) for heading in headings}:
                broken.append(link)
    return broken


def test_every_command_is_in_the_table_and_the_table_holds_no_other() -> None:
    text = "".join((ROOT / page).read_text() for page in PAGES)
    assert unknown_commands(text, COMMANDS) == []
    assert set(COMMANDS) - set(commands(text)) == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_what_runs_the_command_exists(command: str) -> None:
    name, _, text = COMMANDS[command].partition("::")
    assert (ROOT / name).is_file(), f"{command}: {name} is not there"
    assert text in (ROOT / name).read_text(), f"{command}: {name} does not hold {text!r}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_stand_in_bash_fences(page: str) -> None:
    languages = {language for language, _ in fences((ROOT / page).read_text())}
    assert languages.isdisjoint({"sh", "shell", "console", "zsh"}), "commands belong in ```bash fences"


def test_a_new_command_without_an_entry_is_caught() -> None:
    markdown = "```bash\nmake test  # all\n# only words\nmake \\\n  magic\n```\n```python\nx = 1\n```\n"
    assert commands(markdown) == ["make test", "make magic"]
    assert unknown_commands(markdown, COMMANDS) == ["make magic"]


@pytest.mark.parametrize("path", tree("*.md"), ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_resolve(path: Path) -> None:
    assert broken_links(path) == []


def test_broken_links_and_anchors_are_caught(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# One `two`, three\n")
    page = tmp_path / "a.md"
    page.write_text(
        "[ok](b.md#one-two-three) [web](https://x.org/y) [gone](c.md) [no](b.md#four)\n```\n[code](d.md)\n```\n"
    )
    assert broken_links(page) == ["c.md", "b.md#four"]


def budget(path: Path) -> int:
    """Lines that a Python file may have (STYLE: a longer file is a question)."""
    parts = path.relative_to(ROOT).parts
    if path.name == "__init__.py":
        return 30
    if parts[0] == "tools" or (parts[0] == "projects" and len(parts) == 3):
        return 150
    return 200 if parts[:2] == ("sed", "core") else 350


@pytest.mark.parametrize("path", tree("*.py"), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_keep_their_length(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= budget(path), f"{lines} lines, budget {budget(path)}: is this still one room?"


def test_the_budgets_are_those_of_the_rooms() -> None:
    names = [
        "sed/core/views.py",
        "sed/core/__init__.py",
        "tools/train_net.py",
        "projects/DMT/train.py",
        "sed/data/coco.py",
        "tests/x/test_x.py",
    ]
    assert [budget(ROOT / name) for name in names] == [200, 30, 150, 150, 350, 350]
    assert ROOT / "sed/config.py" in tree("*.py")
