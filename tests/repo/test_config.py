"""sed.config: what a config file and the command line may say, and what the errors say."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from sed.config import ConfigError, load_config
from sed.defaults import CHOICES, LIMITS, LISTS, OLD_KEYS, OLD_VALUES, ROWS, get_cfg, options_page
from sed.options import Options, from_section, option, rows, section
from sed.options.methods import PseudoLabelOptions, SEDOptions, SEDPlusOptions

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_defaults_file_base_and_command_line_are_merged_in_this_order(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "SEED: 1\nSOLVER: {BASE_LR: 0.5, MAX_ITER: 7}\n")
    path = write(tmp_path, "top.yaml", "_BASE_: base.yaml\nSEED: 2\nSOLVER: {MAX_ITER: 8}\n")
    cfg = load_config(path, ["SOLVER.MAX_ITER", "9"])
    assert (cfg.SEED, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (2, 0.5, 9)
    assert cfg.SOLVER.MOMENTUM == get_cfg().SOLVER.MOMENTUM


def test_no_file_gives_the_defaults_and_each_call_its_own_copy() -> None:
    cfg = load_config()
    cfg.SEED = 5
    assert load_config().SEED == get_cfg().SEED == 0


@pytest.mark.parametrize(
    ("text", "wrong", "nearest"),
    [
        ("SOLVER: {BASE_RL: 0.1}", "SOLVER.BASE_RL", "SOLVER.BASE_LR"),
        ("SED: {LAMDA_SCALE: 0.1}", "SED.LAMDA_SCALE", "SED.LAMBDA_SCALE"),
        ("SEMI: {EMA: {POLCY: step}}", "SEMI.EMA.POLCY", "SEMI.EMA.POLICY"),
        ("OUTPUT_DIRECTORY: x", "OUTPUT_DIRECTORY", "OUTPUT_DIR"),
    ],
)
def test_an_unknown_key_names_the_file_and_the_nearest_key(tmp_path: Path, text: str, wrong: str, nearest: str) -> None:
    path = write(tmp_path, "a.yaml", text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value) == f"{path}: unknown key {wrong}; the nearest known one is {nearest}"


def test_an_unknown_key_in_the_base_file_names_the_base_file(tmp_path: Path) -> None:
    base = write(tmp_path, "base.yaml", "SEEED: 1")
    path = write(tmp_path, "top.yaml", "_BASE_: base.yaml")
    with pytest.raises(ConfigError, match=f"^{base}: unknown key SEEED; .* SEED$"):
        load_config(path)


def test_an_unknown_key_on_the_command_line_is_the_same_error() -> None:
    with pytest.raises(ConfigError, match=r"command line: unknown key SEMI\.BURNIN; .* SEMI\.BURN_IN$"):
        load_config(None, ["SEMI.BURNIN", "3"])


def test_a_whole_section_given_as_a_value_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key SOLVER;"):
        load_config(write(tmp_path, "a.yaml", "SOLVER: 3"))
    with pytest.raises(ConfigError, match=r"unknown key SEED\.A;"):
        load_config(write(tmp_path, "b.yaml", "SEED: {A: 1}"))


@pytest.mark.parametrize(
    ("key", "value", "expects"),
    [
        ("SOLVER.MAX_ITER", "many", "int"),
        ("SOLVER.MAX_ITER", "1.5", "int"),
        ("SOLVER.MAX_ITER", "True", "int"),
        ("SOLVER.BASE_LR", "fast", "float"),
        ("SOLVER.AMP.ENABLED", "1", "bool"),
        ("SOLVER.STEPS", "840", "tuple"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "32", "list"),
        ("SEMI.METHOD", "[1]", "str"),
    ],
)
def test_a_value_of_another_type_names_key_type_and_default(key: str, value: str, expects: str) -> None:
    with pytest.raises(ConfigError, match=rf"^command line: {key} expects {expects} \(default ") as error:
        load_config(None, [key, value])
    assert value.strip("[]") in str(error.value)


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["SOLVER.BASE_LR", "1"], "BASE_LR", 1.0),
        (["SOLVER.BASE_LR", "1e-4"], "BASE_LR", 1e-4),
        (["SOLVER.STEPS", "(3, 4)"], "STEPS", (3, 4)),
        (["SOLVER.STEPS", "[3]"], "STEPS", (3,)),
        (["SOLVER.STEPS", "()"], "STEPS", ()),
    ],
)
def test_conversions_that_lose_nothing_are_made(words: list[str], key: str, value: object) -> None:
    got = load_config(None, words).SOLVER[key]
    assert got == value
    assert type(got) is type(value)


def test_one_name_stands_for_a_list_of_one_and_a_number_for_a_string(tmp_path: Path) -> None:
    cfg = load_config(write(tmp_path, "a.yaml", "DATASETS: {TRAIN: digits_train}\nOUTPUT_DIR: 7\n"))
    assert (cfg.DATASETS.TRAIN, cfg.OUTPUT_DIR) == (("digits_train",), "7")
    assert load_config(None, ["DATASETS.TEST", "a/b.json"]).DATASETS.TEST == ("a/b.json",)


def test_a_second_base_hop_is_an_error_that_names_the_file_in_the_middle(tmp_path: Path) -> None:
    write(tmp_path, "c.yaml", "SEED: 1")
    middle = write(tmp_path, "b.yaml", "_BASE_: c.yaml")
    with pytest.raises(ConfigError, match=f"^{middle}: a _BASE_ file may not name a _BASE_ itself"):
        load_config(write(tmp_path, "a.yaml", "_BASE_: b.yaml"))


def test_the_base_is_found_beside_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, "base.yaml", "SEED: 3")
    path = write(tmp_path / "deep", "a.yaml", "_BASE_: ../base.yaml")
    monkeypatch.chdir("/")
    assert load_config(path).SEED == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [("- 1\n- 2", "expected a mapping of keys, got list"), ("a: [1", "not YAML"), ("word", "got str")],
)
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, "a.yaml", text)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_missing_file_and_a_missing_base_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such config file"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such config file"):
        load_config(write(tmp_path, "a.yaml", "_BASE_: gone.yaml"))


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "a.yaml", "# nothing\n")) == get_cfg()


@pytest.mark.parametrize("words", [["SEED"], ["SEED", "1", "SOLVER.BASE_LR"]])
def test_an_odd_number_of_override_words_is_an_error(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="expected pairs KEY VALUE"):
        load_config(None, words)


@pytest.mark.parametrize("key", sorted(CHOICES))
def test_a_choice_names_what_it_may_be(key: str) -> None:
    wrong = "nonsense" if isinstance(CHOICES[key][0], str) else 9999
    with pytest.raises(ConfigError) as error:
        load_config(None, [key, str(wrong)])
    assert str(error.value) == f"{key} is {wrong!r}; it must be one of {', '.join(map(str, CHOICES[key]))}"
    for choice in CHOICES[key]:
        load_config(None, [key, str(choice)])


@pytest.mark.parametrize("key", sorted(LIMITS.keys() - LISTS.keys()))
def test_a_number_out_of_its_range_is_named(key: str) -> None:
    low, high = LIMITS[key]
    for limit, step in ((low, -1), (high, 1)):
        if abs(limit) < float("inf"):
            with pytest.raises(ConfigError, match=rf"^{key} must be (at least|from) {low}"):
                load_config(None, [key, str(type(ROWS[key].default)(limit) + step)])
            assert str(load_config(None, [key, str(type(ROWS[key].default)(limit))]))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_file_in_configs_loads_and_every_line_of_it_counts(path: Path) -> None:
    cfg = load_config(path)
    read = yaml.safe_load(path.read_text())
    for key, values in read.items():
        if key != "_BASE_" and not isinstance(values, dict):
            assert cfg[key] == values
    assert cfg.SEMI.BURN_IN < cfg.SOLVER.MAX_ITER
    assert all(0 < step < cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS)
    assert cfg.DATASETS.TRAIN
    assert cfg.DATASETS.TEST
    splits = cfg.SEMI.LABELED_PERCENT > 0 or cfg.SEMI.LABELED_COUNT > 0
    assert splits or cfg.DATASETS.UNLABELED, f"{path.name}: no unlabelled images"


def test_the_configs_are_those_that_the_readme_knows() -> None:
    rows = re.findall(r"^\| \[configs/(\S+)\]\(configs/\1\) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(path.name for path in CONFIGS)


# docs/method.md 9 and A.3: what each recipe has beside coco_10's: steps, burn-in, learning rate
RECIPES = {
    "coco_5": (180_000, 5_000, 0.01),
    "coco_10": (180_000, 10_000, 0.01),
    "coco_35k": (180_000, 12_000, 0.01),
    "coco_100": (180_000, 90_000, 0.01),
    "coco_100_270k": (270_000, 90_000, 0.02),
    "voc": (40_000, 4_000, 0.01),
    "voc_geometric": (40_000, 4_000, 0.01),
    "retinanet_r50": (180_000, 10_000, 0.01),
    "retinanet_r18": (180_000, 10_000, 0.01),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_are_the_paper_s(name: str) -> None:
    cfg = load_config(ROOT / f"configs/{name}.yaml")
    assert (cfg.SOLVER.MAX_ITER, cfg.SEMI.BURN_IN, cfg.SOLVER.BASE_LR) == RECIPES[name]
    semi, sed, own = cfg.SEMI, cfg.SED, load_config(ROOT / "configs/coco_10.yaml")
    assert (sed, semi.EMA, cfg.MODEL.WEIGHTS) == (own.SED, own.SEMI.EMA, "imagenet")
    assert (semi.IMS_PER_BATCH_LABELED, semi.IMS_PER_BATCH_UNLABELED, semi.STRONG_LABELED) == (8, 8, False)
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP) == (
        own.INPUT.MIN_SIZE_TRAIN,
        1333,
        "horizontal",
    )
    drops = [step / cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS]
    assert drops == pytest.approx([210 / 270, 250 / 270] if name.endswith("270k") else [2 / 3, 8 / 9], abs=0.002)
    assert (semi.LABELED_PERCENT > 0) != bool(cfg.DATASETS.UNLABELED)
    assert semi.LABELED_PERCENT == {"coco_5": 5.0}.get(name, 0.0 if cfg.DATASETS.UNLABELED else 10.0)
    assert cfg.INPUT.GEOMETRIC == ("randaugment" if name == "voc_geometric" else "none")
    retinanet = name.startswith("retinanet")
    assert cfg.MODEL.META_ARCHITECTURE.endswith("RetinaNet" if retinanet else "RCNN")
    assert cfg.MODEL.RESNETS.DEPTH == (18 if name.endswith("r18") else 50)
    assert {len(sizes) for sizes in cfg.MODEL.ANCHOR_GENERATOR.SIZES} == {3 if retinanet else 1}


def test_voc_detr_is_the_paper() -> None:
    """A.1 in epochs of 5011 labelled images, 8 a step."""
    cfg = load_config(ROOT / "configs/voc_detr.yaml")
    solver, semi = cfg.SOLVER, cfg.SEMI
    epoch = 5011 / semi.IMS_PER_BATCH_LABELED
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY) == ("AdamW", 1e-4, 1e-4)
    assert solver.BASE_LR * solver.BACKBONE_MULTIPLIER == pytest.approx(1e-5)
    assert solver.MAX_ITER == pytest.approx(300 * epoch, abs=epoch / 2)
    assert solver.STEPS == (pytest.approx(200 * epoch, abs=epoch / 2),)
    assert solver.GAMMA == 0.1
    assert (cfg.SED.LAMBDA_SCALE, cfg.SED.LAMBDA_DISTILL, cfg.SED.SCALE_TARGET) == (0.5, 1.0, "student")
    model = json.loads((ROOT / cfg.MODEL.DETR.CONFIG).read_text())
    assert (model["model_type"], model["backbone_config"]["depths"]) == ("detr", [3, 4, 6, 3])


def test_coco_10_is_the_paper() -> None:
    cfg = load_config(ROOT / "configs/coco_10.yaml")
    solver, semi, sed = cfg.SOLVER, cfg.SEMI, cfg.SED
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.MOMENTUM, solver.WEIGHT_DECAY) == (
        "SGD",
        0.01,
        0.9,
        1e-4,
    )
    assert (solver.MAX_ITER, solver.STEPS, solver.GAMMA) == (180_000, (120_000, 160_000), 0.1)
    assert (semi.LABELED_PERCENT, semi.BURN_IN, semi.RAMP_STEPS) == (10.0, 10_000, 0)
    assert (semi.EMA.POLICY, semi.EMA.START, semi.EMA.END) == ("step", 0.99, 0.9)
    assert (sed.LAMBDA_SCALE, sed.LAMBDA_DISTILL, sed.MAX_SCALE) == (0.5, 1.0, 1)
    assert (sed.SCALE_TARGET, sed.REWEIGHT.KIND) == ("student", "histogram")
    assert (cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RESNETS.NORM) == (2, "FrozenBN")


def test_the_quick_start_is_the_digits_benchmark_with_sed_plus() -> None:
    quick = load_config(ROOT / "configs/quickstart.yaml")
    assert (quick.ENGINE, quick.SEMI.METHOD) == ("torchvision", "sed_plus")
    words = "SEMI.METHOD sed_plus SED_PLUS.REGIONS_PER_VIEW 64 SED_PLUS.WEIGHT 2.0 SED_PLUS.HALF_SIZE_WEIGHT 2.0"
    digits = load_config(ROOT / "configs/digits.yaml", words.split())
    quick.ENGINE, quick.OUTPUT_DIR = digits.ENGINE, digits.OUTPUT_DIR
    assert quick == digits
    assert digits.SOLVER.STEPS == (int(0.8 * digits.SOLVER.MAX_ITER),)


# ---------------------------------------------------------------- one home an option


@dataclass(frozen=True)
class Inner:
    rate: float = option(0.5, "how fast", low=0, high=1)


@dataclass(frozen=True)
class Outer:
    kind: str = option("a", "which", choices=("a", "b"))
    sizes: list = option([1, 2], "a list")
    inner: Inner = section(Inner)


def test_a_dataclass_is_a_section_by_its_fields_names() -> None:
    found = {row.key: row for row in rows(Outer, "X.")}
    assert list(found) == ["X.KIND", "X.SIZES", "X.INNER.RATE"]
    assert (found["X.KIND"].default, found["X.KIND"].choices) == ("a", ("a", "b"))
    rate = found["X.INNER.RATE"]
    assert (rate.default, rate.meaning, rate.low, rate.high) == (0.5, "how fast", 0, 1)
    assert from_section(Outer, {"KIND": "b", "SIZES": [3], "INNER": {"RATE": 0.1}}) == Outer("b", [3], Inner(0.1))
    found["X.SIZES"].default.append(3)  # a list belongs to whoever asked for it
    assert Outer().sizes == [1, 2]


def test_the_config_is_the_options_and_the_options_are_the_config() -> None:
    assert from_section(Options, get_cfg()) == Options()
    assert all(row.meaning for row in ROWS.values())
    for row in ROWS.values():
        assert not row.choices or row.default in row.choices, row.key


def test_the_page_of_the_options_is_up_to_date() -> None:
    """Made by `python -m sed.defaults > docs/options.md`."""
    assert (ROOT / "docs/options.md").read_text() == options_page()


def test_the_methods_have_few_options() -> None:
    """A new idea is a new file, not a switch."""
    assert sum(len(list(rows(kind))) for kind in (SEDOptions, SEDPlusOptions, PseudoLabelOptions)) <= 24


# ---------------------------------------------------------------- keys of earlier versions


@pytest.mark.parametrize("key", OLD_KEYS)
def test_an_old_key_fails_with_one_line_that_says_what_to_write(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, [key, "1"])
    assert str(error.value) == f"command line: {key} {OLD_KEYS[key]}"
    assert "\n" not in str(error.value)
    for known in re.findall(r"[A-Z_]+\.[A-Z_.]+", OLD_KEYS[key]):
        assert known in ROWS or known == key, known


def test_an_old_file_names_its_preset_s_successor(tmp_path: Path) -> None:
    path = write(tmp_path, "old.yaml", "SED:\n  PRESET: plus\n")
    with pytest.raises(ConfigError, match=r"old\.yaml: SED.PRESET is gone: .* plus is SEMI.METHOD sed_plus$"):
        load_config(path)


@pytest.mark.parametrize(("key", "value"), OLD_VALUES)
def test_an_old_value_says_what_takes_its_place(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"^command line: {key} {value}: "):
        load_config(None, [key, value])
