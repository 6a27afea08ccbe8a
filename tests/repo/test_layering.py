"""The floors of the house (CONTRIBUTING.md), held by reading every import statement of the tree.

    8  tools, projects               7  sed.cli                    6  sed.studies, sed.checks
    5  sed.d2, sed.engine            4  sed.runtime                3  sed.methods, sed.evaluation
    2  sed.detectors                 1  sed.data, sed.config, sed.defaults, sed.options
    0  sed.core

A file imports from lower floors and from its own package, and no module reaches itself through the imports of others.
Imports inside functions and under TYPE_CHECKING count, and so does `importlib.import_module` with a literal name. The
rules are data; the last tests plant violations.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FLOORS = {
    "sed.core": 0,
    "sed.data": 1,
    "sed.config": 1,
    "sed.defaults": 1,
    "sed.options": 1,
    "sed.detectors": 2,
    "sed.methods": 3,
    "sed.evaluation": 3,
    "sed.runtime": 4,
    "sed.d2": 5,
    "sed.engine": 5,
    "sed.studies": 6,
    "sed.checks": 6,
    "sed.cli": 7,
    "tools": 8,
    "projects": 8,
}
SIDEWAYS = {("sed.config", "sed.defaults")}
OPTIONS = "sed.options"  # frozen dataclasses of the standard library: every room but the core may import them

# Packages that only some rooms may import. A test may import anything.
OWNERS = {
    "detectron2": ("sed.d2",),
    "torchvision.models": ("sed.detectors", "projects"),  # a project of another task has models of its own
    "transformers": ("sed.detectors",),
    "timm": ("sed.detectors",),
}
# What the core may import beside the standard library and itself.
CORE_MAY = {"torch"}
CORE_MAY_ALSO = {"sed.core.matching": {"scipy"}}
# cfg objects stop at the engines: what lies below this floor takes dataclasses, scalars and nested mappings.
CFG_MODULES = ("sed.config", "sed.defaults", "fvcore.common.config", "yacs")
CFG_FLOOR = 5
# The only door through which methods and evaluation see a model.
DETECTOR_DOOR = "sed.detectors.base"


@dataclass(frozen=True)
class Import:
    """One imported name, absolute: `from a import b` is a.b."""

    name: str
    line: int


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, path: Path) -> Iterator[Import]:
    """Every import of the file at `path` (relative to the root)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            folder = path.parts[:-1]
            base = ".".join(folder[: len(folder) - node.level + 1]) if node.level else ""
            container = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield Import(f"{container}.{alias.name}", node.lineno)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield Import(node.args[0].value, node.lineno)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torchvision":
            yield Import(f"torchvision.{node.attr}", node.lineno)  # import torchvision; torchvision.models.x


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def room(name: str) -> str | None:
    return next((package for package in FLOORS if within(name, package)), None)


def violations(source: str, path: Path) -> list[str]:
    """What the file at `path` (relative to the root) breaks, one line each."""
    module = module_name(path)
    here = room(module)
    broken: list[str] = []
    for found in imports(ast.parse(source), path):
        where = f"{path}:{found.line}: {module} imports {found.name}: "
        top = found.name.partition(".")[0]
        there = room(found.name)
        if top == "tests":
            broken.append(where + "nothing but tests imports tests")
        if module == "sed" and there:
            broken.append(where + "`import sed` loads no room (rule 3)")
        if module == "sed" and top in ("torchvision", "transformers", "detectron2", "torch"):
            broken.append(where + "`import sed` loads no framework (rule 3)")
        sideways = (here, there) in SIDEWAYS or (there == OPTIONS and here != "sed.core")
        if here and there and here != there and not sideways and FLOORS[there] >= FLOORS[here]:
            broken.append(where + f"floor {FLOORS[here]} imports from lower floors only, this is {FLOORS[there]}")
        if within(module, "sed") and top in ("tools", "projects"):
            broken.append(where + "nothing in sed imports tools or projects (rule 4)")
        if here == "tools" and top in ("tools", *SCRIPTS):
            broken.append(where + "an entry script imports no other one; what they share is in sed.cli")
        if here == OPTIONS and not within(found.name, OPTIONS) and top not in sys.stdlib_module_names:
            broken.append(where + "sed.options imports the standard library only")
        for package, owners in OWNERS.items():
            if within(found.name, package) and here not in owners:
                broken.append(where + f"only {', '.join(owners)} imports {package} (rule 2)")
        if here == "sed.core" and not within(found.name, "sed.core"):
            allowed = CORE_MAY | CORE_MAY_ALSO.get(module, set())
            if top not in allowed and top not in sys.stdlib_module_names:
                broken.append(where + "sed.core imports torch and the standard library only (rule 1)")
        if (
            here in ("sed.methods", "sed.evaluation")
            and there == "sed.detectors"
            and not within(found.name, DETECTOR_DOOR)
        ):
            broken.append(where + f"a model is seen through {DETECTOR_DOOR} only (rule 5)")
        below = here in FLOORS and here not in CFG_MODULES and FLOORS[here] < CFG_FLOOR
        if below and any(within(found.name, cfg) for cfg in CFG_MODULES):
            broken.append(where + f"cfg objects stop at floor {CFG_FLOOR} (rule 6)")
    return broken


def graph(sources: Mapping[Path, str]) -> dict[str, set[str]]:
    """module -> the modules of `sources` (path relative to the root -> text) that it imports anywhere."""
    # a project's folder is on sys.path: projects/DMT/dmt/loss.py is imported as dmt.loss
    names = {module_name(Path(*path.parts[2:]) if path.parts[0] == "projects" else path): path for path in sources}

    def module_of(name: str) -> str | None:
        """`a.b.C` is of module a.b."""
        while name and name not in names:
            name = name.rpartition(".")[0]
        return name or None

    edges = {}
    for module, path in names.items():
        found = {module_of(item.name) for item in imports(ast.parse(sources[path]), path)}
        edges[module] = {name for name in found if name and name != module}
    return edges


def circles(edges: Mapping[str, set[str]]) -> list[str]:
    """For every import that leads back to where it stands, the shortest way round: "a -> b -> a"; each circle once."""
    found: dict[frozenset[str], str] = {}
    for start in sorted(edges):
        ways = [[start]]
        seen: set[str] = set()
        while ways:
            way = ways.pop(0)
            for name in sorted(edges.get(way[-1], ())):
                if name == start:
                    found.setdefault(frozenset(way), " -> ".join([*way, start]))
                    ways = []
                    break
                if name not in seen:
                    seen.add(name)
                    ways.append([*way, name])
    return list(found.values())


SCRIPTS = tuple(path.stem for path in (ROOT / "tools").glob("*.py") if path.stem != "__init__")
SOURCES = [path for top in ("sed", "tools", "projects") for path in sorted((ROOT / top).rglob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_file_keeps_its_floor(path: Path) -> None:
    assert violations(path.read_text(), path.relative_to(ROOT)) == []


def test_every_file_of_sed_stands_on_a_floor() -> None:
    homeless = [str(p.relative_to(ROOT)) for p in SOURCES if room(module_name(p.relative_to(ROOT))) is None]
    assert homeless == ["sed/__init__.py"]


def test_no_module_imports_itself_through_others() -> None:
    edges = graph({path.relative_to(ROOT): path.read_text() for path in SOURCES})
    assert {"sed.runtime.data", "sed.engine.trainer"} <= edges["sed.engine.build"]
    assert "dmt.training" in edges["dmt.run"]
    assert circles(edges) == []


PLANTED = [
    # rule 1
    ("sed/core/boxes.py", "import numpy", "rule 1"),
    ("sed/core/boxes.py", "from torchvision.ops import box_iou", "rule 1"),
    ("sed/core/boxes.py", "def f():\n    import scipy.optimize", "rule 1"),
    ("sed/core/views.py", "from sed.data.records import x", "floor 0"),
    ("sed/core/views.py", "from ..data import records", "floor 0"),
    ("sed/core/views.py", "from sed.options.sed import SEDOptions", "rule 1"),
    ("sed/core/views.py", "from sed.options.sed import SEDOptions", "floor 0"),
    # rule 2
    ("sed/engine/trainer.py", "import detectron2.config", "rule 2"),
    ("sed/engine/trainer.py", "import importlib\nimportlib.import_module('detectron2')", "rule 2"),
    ("tools/train_net.py", "from detectron2.engine import DefaultTrainer", "rule 2"),
    ("sed/engine/build.py", "from torchvision import models", "rule 2"),
    ("sed/data/mapper.py", "from torchvision.models.detection import fasterrcnn_resnet50_fpn", "rule 2"),
    ("sed/engine/build.py", "import torchvision\nmodel = torchvision.models.resnet18()", "rule 2"),
    ("projects/study/run.py", "from transformers import AutoModel", "rule 2"),
    ("sed/engine/build.py", "import timm", "rule 2"),
    ("sed/d2/backbone.py", "from timm import create_model", "rule 2"),
    # rule 3
    ("sed/__init__.py", "import torchvision", "rule 3"),
    ("sed/__init__.py", "from sed.methods import sed", "rule 3"),
    # rule 4
    ("sed/runtime/launch.py", "from tools import train_net", "rule 4"),
    ("sed/evaluation/coco.py", "import projects.study", "rule 4"),
    ("sed/data/coco.py", "from tests.reference import slow", "tests"),
    ("tools/bench.py", "import projects.study", "floor 8"),
    ("tools/bench.py", "from study import main", "no other one"),
    ("tools/bench.py", "def f():\n    from tools.study import main", "no other one"),
    # floors
    ("sed/detectors/rcnn.py", "from sed.methods.base import Method", "floor 2"),
    ("sed/methods/sed.py", "from sed.evaluation.coco import evaluate", "floor 3"),
    ("sed/runtime/data.py", "from sed.engine.build import resolve_device", "floor 4"),
    ("sed/runtime/data.py", "def f():\n    from sed.cli import engines", "floor 4"),
    ("sed/engine/trainer.py", "from sed.d2 import trainer", "floor 5"),
    ("sed/d2/trainer.py", "from sed.engine.solver import build", "floor 5"),
    ("sed/engine/run.py", "from sed.cli.engines import USER_ERRORS", "floor 5"),
    ("sed/d2/run.py", "from sed.checks.check import check_data", "floor 5"),
    ("sed/studies/study_runs.py", "def f():\n    from sed.cli.engines import pick", "floor 6"),
    ("sed/checks/check.py", "from sed.studies.study_runs import Runner", "floor 6"),
    ("sed/cli/study.py", "def f():\n    import tools.study", "rule 4"),
    ("sed/options/sed.py", "import torch", "standard library only"),
    ("sed/options.py", "from sed.core.structures import Images", "standard library only"),
    (
        "sed/data/loaders.py",
        "if TYPE_CHECKING:\n    import sed.engine",
        "floor 1",
    ),
    # rule 5
    ("sed/methods/sed.py", "from sed.detectors.torchvision_rcnn import TorchvisionRCNN", "rule 5"),
    ("sed/evaluation/coco.py", "from sed.detectors import rcnn", "rule 5"),
    # rule 6
    ("sed/methods/sed.py", "from sed.config import load_config", "rule 6"),
    ("sed/detectors/rcnn.py", "from sed import config", "rule 6"),
    ("sed/evaluation/coco.py", "from fvcore.common.config import CfgNode", "rule 6"),
    ("sed/runtime/data.py", "from sed.config import ConfigError", "rule 6"),
    ("sed/runtime/scaling.py", "from sed.defaults import CHOICES", "rule 6"),
    ("sed/runtime/output.py", "if TYPE_CHECKING:\n    from fvcore.common.config import CfgNode", "rule 6"),
    ("sed/data/loaders.py", "import yacs.config", "rule 6"),
    ("sed/options/sed.py", "from sed.defaults import CHOICES", "rule 6"),
]


@pytest.mark.parametrize(("path", "source", "rule"), PLANTED, ids=[f"{p}-{s[:30]!r}" for p, s, _ in PLANTED])
def test_a_planted_violation_is_caught(path: str, source: str, rule: str) -> None:
    found = violations(source, Path(path))
    assert any(rule in line for line in found), found
    assert all(path in line for line in found)


ALLOWED = [
    ("sed/core/matching.py", "from scipy.optimize import linear_sum_assignment"),
    (
        "sed/core/views.py",
        "import math\nfrom torch.nn import functional\nfrom sed.core.boxes import area",
    ),
    (
        "sed/data/loaders.py",
        "from sed.core.structures import Images\nfrom sed.data import errors\nimport cv2",
    ),
    ("sed/detectors/rcnn.py", "from torchvision.models import detection\nimport transformers"),
    ("sed/d2/trainer.py", "from detectron2.engine import DefaultTrainer\nfrom sed.config import get_cfg"),
    ("sed/methods/sed.py", "from sed.detectors.base import Detector\nfrom sed.detectors import base"),
    ("sed/evaluation/coco.py", "from torchvision.ops import nms\nfrom fvcore.common.timer import Timer"),
    ("sed/engine/build.py", "from sed.methods.sed import SED\nfrom sed.config import load_config"),
    ("sed/data/loaders.py", "from sed.options.data import InputOptions"),
    ("sed/defaults.py", "from sed.options import sed\nfrom fvcore.common.config import CfgNode"),
    ("sed/config.py", "from sed.options import sed\nfrom sed.defaults import get_cfg"),
    ("sed/methods/sed.py", "from sed.options.sed import SEDOptions"),
    ("sed/options/sed.py", "from dataclasses import dataclass\nfrom sed.options.base import option"),
    ("sed/detectors/backbones.py", "import timm"),
    ("sed/runtime/results.py", "from sed.evaluation.coco import detect_all\nfrom fvcore.common.timer import Timer"),
    ("sed/d2/run.py", "from sed.runtime.output import claim_folder"),
    ("sed/studies/study_runs.py", "from sed.config import leaves\nfrom sed.runtime.checkpoint_files import read"),
    ("sed/cli/study.py", "from sed.studies.study_runs import Runner\nfrom sed.engine import driver"),
    ("tools/train_net.py", "from sed.cli.engines import pick\nfrom sed.config import load_config"),
    ("projects/study/run.py", "from sed.core import boxes\nfrom torchvision.models import resnet101"),
]


@pytest.mark.parametrize(("path", "source"), ALLOWED, ids=[p for p, _ in ALLOWED])
def test_what_the_rules_allow_passes(path: str, source: str) -> None:
    assert violations(source, Path(path)) == []


ROUND = {  # what stands in sed.data.a and in others -> the circle, or none
    "two at the top": (
        {"a": "from sed.data.b import x", "b": "import sed.data.a"},
        "sed.data.a -> sed.data.b -> sed.data.a",
    ),
    "hidden inside a function": (
        {"a": "from sed.data import b", "b": "def f():\n    from sed.data.a import x"},
        "sed.data.a -> sed.data.b -> sed.data.a",
    ),
    "hidden under TYPE_CHECKING": (
        {"a": "from .b import x", "b": "if TYPE_CHECKING:\n    from .a import y"},
        "sed.data.a -> sed.data.b -> sed.data.a",
    ),
    "by import_module": (
        {"a": "import_module('sed.data.b')", "b": "from sed.data.a import x"},
        "sed.data.a -> sed.data.b -> sed.data.a",
    ),
    "three": (
        {"a": "from sed.data.b import x", "b": "from sed.data.c import x", "c": "from sed.data.a import x"},
        "sed.data.a -> sed.data.b -> sed.data.c -> sed.data.a",
    ),
    "none": ({"a": "from sed.data.b import x", "b": "from sed.data.c import x", "c": "import sed\nimport os"}, None),
    "two ways to one": ({"a": "from sed.data import b, c", "b": "from sed.data.c import x", "c": ""}, None),
}


@pytest.mark.parametrize(("sources", "circle"), ROUND.values(), ids=list(ROUND))
def test_a_planted_circle_is_found(sources: dict[str, str], circle: str | None) -> None:
    files = {Path(f"sed/data/{name}.py"): source for name, source in sources.items()}
    assert circles(graph(files)) == ([circle] if circle else [])
