"""The report page: what it reads from run folders, what it says, and that it needs nothing but itself."""

import json
import math
import re

import numpy as np
import pytest
import yaml

from sed.evaluation.bootstrap import Difference
from sed.studies.report import table_rows, verdict, write_report
from sed.studies.run_results import ReportError, config_difference, read_metrics, read_run, write_results


def make_run(folder, method, ap, *, teacher_ap=None, seconds=60.0):
    folder.mkdir()
    config = {"SEED": 3, "OUTPUT_DIR": str(folder), "SEMI": {"METHOD": method, "BURN_IN": 20, "FOLD": 0}}
    config |= {"SOLVER": {"MAX_ITER": 60}, "DATASETS": {"TEST": ["digits_tune"]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = []
    for step in (20, 40, 60):
        rows.append({"step": step, "loss": 2.0 - step / 60, "sup/dense_cls": 0.5, "sup/region_cls": 0.25})
        if method == "sed" and step > 20:
            rows[-1] |= {"scale/dense_cls": 0.1, "distill/dense_cls": 0.2}
        rows.append({"step": step, "student/AP": step / 2, "teacher/AP": step / 1.5, "teacher/APl": None})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = {
        "student": {"AP": ap, "AP50": 60.0, "APl": math.nan},
        "teacher": {"AP": ap + 1 if teacher_ap is None else teacher_ap, "AP50": 70.0, "APl": math.nan},
    }
    command = f"train {method} <x>"
    write_results(folder, scores, dataset="digits_test", command=command, seconds=seconds)
    (folder / "split.json").write_text(json.dumps({"labeled": 30, "unlabeled": 1470}))
    return folder


@pytest.fixture
def runs(tmp_path):
    control = read_run(make_run(tmp_path / "a", "supervised", 40.0), "Control")
    return control, read_run(make_run(tmp_path / "b", "sed", 45.0, seconds=150.0), "SED")


def test_a_run_folder_is_read_whole(runs):
    control, treated = runs
    assert treated.config["SOLVER.MAX_ITER"] == 60
    assert treated.series("teacher/AP") == ([20, 40, 60], pytest.approx([20 / 1.5, 40 / 1.5, 40.0]))
    assert treated.series("teacher/APl") == ([], [])  # null: not measured
    assert treated.term("sup")[1] == pytest.approx([0.75] * 3)
    assert treated.term("scale") == ([40, 60], pytest.approx([0.1, 0.1]))
    assert control.term("scale") == ([], [])
    assert list(table_rows(control, treated)) == [
        "Control, student",
        "Control, EMA teacher",
        "SED, student",
        "SED, EMA teacher",
    ]


def test_steps_logged_twice_are_merged_and_a_half_written_line_waits(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 2, "loss": 1.0}\n{"step": 1, "loss": 3.0}\n{"step": 2, "teacher/AP": 5.0}\n{"step": 3, "lo'
    )
    assert read_metrics(path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0, "teacher/AP": 5.0}]
    path.write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(ReportError, match="line 2"):
        read_metrics(path)
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_only_what_the_method_needs_differs(runs):
    assert config_difference(*runs) == [("SEMI.METHOD", "supervised", "sed")]


def test_the_verdict_follows_the_numbers(runs, tmp_path):
    control, treated = runs
    said = verdict(control, treated)
    assert "raised AP on digits_test: 41.0 (Control, EMA teacher) against 46.0" in said
    assert "+5.0 AP" in said
    assert "1,470 unlabelled" in said
    assert "2.5 times the seconds" in said
    worse = read_run(make_run(tmp_path / "c", "sed", 45.0, teacher_ap=39.0), "SED")
    assert "lowered AP" in verdict(control, worse)
    assert "-2.0 AP" in verdict(control, worse)
    equal = read_run(make_run(tmp_path / "d", "sed", 45.0, teacher_ap=41.0), "SED")
    assert "did not change" in verdict(control, equal)
    unknown = read_run(make_run(tmp_path / "e", "sed", 45.0, teacher_ap=math.nan), "SED")
    assert "nothing can be said" in verdict(control, unknown)


def test_the_verdict_says_whether_it_may_be_luck(runs):
    said = verdict(*runs, Difference(5.0, 2.1, 7.9))
    assert said.endswith("times the seconds. 95 % interval over the choice of test images: +2.1 to +7.9 AP.")
    said = verdict(*runs, Difference(5.0, -0.5, 7.9))
    assert "That may be luck: it holds 0 (95 % interval over the choice of test images: -0.5 to +7.9 AP)." in said
    few = verdict(*runs, Difference(5.0, math.nan, math.nan))
    assert few == f"{verdict(*runs)} There are too few test images to tell it from luck."


def test_lost_classes_are_named_where_there_are_several(runs):
    rows = {
        "cat": Difference(-3.0, -5.0, -1.0),
        "dog": Difference(-1.0, -2.0, 0.5),
        "owl": Difference(-9.0, *[math.nan] * 2),
    }
    said = verdict(*runs, Difference(5.0, 2.1, 7.9), rows)
    assert said.endswith(" It lost on cat (-3.0 AP).")
    assert "lost" not in verdict(*runs, Difference(5.0, 2.1, 7.9), {"cat": rows["cat"]})


def test_the_control_is_represented_by_its_better_model(tmp_path):
    control = read_run(make_run(tmp_path / "a", "supervised", 44.0, teacher_ap=40.0), "Control")
    treated = read_run(make_run(tmp_path / "b", "sed", 45.0), "SED")
    assert "44.0 (Control, student) against 46.0" in verdict(control, treated)


def test_the_page_is_complete_and_self_contained(runs, tmp_path):
    path = tmp_path / "report.html"
    sheet = np.full((40, 60, 3), 200, np.uint8)
    write_report(path, *runs, title="A & B", sheet=sheet, sheet_caption="first images", commands=["make it"])
    page = path.read_text()
    assert "A &amp; B" in page
    assert "train sed &lt;x&gt;" in page
    assert page.count("class=best") >= 2
    assert page.count("<td>-</td>") >= 4  # APl of all four is not known
    assert "no object of this size" in page
    assert "<svg" in page
    assert "data:image/png;base64," in page
    assert "nan" not in re.sub('base64,[^"]*', "", page).lower().split("<svg")[0]
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "$" not in re.sub('base64,[^"]*', "", page)  # every placeholder was filled


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.jsonl", "results.json"])
def test_an_unfinished_run_is_refused_by_name(tmp_path, missing):
    folder = make_run(tmp_path / "a", "sed", 40.0)
    (folder / missing).unlink()
    with pytest.raises(ReportError, match=missing):
        read_run(folder, "SED")
