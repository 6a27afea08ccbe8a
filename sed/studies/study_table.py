"""What a study found, as markdown: the choices, the table of each case, scales. See `sed.studies.study_plan`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sed.studies.study_file import Study
from sed.studies.study_plan import Reported, Tuned, mean_seconds
from sed.studies.study_runs import Result
from sed.studies.wording import bounds, interval, spread

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
Runs = Mapping[int, Result]  # seed -> result


def choices(study: Study, tuned: Tuned, chosen: Mapping[str, str]) -> str:
    """What each tuned method could have been, what that gave on the tune set, and what was taken."""
    seeds = ", ".join(map(str, study.tune_seeds))
    where = "; ".join(f"{study.cases[case].tune}, case {case}" for case in study.chosen_in)
    lines = [f"Choices on {where}, seeds {seeds}: the best mean AP of the teacher."]
    lines += ["The budget of a method is its number of candidates. Mean ± standard deviation over seeds."]
    for name, rows in tuned.items():
        candidates = study.methods[name].candidates
        title = (
            f"{name}: budget {len(candidates)}, chosen: {chosen[name]}"
            if candidates
            else f"{name}: the supervised baseline"
        )
        lines += ["", f"## {title}", "", "| candidate | options | AP | AP, half-size input |", "| --- " * 4 + "|"]
        for candidate, results in rows.items():
            words = " ".join((*study.methods[name].options, *candidates.get(candidate, ())))
            full, half = (spread([r["teacher"][key]["AP"] for r in results]) for key in ("full", "half"))
            shown = f"**{candidate}**" if candidates and candidate == chosen[name] else candidate
            lines.append(f"| {shown} | `{words}` | {full} | {half} |" if words else f"| {shown} | | {full} | {half} |")
    return "\n".join(lines) + "\n"


def table(study: Study, reported: Reported, equal: Reported) -> str:
    """A section a case, a row a method; differences are `reference - method`, paired by seed."""
    reference, parts = study.reference, []
    for case, methods in reported.items():
        longer = equal.get(case, {})
        head = ["method", *COLUMNS, "AP, half-size input", "steps / seconds", f"{reference} - method: AP"]
        head += [f"{reference} - method: half-size input"]
        if longer:
            head += ["AP, equal seconds (steps / seconds)"]
            head += [f"{reference} - method, equal seconds: {what}" for what in ("AP", "half-size input")]
        seeds = ", ".join(map(str, study.seeds))
        lines = [
            f"## {case}",
            "",
            f"On {study.cases[case].test}; seeds {seeds}: mean ± standard deviation, and the mean of the",
        ]
        lines += ["paired differences by seed with its 95 % interval (Student's t)."]
        lines += ["Steps of the whole run; seconds after burn-in. The EMA teacher, where nothing else is said.", ""]
        lines += [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
        base = methods.get(reference)
        for name, runs in methods.items():
            for model in ("student", "teacher"):
                if all(model in run for run in runs.values()):
                    label = f"{name}, student" if model == "student" else name
                    cells = [spread([run[model]["full"][c] for run in runs.values()]) for c in COLUMNS]
                    cells += [spread([run[model]["half"]["AP"] for run in runs.values()]), cost(runs)]
                    cells += _differences({} if name == reference else base, runs, model)
                    if longer:
                        cells += [""] * 3 if name not in longer else _equal_cells(base, longer[name], model)
                    lines.append(f"| {label} | {' | '.join(cells)} |")
        versions = {run["code"] for rows in (methods, longer) for runs in rows.values() for run in runs.values()}
        if len(versions) > 1:
            lines += ["", f"These runs are of {len(versions)} versions of the code: {', '.join(sorted(versions))}."]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def summary(study: Study, reported: Reported) -> str:
    """All cases side by side: AP, and differences to the reference with an interval over the cases."""
    reference, bound = study.reference, study.upper_bound
    head = ["method", *reported, "mean", f"{reference} - method", "cases ahead / behind"]
    lines = [
        "## All cases",
        "",
        "AP of the teacher, mean ± standard deviation over seeds. The last but one column is the",
    ]
    lines += [f"mean over cases of the difference to {reference} with its 95 % interval (Student's t over cases); the"]
    lines += [f"last in how many cases the interval over seeds leaves {reference} ahead, and behind.", ""]
    lines += [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    names = list(dict.fromkeys(name for methods in reported.values() for name in methods))
    for name in names:
        found = {case: methods[name] for case, methods in reported.items() if name in methods}
        cells = [spread(_aps(found[case])) if case in found else "" for case in reported]
        cells.append(f"{statistics.mean(statistics.mean(_aps(runs)) for runs in found.values()):.1f}")
        pairs = [_gains(reported[c][reference], found[c]) for c in found if reference in reported[c]]
        if name == reference or not pairs:
            cells += ["", ""]
        else:
            limits = [bounds(gains) for gains in pairs if len(gains) > 1]
            sides = (sum(low > 0 for low, _ in limits), sum(high < 0 for _, high in limits))
            cells += [interval([statistics.mean(gains) for gains in pairs]), f"{sides[0]} / {sides[1]} of {len(pairs)}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if bound:
        lines += ["", f"Share of the gap between {study.baseline} and {bound} that is closed, of the means:", ""]
        lines += [f"| method | {' | '.join(reported)} |", "| --- " * (1 + len(reported)) + "|"]
        for name in names:
            if name not in (study.baseline, bound):
                lines.append(
                    f"| {name} | {' | '.join(_closed(m, study.baseline, bound, name) for m in reported.values())} |"
                )
    return "\n".join(lines) + "\n"


def _aps(runs: Runs) -> list[float]:
    return [run["teacher"]["full"]["AP"] for run in runs.values()]


def _gains(base: Runs, runs: Runs) -> list[float]:
    """AP of `base` minus AP of `runs`, seed by seed."""
    return [base[seed]["teacher"]["full"]["AP"] - run["teacher"]["full"]["AP"] for seed, run in runs.items()]


def _closed(methods: Mapping[str, Runs], baseline: str, bound: str, name: str) -> str:
    if name not in methods or bound not in methods:
        return ""
    low, high, own = (statistics.mean(_aps(methods[key])) for key in (baseline, bound, name))
    return f"{100 * (own - low) / (high - low):.0f} %" if high > low else "-"


def scales(study: Study, reported: Reported) -> str:
    """What the scale of the input does: the gain of an ensemble of sizes, and how far predictions of two sizes are."""
    case = study.main_case
    lines = [f"## {case}: scales", "", "The gain is AP of the ensemble of all sizes minus AP at full size; the score"]
    lines += ["distance is that between an image and its half-size copy: on objects, and over foreground anchors (or"]
    lines += ["queries). See sed/evaluation/scales.py.", ""]
    lines += ["| method | AP, ensemble | gain | score distance (GT) | foreground |", "| --- " * 5 + "|"]
    paths = (("ensemble", "AP"), ("ensemble", "gain"), ("score_distance", "GT"))
    for name, runs in reported[case].items():
        found = [run["teacher"] for run in runs.values()]
        cells = [spread([number(f, *path) for f in found], 1 + 2 * (path[1] == "GT")) for path in paths]
        cells.append(spread([number(f, "score_distance", "foreground", "mean") for f in found], 3))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def by_size(reported: Mapping[str, Runs]) -> dict[str, dict[str, list[float]]]:
    """Method -> APs, APm, APl -> the teacher's values over seeds."""
    return _each(reported, lambda run: {key: run["teacher"]["full"][key] for key in ("APs", "APm", "APl")})


def by_scale(reported: Mapping[str, Runs]) -> dict[str, dict[int, list[float]]]:
    """Method -> short side of the test images -> the teacher's AP over seeds."""
    return _each(reported, lambda run: {int(s): found["AP"] for s, found in run["teacher"]["sizes"].items()})


def against(base: Runs, runs: Runs, model: str = "teacher", size: str = "full") -> str:
    """Mean and interval of AP of `base`'s teacher minus AP of `model`, seed by seed; a dash where one has none.

    Size: "full" or "half", of the test images.
    """
    pairs = [(base[seed]["teacher"][size]["AP"], run[model][size]["AP"]) for seed, run in runs.items()]
    gains = [a - b for a, b in pairs]
    return "-" if any(map(math.isnan, gains)) else interval(gains)


def cost(runs: Runs) -> str:
    """Steps, and the mean of the seconds after burn-in."""
    steps, seconds = statistics.mean(run["steps"] for run in runs.values()), mean_seconds(runs.values())
    return f"{steps:.0f} / {'-' if math.isnan(seconds) else f'{seconds:.0f}'}"


def number(found: Mapping[str, Any], *keys: str) -> float:
    """A number below `keys`; NaN where there is none."""
    value: Any = found
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, (int, float)) else math.nan


def _equal_cells(base: Runs | None, runs: Runs, model: str) -> Sequence[str]:
    ap = spread([run[model]["full"]["AP"] for run in runs.values()])
    return [f"{ap} ({cost(runs)})", *_differences(base, runs, model)]


def _differences(base: Runs | None, runs: Runs, model: str) -> list[str]:
    return [against(base, runs, model, size) if base else "" for size in ("full", "half")]


def _each(reported: Mapping[str, Runs], values: Callable[[Result], dict]) -> dict:
    """Method -> key -> the list over seeds of what `values` gives."""
    found = {name: [values(run) for run in runs.values()] for name, runs in reported.items()}
    return {name: {key: [row[key] for row in rows] for key in rows[0]} for name, rows in found.items()}
