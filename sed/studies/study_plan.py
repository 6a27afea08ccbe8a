"""What a study runs, in three rounds: candidates on the tune set, the methods on the test set, equal seconds."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sed.config import ConfigError
from sed.data.files import save_text
from sed.studies.study_file import TUNE, Study, Words
from sed.studies.study_runs import Evaluation, Result, Run, Runner
from sed.studies.wording import slug

Tuned = dict[str, dict[str, list[Result]]]  # method -> candidate -> a result for every tune seed
Reported = dict[str, dict[str, dict[int, Result]]]  # case -> method -> seed -> result
EQUAL = "equal_seconds"


class Plan:
    """The runs of a study below one folder.

    Args:
        study: see there.
        output: <output>/tune/<method>-<candidate>-<seed>, where choices are made in several cases
            <output>/tune/<case>/<method>-<candidate>-<seed>; <output>/<case>/<method>[-equal_seconds]-<seed>.
        only: the methods to run; empty: all. The baseline is run wherever another one starts from its burn-in.
    """

    def __init__(self, study: Study, output: Path, only: Sequence[str] = ()) -> None:
        if strangers := [name for name in only if name not in study.methods]:
            raise ConfigError(f"--only {', '.join(strangers)}: the study has {', '.join(study.methods)}")
        self.study, self.output = study, output
        self.methods = [name for name in study.methods if name in only or not only]
        self.tuned = study.tuned(self.methods)
        shown = study.reference in self.methods
        self.equal = [name for name in self.methods if name in study.equal_seconds] if shown else []

    @property
    def size(self) -> int:
        """How many runs there are, equal ones counted apart."""
        study = self.study
        tune = sum(len(study.methods[name].candidates) for name in self.tuned) + bool(self.tuned)
        report = sum(self._in(name, case) for name in {study.baseline, *self.methods} for case in study.cases)
        report += sum(self._in(name, case) for name in self.equal for case in study.cases)
        return tune * len(study.tune_seeds) * len(study.chosen_in) + report * len(study.seeds)

    def check(self, runner: Runner) -> None:
        """Load the config of everything that may be run; ConfigError names what is wrong with it."""
        study, seed = self.study, self.study.seeds[0]
        first = {name: next(iter(method.candidates), "") for name, method in study.methods.items()}
        for case in study.cases:
            for name, method in study.methods.items():
                for candidate in method.candidates or [""]:
                    try:
                        runner.config(study.words(case, name, seed, {**first, name: candidate}))
                    except ConfigError as error:
                        place = ", ".join(part for part in (case, name, candidate) if part)
                        raise ConfigError(f"{study.config} with the options of {place}: {error}") from None

    # ------------------------------------------------------------------------------------------ the rounds
    def tune(self, runner: Runner) -> Tuned:
        """Every candidate of every tuned method, and the baseline beside them, on the tune seeds, cases and sets."""
        study, folder = self.study, self.output / TUNE
        if not self.tuned:
            return {}
        rows: dict[tuple[str, str], list[Run]] = {}
        for case in study.chosen_in:
            place, test = folder / slug(case) if study.tune_cases else folder, Evaluation(study.cases[case].tune)
            for seed in study.tune_seeds:
                words = study.words(case, study.baseline, seed, {})
                baseline = Run(place / f"{slug(study.baseline)}-{seed}", words, test)
                rows.setdefault((study.baseline, ""), []).append(baseline)
                for name in self.tuned:
                    for candidate in study.methods[name].candidates:
                        words = study.words(case, name, seed, {name: candidate})
                        to = place / f"{slug(name)}-{slug(candidate)}-{seed}"
                        run = Run(to, words, test, baseline, study.own_burn_in(name))
                        rows.setdefault((name, candidate), []).append(run)
        results = runner.run_all([run for runs in rows.values() for run in runs])
        tuned: Tuned = {}
        for (name, candidate), runs in rows.items():
            tuned.setdefault(name, {})[candidate] = [results[run.folder] for run in runs]
        return tuned

    def report(self, runner: Runner, chosen: Mapping[str, str]) -> Reported:
        """Every method with its chosen candidate, every case and seed, on the test set."""
        return self._results(runner, self._reported(chosen))

    def report_equal_seconds(self, runner: Runner, chosen: Mapping[str, str], reported: Reported) -> Reported:
        """The same for the methods of `equal_seconds`, with as many steps as the reference's seconds pay for."""
        runs = {}
        for (case, name, seed), run in self._reported(chosen).items():
            if name in self.equal:
                steps = self._steps(runner, case, name, chosen, reported)
                words = (*run.words, *longer(runner.config(run.words), steps))
                folder = run.folder.with_name(f"{slug(name)}-{EQUAL}-{seed}")
                baseline = run.baseline or run  # the baseline's own burn-in is shared, too
                test = Evaluation(self.study.cases[case].test, run.test.models)
                runs[case, name, seed] = Run(folder, words, test, baseline, run.own_burn_in)
        return self._results(runner, runs) if runs else {}

    # ------------------------------------------------------------------------------------------ parts
    def _in(self, name: str, case: str) -> bool:
        """Whether a method is reported in a case."""
        return case in (self.study.methods[name].cases or self.study.cases)

    def _reported(self, chosen: Mapping[str, str]) -> dict[tuple[str, str, int], Run]:
        study, runs = self.study, {}
        for case in study.cases:
            for seed in study.seeds:
                baseline: Run | None = None
                for name in study.methods:
                    if (name == study.baseline or name in self.methods) and self._in(name, case):
                        models = ("teacher", "student") if baseline is None else ("teacher",)
                        test = Evaluation(study.cases[case].test, models, study.sizes, bool(study.sizes))
                        folder = self.output / slug(case) / f"{slug(name)}-{seed}"
                        words = study.words(case, name, seed, chosen)
                        runs[case, name, seed] = run = Run(folder, words, test, baseline, study.own_burn_in(name))
                        baseline = baseline or run
        return runs

    def _results(self, runner: Runner, runs: Mapping[tuple[str, str, int], Run]) -> Reported:
        found = runner.run_all(list(runs.values()))
        reported: Reported = {}
        for (case, name, seed), run in runs.items():
            if name in self.methods:
                reported.setdefault(case, {}).setdefault(name, {})[seed] = found[run.folder]
        return reported

    def _steps(self, runner: Runner, case: str, name: str, chosen: Mapping[str, str], reported: Reported) -> int:
        """Steps for equal seconds; once computed they are kept, as long as both methods stay what they are."""
        names = (name, self.study.reference)
        words = [self.study.words(case, n, 0, chosen) for n in names]
        of = hashlib.sha256(json.dumps([runner.changes(w) for w in words]).encode()).hexdigest()[:16]
        path = self.output / slug(case) / f"{EQUAL}.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        if known.get(name, {}).get("of") != of:
            own, reference = (mean_seconds(reported[case][n].values()) for n in names)
            if not (own > 0 and reference > 0):
                raise ConfigError(f"{path.parent}: no times after burn-in of {' or '.join(names)}; leave {EQUAL} out")
            cfg = runner.config(words[0])
            after = max(1, round((cfg["SOLVER.MAX_ITER"] - cfg["SEMI.BURN_IN"]) * reference / own))
            known[name] = {"of": of, "steps": cfg["SEMI.BURN_IN"] + after, "seconds": reference, "own": own}
            save_text(json.dumps(known, indent=1), path)
        return known[name]["steps"]


def choose(tuned: Tuned) -> dict[str, str]:
    """Tuned method -> its candidate with the best mean AP of the teacher; the first of equals."""
    return {name: max(rows, key=lambda key: mean_ap(rows[key])) for name, rows in tuned.items()}


def mean_ap(results: Sequence[Result]) -> float:
    """Of the teacher at full size; without any finite one -inf."""
    values = [value for r in results if math.isfinite(value := r["teacher"]["full"]["AP"])]
    return statistics.mean(values) if len(values) == len(results) else -math.inf


def mean_seconds(results: Any) -> float:
    """Seconds after burn-in, over seeds: median seconds a step x steps."""
    return statistics.mean(r["seconds_per_step"] * r["steps_after_burn_in"] for r in results)


def longer(cfg: Mapping[str, Any], steps: int) -> Words:
    """Overrides for another number of steps: learning rate drops at the same share of them, but after burn-in."""
    share = steps / cfg["SOLVER.MAX_ITER"]
    drops = [max(round(step * share), cfg["SEMI.BURN_IN"] + 1) for step in cfg["SOLVER.STEPS"]]
    text = "".join(f"{drop}," for drop in dict.fromkeys(drops))
    return ("SOLVER.MAX_ITER", str(steps), "SOLVER.STEPS", f"({text})")
