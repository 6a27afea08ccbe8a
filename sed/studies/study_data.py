"""The data sets of a study, looked at before anything is trained: a misspelt test set would come up hours later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sed.data.digits import VARIANTS
from sed.data.errors import DataError
from sed.studies.halves import HALVES
from sed.studies.study_file import Study, Words


def check_sets(
    study: Study, config: Callable[[Words], Mapping[str, Any]], read: Callable[[Path, Words, str, bool], object]
) -> None:
    """Find every training set, and read every set that is evaluated on.

    Args:
        study: see there.
        config: overrides -> config, dotted key -> value.
        read: config file, overrides, source, whether labelled -> reads a set as a run does.

    Raises:
        DataError: for the first that cannot be used, with its case and its role.
    """
    first = {name: next(iter(method.candidates), "") for name, method in study.methods.items()}
    seen = set()
    for name, case in study.cases.items():
        for method in study.methods:
            words = study.words(name, method, study.seeds[0], first)
            cfg = config(words)
            rows = [(f"tune of case {name}", case.tune, True), (f"test of case {name}", case.test, True)]
            for key, labeled in (("DATASETS.TRAIN", True), ("DATASETS.UNLABELED", False)):
                absent = [source for source in cfg[key] if not Path(source).exists()]  # trainings begin with the others
                rows += [(f"{key} of {name}, {method}", source, labeled) for source in absent]
            for role, source, labeled in rows:
                source = source.rpartition(", ")[0] if source.endswith(HALVES) else source
                row = (cfg["ENGINE"], cfg["DATASETS.IMAGE_ROOT"], source, labeled)
                if not source or _is_made(source) or row in seen:
                    continue
                seen.add(row)
                try:
                    read(study.config, words, source, labeled)
                except DataError as error:
                    raise DataError(f"{role}: {error}") from None


def _is_made(source: str) -> bool:
    """Whether it is one of the sets that are drawn where they are missing."""
    return source in {f"{variant}_{split}" for variant in VARIANTS for split in ("train", "tune", "test")}
