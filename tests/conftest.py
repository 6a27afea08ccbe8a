"""One thread per test process; and a last line with the number of tests that were skipped without Detectron2.

One thread: several processes run side by side, and sums come out the same on every machine.
"""

import ast
import os
from pathlib import Path

import pytest

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

NEEDED = "needs Detectron2"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--device`: of the tests marked gpu."""
    parser.addoption("--device", default="cuda", choices=("cuda", "cpu"), help="of the tests marked gpu")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line with the number and the reason; a file that was skipped whole counts by its test functions."""
    waiting = files = 0
    for report in terminalreporter.stats.get("skipped", ()):
        path, _, reason = report.longrepr
        if NEEDED in reason:
            whole = isinstance(report, pytest.CollectReport)
            files += whole
            waiting += count_tests(Path(path)) if whole else 1
    if waiting:
        terminalreporter.write_line(
            f"{waiting} tests wait for Detectron2, which is not installed ({files} whole files among them, counted "
            "without their parameters): https://detectron2.readthedocs.io/tutorials/install.html"
        )


def count_tests(path: Path) -> int:
    """The test functions of a file that cannot be imported."""
    tree = ast.parse(path.read_text())
    return sum(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in ast.walk(tree))
