"""A study: which methods are trained on which seeds, what is chosen on which set and reported on which. See `Study`."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sed.config import ConfigError, read_yaml
from sed.studies.halves import HALVES
from sed.studies.wording import slug

Words = tuple[str, ...]  # KEY, VALUE, KEY, VALUE, ...
TUNE = "tune"  # the folder of the runs that choices are made on
_SET_HERE = ("OUTPUT_DIR", "SEED", "SEMI.FOLD", "DATASETS.TEST", "TEST.EVAL_PERIOD")
_SET_HERE += ("SOLVER.CHECKPOINT_PERIOD", "SOLVER.CHECKPOINTS_KEPT")
_EXPECTED = {
    **dict.fromkeys(("config", "options", "tune", "test", "reference", "upper_bound"), (str, "a string")),
    **dict.fromkeys(("tune_cases", "tune_seeds", "seeds", "equal_seconds", "sizes"), (list, "a list")),
    **dict.fromkeys(("cases", "methods"), (dict, "a mapping of names to options")),
}
_NEEDED = ("config", "seeds", "cases", "methods", "reference")
_OF_METHOD = {"options": (str, "a string"), "candidates": (dict, "a mapping of names to options")}
_OF_METHOD |= {"like": (str, "the name of a method"), "own_burn_in": (bool, "true or false")}
_OF_METHOD |= {"cases": (list, "a list of cases")}
_OF_CASE = dict.fromkeys(("options", "tune", "test"), (str, "a string")) | {
    "like": (str, "the name of a case before it")
}


@dataclass(frozen=True)
class StudyMethod:
    """One line of the table.

    Attributes:
        options: what it changes in the config.
        candidates: name -> what else it may change; which one is chosen on the tune set. Empty: nothing is chosen.
        like: the method whose options (and choice) come before its own; "": none.
        own_burn_in: train from its beginning. So does, unasked, what differs from the supervised baseline in burn-in.
        cases: those that it is reported in; empty: all.
    """

    options: Words = ()
    candidates: Mapping[str, Words] = field(default_factory=dict)
    like: str = ""
    own_burn_in: bool = False
    cases: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyCase:
    """One table: other data or options.

    Attributes:
        options: of all its runs.
        tune: its set that choices are made on.
        test: its set that is reported.
    """

    options: Words
    tune: str
    test: str


@dataclass(frozen=True)
class Study:
    """What a study file says.

    Attributes:
        config: path of the config of every run (in the file: relative to the file).
        cases: in the file a name's options, or a mapping of options, tune, test and like. `tune` is the set that
            choices are made on ("" where nothing is chosen), `test` the one that is reported, for all cases or one; of
            an only json one may be "PATH, first half", the other "PATH, second half". `like` names a case before it,
            whose sets and options it has where its own say nothing else. The first case is the main one.
        options: of every run.
        tune_cases: those that choices are made in; empty: the main one.
        tune_seeds: seed s is SEED s and SEMI.FOLD s: labels, weights, order and augmentation.
        seeds: those that are reported; they share none with `tune_seeds`.
        methods: name -> method, in the table's order; the first is the supervised baseline, whose burn-in all share.
        reference: the method that all others are compared with.
        upper_bound: the method with all labels, of which others close the gap; "": none.
        equal_seconds: methods that also run for as long as the reference takes.
        sizes: short sides of the test images for AP against input scale; empty: no such pictures.
    """

    config: Path
    seeds: tuple[int, ...]
    cases: Mapping[str, StudyCase]
    methods: Mapping[str, StudyMethod]
    reference: str
    options: Words = ()
    upper_bound: str = ""
    tune_cases: tuple[str, ...] = ()
    tune_seeds: tuple[int, ...] = ()
    equal_seconds: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def baseline(self) -> str:
        """The supervised baseline: the first method."""
        return next(iter(self.methods))

    @property
    def main_case(self) -> str:
        """The first case."""
        return next(iter(self.cases))

    @property
    def chosen_in(self) -> tuple[str, ...]:
        """The cases that choices are made in."""
        return self.tune_cases or (self.main_case,)

    def words(self, case: str, method: str, seed: int, chosen: Mapping[str, str]) -> Words:
        """The overrides of one run, but for its folder; `chosen` names the candidate of each tuned method.

        No training evaluates anything: its finished weights are, once.
        """
        names = [name for name in (self.methods[method].like, method) if name]
        own = [w for name in names for w in (*self.methods[name].options, *self._candidate(name, chosen))]
        fixed = ("SEED", str(seed), "SEMI.FOLD", str(seed), "DATASETS.TEST", "()")
        return (*self.options, *self.cases[case].options, *own, *fixed)

    def own_burn_in(self, method: str) -> bool:
        """Whether a method says that it trains from its beginning, or is like one that does."""
        return any(self.methods[name].own_burn_in for name in (method, self.methods[method].like) if name)

    def tuned(self, methods: Iterable[str]) -> list[str]:
        """Those of `methods`, and of those they are like, that have candidates; in the file's order."""
        needed = {name for method in methods for name in (method, self.methods[method].like)}
        return [name for name, method in self.methods.items() if name in needed and method.candidates]

    def _candidate(self, method: str, chosen: Mapping[str, str]) -> Words:
        return self.methods[method].candidates[chosen[method]] if self.methods[method].candidates else ()


def read_study(path: str | Path) -> Study:
    """The study of a file.

    Raises:
        ConfigError: for a missing file, a key that is missing or unknown, or a value that makes no sense; the message
            names file, key and remedy.
    """
    path = Path(path)
    values = read_yaml(path, "study")
    _check_keys(str(path), values, _EXPECTED)
    if missing := [key for key in _NEEDED if not values.get(key)]:
        raise ConfigError(f"{path}: {', '.join(missing)} missing or empty; a study needs {', '.join(_NEEDED)}")
    methods = {str(name): _method(f"{path}: method {name}", value) for name, value in values["methods"].items()}
    study = Study(
        reference=values["reference"],
        upper_bound=values.get("upper_bound", ""),
        config=path.parent / values["config"],
        options=_words(f"{path}: options", values.get("options", "")),
        cases=_cases(str(path), values),
        methods=methods,
        **{key: tuple(map(str, values.get(key, ()))) for key in ("equal_seconds", "tune_cases")},
        **{key: _numbers(f"{path}: {key}", values.get(key, [])) for key in ("seeds", "tune_seeds", "sizes")},
    )
    for wrong, message in _mistakes(study):
        if wrong:
            raise ConfigError(f"{path}: {message}")
    return study


def _mistakes(study: Study) -> list[tuple[object, str]]:
    """(whether, what) for whatever the keys say together."""
    methods, known = study.methods, f"the methods are {', '.join(study.methods)}"
    tuned = [name for name, method in methods.items() if method.candidates]
    needed = (study.reference, *study.equal_seconds, *([study.upper_bound] if study.upper_bound else []))
    strangers = [name for name in needed if name not in methods]
    likes = {name: method.like for name, method in methods.items() if method.like}
    bad = [n for n, like in likes.items() if like not in methods or methods[like].like or methods[n].candidates]
    names = [("methods", methods), ("cases", study.cases)]
    names += [(f"candidates of {name}", methods[name].candidates) for name in tuned]
    clashes = [kind for kind, group in names if len({slug(name).lower() for name in group}) < len(group)]
    limits = [case for method in methods.values() for case in method.cases]
    unknown = sorted({case for case in (*study.tune_cases, *limits) if case not in study.cases})
    tunes = [c.tune for c in study.cases.values()]
    both = sorted({c.test for c in study.cases.values() if any(_overlap(c.test, tune) for tune in tunes)})
    reference = methods.get(study.reference, StudyMethod())
    shared = sorted(set(study.seeds) & set(study.tune_seeds))
    return [
        (strangers, f"reference, upper_bound and equal_seconds name {', '.join(strangers)}; {known}"),
        (study.reference in study.equal_seconds, "equal_seconds holds the reference, whose seconds are the measure"),
        (bad, f"like of {', '.join(bad)}: expected a method that is not like another, and no candidates; {known}"),
        (
            study.baseline in (*tuned, *likes),
            f"{study.baseline} is the supervised baseline (the first): no candidates, no like",
        ),
        (
            tuned and not (study.tune_seeds and all(study.cases[c].tune for c in study.chosen_in if c in study.cases)),
            f"{', '.join(tuned)} are tuned; give tune and tune_seeds",
        ),
        (unknown, f"tune_cases and cases of methods name {', '.join(unknown)}; the cases are {', '.join(study.cases)}"),
        (methods[study.baseline].cases, f"{study.baseline} is the supervised baseline: it is in all cases"),
        (reference.cases, f"{study.reference} is what others are compared with: it is in all cases"),
        (shared, f"seeds and tune_seeds share {shared}: what is chosen on a seed is not reported on it"),
        (
            both,
            f"tune and test are both {', '.join(both)}, or share it: nothing may be chosen on what is reported",
        ),
        (clashes, f"{', '.join(clashes)}: two names would share a folder; rename one"),
        (TUNE in map(slug, study.cases), f"a case may not be called {TUNE}: that is the folder of the choices"),
    ]


def _overlap(test: str, tune: str) -> bool:
    """Whether two sets may share an image, by their names: equal ones, or a whole and its half."""
    split = [name.rpartition(", ") if name.endswith(HALVES) else (name, "", "") for name in (test, tune)]
    (a, _, first), (b, _, second) = split
    same = bool(a and b) and os.path.normpath(a) == os.path.normpath(b)
    return same and not (first and second and first != second)


def _cases(path: str, study: Mapping[str, Any]) -> dict[str, StudyCase]:
    cases: dict[str, StudyCase] = {}
    for name, value in study["cases"].items():
        place, own = f"{path}: case {name}", value if isinstance(value, dict) else {"options": value}
        _check_keys(place, {key: v for key, v in own.items() if key != "options"}, _OF_CASE)
        if (like := own.get("like")) and like not in cases:
            raise ConfigError(f"{place}: like names {like}; before it are {', '.join(cases) or 'none'}")
        base = cases[like] if like else StudyCase((), study.get("tune", ""), study.get("test", ""))
        options = (*base.options, *_words(place, own.get("options", "")))
        cases[str(name)] = case = StudyCase(options, own.get("tune", base.tune), own.get("test", base.test))
        if not case.test:
            raise ConfigError(f"{place}: it has no test, nor has the study")
    return cases


def _method(place: str, value: object) -> StudyMethod:
    if isinstance(value, str):
        return StudyMethod(_words(place, value))
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: expected options, or a mapping with any of {', '.join(_OF_METHOD)}; got {value!r}")
    _check_keys(place, value, _OF_METHOD)
    candidates = {str(k): _words(f"{place}, candidate {k}", v) for k, v in value.get("candidates", {}).items()}
    options = _words(place, value.get("options", ""))
    cases = tuple(map(str, value.get("cases", ())))
    return StudyMethod(options, candidates, value.get("like", ""), value.get("own_burn_in", False), cases)


def _check_keys(place: str, values: Mapping[Any, Any], expected: Mapping[str, tuple[type, str]]) -> None:
    for key, value in values.items():
        if key not in expected:
            near = difflib.get_close_matches(str(key), expected, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{place}: unknown key {key}; the nearest of {', '.join(expected)} is {near}")
        kind, words = expected[key]
        if not isinstance(value, kind):
            raise ConfigError(f"{place}: {key} expects {words}, got {value!r}")


def _words(place: str, text: object) -> Words:
    """A string of KEY VALUE pairs, as a shell reads it."""
    try:
        words = tuple(shlex.split(text)) if isinstance(text, str) else None
    except ValueError as error:
        raise ConfigError(f"{place}: {text!r}: {error}") from None
    if words is None or len(words) % 2:
        raise ConfigError(f'{place}: expected a string of KEY VALUE pairs ("" for none), got {text!r}')
    if taken := [key for key in words[::2] if key in _SET_HERE]:
        raise ConfigError(f"{place}: {', '.join(taken)} is set by the study itself; leave it out")
    return words


def _numbers(place: str, values: list[Any]) -> tuple[int, ...]:
    good = all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values)
    if not good or len(set(values)) < len(values):
        raise ConfigError(f"{place}: expected whole numbers, each once, got {values}")
    return tuple(values)
