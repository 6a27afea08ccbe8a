"""What importing loads, measured in a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FRAMEWORKS = {"torchvision", "transformers", "detectron2"}


def modules(package: str) -> list[str]:
    """Every module under sed/<package>, as names."""
    files = sorted((ROOT / "sed" / package).rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def loaded_by(statements: str) -> set[str]:
    """The top-level packages that a fresh interpreter holds after the statements."""
    report = "import json, sys\nprint(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    code = f"{statements}\n{report}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_sed_loads_no_framework() -> None:
    loaded = loaded_by("import sed")
    assert "sed" in loaded
    assert not loaded & (FRAMEWORKS | {"torch", "cv2", "numpy", "fvcore"})


def test_the_measurement_sees_what_is_loaded() -> None:
    assert "sqlite3" in loaded_by("import sqlite3")


def test_core_loads_no_framework() -> None:
    names = modules("core")
    assert "sed.core.structures" in names
    assert not loaded_by("import " + ", ".join(names)) & (FRAMEWORKS | {"cv2", "fvcore", "yaml"})


def test_methods_load_no_framework() -> None:
    assert not loaded_by("import " + ", ".join(modules("methods"))) & FRAMEWORKS


BLOCK = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('detectron2', 'transformers'):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
sys.meta_path.insert(0, Absent())
"""


def test_every_room_but_d2_imports_where_the_optional_frameworks_are_absent() -> None:
    rooms = sorted(folder.name for folder in (ROOT / "sed").iterdir() if (folder / "__init__.py").exists())
    names = [name for package in rooms if package != "d2" for name in modules(package)]
    assert {"sed.core.structures", "sed.engine", "sed.evaluation"} <= set(names)
    assert "sed" in loaded_by(BLOCK + "import " + ", ".join(names))
