"""The table of all cases of a study, from results made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from sed.studies.study_file import Study, StudyCase, StudyMethod
from sed.studies.study_table import summary
from sed.studies.wording import bounds


def runs(*aps):
    return {seed: {"teacher": {"full": {"AP": float(ap)}}} for seed, ap in enumerate(aps)}


METHODS = ("control", "other", "plus", "all")
REPORTED = {
    "a": {"control": runs(10, 12, 14), "other": runs(20, 22, 24), "plus": runs(30, 32, 34), "all": runs(50, 52, 54)},
    "b": {"control": runs(10, 20, 30), "plus": runs(9, 30, 21), "all": runs(10, 20, 30)},
}


def make_study(**more):
    cases = {name: StudyCase((), "", "x") for name in REPORTED}
    return Study(Path("c.yaml"), (0, 1, 2), cases, dict.fromkeys(METHODS, StudyMethod()), "plus", **more)


def rows(text):
    return {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in text.splitlines() if "|" in line
    }


def test_the_columns_are_those_of_the_cases():
    found = rows(summary(make_study(), REPORTED))
    assert found["method"] == ["method", "a", "b", "mean", "plus - method", "cases ahead / behind"]
    # differences: 20 in each seed of a; -1, 10, -9 in b, mean 0; over the cases 10 +- 12.706 * 14.142 / sqrt(2)
    assert found["control"][1:] == ["12.0 ± 2.0", "20.0 ± 10.0", "16.0", "+10.0 [-117.1, +137.1]", "1 / 0 of 2"]
    assert found["other"][1:] == ["22.0 ± 2.0", "", "22.0", "+10.0", "1 / 0 of 1"]
    assert found["plus"][1:4] == ["32.0 ± 2.0", "20.0 ± 10.5", "26.0"]
    assert found["all"][4:] == ["-10.0 [-137.1, +117.1]", "0 / 1 of 2"]


def test_the_gap_is_that_between_the_baseline_and_the_bound():
    text = summary(make_study(upper_bound="all"), REPORTED)
    closed = rows(text[text.index("Share of the gap") :])
    assert "between control and all" in text
    assert closed["plus"] == ["plus", "50 %", "-"]  # 20 of 40; there is no gap in b
    assert closed["other"][:2] == ["other", "25 %"]
    assert not {"control", "all"} & closed.keys()


def test_bounds_are_student_s():
    assert bounds([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
