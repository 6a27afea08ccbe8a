"""`make` installs once, again when setup.py changes, and names an interpreter that is too old.

The interpreter and the environment are fakes that write down how they were called: nothing is downloaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# `python3 -m venv DIR` makes DIR/bin/python, which notes every call of its own; `-c` runs for real.
FAKE_PYTHON = """#!/bin/sh
case "$1 $2" in
  "-m venv") echo "venv" >> "$CALLS"; mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  "-c "*) exec "{python}" "$@" ;;
  *) echo "$*" >> "$CALLS"; case "$*" in *"$FAIL"*) exit 1 ;; esac ;;
esac
"""
OLD_PYTHON = """#!/bin/sh
if [ "$1" = --version ]; then echo "Python 3.9.2"; exit 0; fi
exit 1
"""


class Checkout:
    """A folder with the Makefile, setup.py and a fake interpreter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls_file = folder / "calls"
        shutil.copy(ROOT / "Makefile", folder)
        shutil.copy(ROOT / "setup.py", folder)
        self.python = self.script("python", FAKE_PYTHON.format(python=sys.executable))

    def script(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def make(self, *words: str, fail: str = "nothing fails", **variables: object) -> subprocess.CompletedProcess:
        """Run make and keep what the interpreters were asked."""
        self.calls_file.write_text("")
        outer = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "VENV"))}
        env = {**outer, "CALLS": str(self.calls_file), "FAIL": fail, "PYTHON": str(self.python)}
        env.update({k: str(v) for k, v in variables.items()})
        return subprocess.run(["make", *words], cwd=self.folder, env=env, capture_output=True, text=True, timeout=60)

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("quickstart", "tools/quickstart.py"),
        ("test", "-m pytest -n "),
        ("test-fast", "-m pytest -n "),
        ("bench", "tools/bench.py"),
    ],
)
def test_a_target_installs_what_it_needs_the_first_time_and_nothing_the_second(
    checkout: Checkout, target: str, command: str
) -> None:
    assert checkout.make(target).returncode == 0
    venv, pip, call = checkout.calls
    assert venv == "venv"
    assert "pip install" in pip
    assert pip.endswith("-e .[test]")
    assert call.startswith(command)
    assert checkout.make(target).returncode == 0
    assert checkout.calls == [call]


def test_a_changed_setup_installs_again(checkout: Checkout) -> None:
    checkout.make("install")
    later = (checkout.folder / ".venv/.installed").stat().st_mtime + 10
    os.utime(checkout.folder / "setup.py", (later, later))
    checkout.make("install")
    assert any("pip install" in call for call in checkout.calls)


def test_an_interrupted_install_is_taken_up_again(checkout: Checkout) -> None:
    assert checkout.make("install", fail="pip install").returncode != 0
    assert checkout.make("test").returncode == 0
    assert any("pip install" in call for call in checkout.calls)


def test_ci_environment_is_found_by_make_test(checkout: Checkout) -> None:
    assert checkout.make("install-dev", VENV=".venv-ci").returncode == 0
    assert checkout.calls[-1].endswith("-e .[test,dev]")
    checkout.make("test", VENV=".venv-ci")
    assert [call for call in checkout.calls if "pip" in call] == []
    assert not (checkout.folder / ".venv").exists()


def test_a_failing_test_fails_make(checkout: Checkout) -> None:
    assert checkout.make("test", fail="pytest").returncode != 0


@pytest.mark.parametrize("target", ["quickstart", "test"])
def test_an_old_python_is_named_with_the_remedy(checkout: Checkout, target: str) -> None:
    old = checkout.script("old", OLD_PYTHON)
    done = checkout.make(target, PYTHON=old)
    assert done.returncode != 0
    assert f"sed needs Python >= 3.10, but '{old}' is Python 3.9.2." in done.stderr
    assert f"PYTHON=python3.12 make {target}" in done.stderr
    assert not (checkout.folder / ".venv").exists()


def test_a_missing_python_is_named(checkout: Checkout) -> None:
    done = checkout.make("test", PYTHON="/nowhere/python")
    assert done.returncode != 0
    assert "sed needs Python >= 3.10, but '/nowhere/python' is" in done.stderr


def test_ci_refuses_to_delete_the_users_environment(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    kept = tmp_path / ".venv/kept"
    kept.parent.mkdir()
    kept.touch()
    env = {k: v for k, v in os.environ.items() if k != "CI"} | {"VENV": ".venv"}
    done = subprocess.run([tmp_path / ".ci/run"], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "unset VENV" in done.stderr
    assert kept.exists()
