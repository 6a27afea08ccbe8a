"""The finished runs of a study in one small file, which a repository can keep and another machine can go on from.

    {"format": 1, "asked": what the first run was asked for, "runs": {folder: {"changed": ..., "result": ...}}}

`asked` is the config and the defaults of a run (`sed.studies.study_runs`); of every run only what differs from it is
there. Weights are not: a method whose baseline is only known from here trains its burn-in again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sed.config import ConfigError
from sed.data.files import save_text
from sed.studies.study_runs import ASKED, RESULT

FORMAT = 1
Sections = Mapping[str, Mapping[str, Any]]  # "config" and "defaults" -> dotted key -> value


def collect(output: Path, path: Path) -> int:
    """Write the finished runs below a study's folder to a file, and what the file has beside them stays.

    Args:
        output: the study's folder.
        path: the file; its folder is made where it is missing.

    Returns:
        How many runs the file has.

    Raises:
        ConfigError: where the file is another one.
    """
    runs = read_kept(path) if path.exists() else {}
    for result in output.rglob(RESULT):
        asked = result.with_name(ASKED)
        runs[str(result.parent.relative_to(output))] = (json.loads(asked.read_text()), json.loads(result.read_text()))
    if not runs:
        return 0
    names = sorted(runs)
    first = runs[names[0]][0]
    rows = {name: {"changed": _changed(first, runs[name][0]), "result": runs[name][1]} for name in names}
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    head = f'"format": {FORMAT},\n"asked": {json.dumps(first)}'
    save_text(f'{{{head},\n"runs": {{\n{lines}\n}}}}\n', path)
    return len(runs)


def read_kept(path: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Folder below the study's -> what was asked for, and the result.

    Raises:
        ConfigError: where the file is another one.
    """
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ConfigError(f"{path}: format {content['format']}, expected {FORMAT}")
        rows = content["runs"].items()
        return {name: (_apply(content["asked"], row["changed"]), row["result"]) for name, row in rows}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: not a file of finished runs ({type(error).__name__}: {error})") from None


def _changed(first: Sections, asked: Sections) -> dict[str, Any]:
    """What turns `first` into `asked`: values to set, and keys to leave out."""
    found: dict[str, Any] = {}
    for section, values in asked.items():
        before = first.get(section, {})
        found[section] = {k: v for k, v in values.items() if k not in before or before[k] != v}
        found[f"no {section}"] = [k for k in before if k not in values]
    return {key: value for key, value in found.items() if value}


def _apply(first: Sections, changed: Mapping[str, Any]) -> dict[str, Any]:
    parts = {}
    for section, values in first.items():
        gone = set(changed.get(f"no {section}", ()))
        parts[section] = {k: v for k, v in values.items() if k not in gone} | changed.get(section, {})
    return parts
