"""What nobody foresaw ends a command in one line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(
    path.relative_to(ROOT)
    for folder in ("tools", "projects/DMT")
    for path in (ROOT / folder).glob("*.py")
    if "__main__" in path.read_text()
)
PLANTED = """
import sys
from sed.cli.last_resort import last_resort
with last_resort():
    assert "--debug" not in sys.argv
    {line}
"""


def run(line, *flags):
    command = [sys.executable, "-c", PLANTED.format(line=line), "KEY", "VALUE", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


def test_a_bug_is_one_line_and_a_file():
    code, _, told = run("{}['never seen']")
    assert code == 1
    (line,) = told.splitlines()
    found = re.fullmatch(r"unexpected: KeyError: 'never seen'; a bug of ours: please report it with (\S+)", line)
    content = Path(found[1]).read_text()
    assert "Traceback (most recent call last)" in content
    assert "KEY VALUE" in content.splitlines()[0]
    Path(found[1]).unlink()


def test_debug_shows_the_traceback():
    code, _, told = run("1 / 0", "--debug")
    assert code == 1
    assert "Traceback (most recent call last)" in told
    assert told.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_a_file_that_cannot_be_written_is_no_bug():
    code, _, told = run("open('/nowhere/at/all', 'w')")
    assert code == 1
    (line,) = told.splitlines()
    assert line.startswith(
        "error: FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/at/all' (traceback: "
    )


def test_ctrl_c_and_exits_are_left_alone():
    assert run("raise KeyboardInterrupt") == (130, "", "stopped\n")
    assert run("sys.exit(3)") == (3, "", "")
    assert run("print('fine')") == (0, "fine\n", "")


@pytest.mark.parametrize("path", COMMANDS, ids=str)
def test_every_command_has_it(path):
    tail = (ROOT / path).read_text().split('if __name__ == "__main__":')[1]
    assert tail.startswith("\n    with last_resort():\n        ")
