"""What no key of a config takes, and files that are no config."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sed.config import ConfigError, load_config
from sed.defaults import ROWS
from sed.engine.build import resolve_device

NUMBERS = ("-1000000.5", "9223372036854775808", "1e300")
WORDS = ("nan", "inf", "[nan, 1, 1]", "(" * 5000)  # what is no Python is a word
NONSENSE = (*NUMBERS, *WORDS, "{'a': 1}", "[['a']]", "(True,)", "[[], []]", "[-7, -7, -7]", "b'a'")


@pytest.mark.parametrize("key", sorted(ROWS))
def test_no_key_takes_nonsense(key: str) -> None:
    """Numbers that are none, too large or too small, lists of other things, and what Python's parser cannot read."""
    row = ROWS[key]
    for value in NONSENSE:
        if row.kind is str and not row.choices and value in NUMBERS + WORDS:
            continue
        if row.kind == tuple[str, ...] and value in WORDS:  # one name
            continue
        with pytest.raises(ConfigError, match=key):
            load_config(None, [key, value])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.PIXEL_MEAN", "()", "expected 3 numbers from 0 to 255"),
        ("MODEL.PIXEL_STD", "[0, 1, 1]", "expected 3 numbers from 0.001 to 255"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[8], []]", "expected 1 to 10 lists of numbers at least 1"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[8, 16]", "expected 1 to 10 lists of numbers at least 1"),
        ("SOLVER.STEPS", "('a',)", "expected 0 or more whole numbers at least 0"),
        ("SOLVER.STEPS", "(1.5,)", "expected 0 or more whole numbers at least 0"),
        ("DATASETS.TRAIN", "(1,)", r"is \(1,\); expected 0 or more words"),
        ("INPUT.MIN_SIZE_TRAIN", "(1, 2, 3)", "expected 1 to 2 whole numbers at least 1"),
        ("SOLVER.BASE_LR", "-0.1", "must be at least 0, not -0.1"),
        ("TEST.IMS_PER_BATCH", "0", "must be at least 1, not 0"),
        ("MODEL.RESNETS.DEPTH", "19", "it must be one of 18, 34, 50, 101, 152"),
        ("SEED", "9223372036854775808", "expected finite numbers up to 2147483647"),
    ],
)
def test_what_is_expected_is_told(key: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key} .*{message}"):
        load_config(None, [key, value])


def test_files_that_are_no_config_are_told(tmp_path: Path) -> None:
    def refused(content: bytes, message: str) -> None:
        (tmp_path / "a.yaml").write_bytes(content)
        with pytest.raises(ConfigError, match=message) as error:
            load_config(tmp_path / "a.yaml")
        assert str(error.value).startswith(f"{tmp_path / 'a.yaml'}: ")
        assert len(str(error.value).splitlines()) < 6

    refused(b"\x00\x01\x02", "not YAML")
    refused(b"\xff\xfeS\x00", "not a text in UTF-8")
    refused(b"[" * 100_000, "not YAML: nested too deep")
    refused(b"a: &a {b: *a}", "not YAML: nested too deep")
    refused(b"_BASE_: [1]", r"_BASE_ is \[1\]; expected the path of a config file")
    refused(b"_BASE_: 3", "_BASE_ is 3; expected the path")
    refused(b"1: 2", "unknown key 1; the nearest")
    refused(b"SEED: {a: 1}", "unknown key SEED.a")
    with pytest.raises(ConfigError, match="expected a config file, this is a folder"):
        load_config(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="expected a config file, this is no regular file"):
        load_config(tmp_path / "pipe")


def test_a_device_that_there_is_not_is_told() -> None:
    for name in ("xla", "cuda:99", "nonsense", "meta:x"):
        with pytest.raises(ConfigError, match=f"MODEL.DEVICE is {name}, which torch has not got here"):
            resolve_device(name)
    assert resolve_device("cpu").type == "cpu"


@pytest.mark.parametrize("words", [["SEED", "1", "--output", "x"], ["SEED", "1", "--resume"]])
def test_a_flag_among_override_words_is_told(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"command line: {words[2]} stands among KEY VALUE pairs; put flags before"):
        load_config(None, words)
