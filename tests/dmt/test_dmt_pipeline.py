"""dmt.pipeline: which stage comes when, and from what it starts."""

from __future__ import annotations

import pytest

from dmt.pipeline import BEST, plan

SHARES = [0.5, 1.0]


def short(stages) -> list[tuple]:
    return [(s.name, s.share, s.start, s.labels, s.labeler) for s in stages]


def test_mutual_training_labels_with_the_models_of_the_round_before() -> None:
    assert short(plan(SHARES, mutual=True)) == [
        ("00_baseline_A0", 0.0, "", "", ""),
        ("01_baseline_B0", 0.0, "", "", ""),
        ("02_label_A1", 0.5, "", "", "00_baseline_A0"),
        ("03_train_B1", 0.5, "01_baseline_B0", "02_label_A1", ""),
        ("04_label_B1", 0.5, "", "", "01_baseline_B0"),  # B0, not the B1 just made (Alg. 2)
        ("05_train_A1", 0.5, "00_baseline_A0", "04_label_B1", ""),
        ("06_label_A2", 1.0, "", "", "05_train_A1"),
        ("07_train_B2", 1.0, "03_train_B1", "06_label_A2", ""),
        ("08_label_B2", 1.0, "", "", "03_train_B1"),
        ("09_train_A2", 1.0, "05_train_A1", "08_label_B2", ""),
    ]


def test_one_model_labels_for_itself() -> None:
    assert short(plan(SHARES, mutual=False)) == [
        ("00_baseline_A0", 0.0, "", "", ""),
        ("01_label_A1", 0.5, "", "", "00_baseline_A0"),
        ("02_train_A1", 0.5, "00_baseline_A0", "01_label_A1", ""),
        ("03_label_A2", 1.0, "", "", "02_train_A1"),
        ("04_train_A2", 1.0, "02_train_A1", "03_label_A2", ""),
    ]


def test_retraining_starts_afresh_each_round() -> None:
    stages = plan(SHARES, mutual=False, retrain=True)
    assert [s.start for s in stages] == [""] * 5
    assert [s.labeler for s in stages if s.kind == "label"] == ["00_baseline_A0", "02_train_A1"]


def test_dst_cbc_goes_on_from_the_best_of_all_rounds() -> None:
    stages = plan(SHARES, mutual=False, keep_best=True)
    assert [s.start or s.labeler for s in stages] == ["", BEST, BEST, BEST, BEST]


def test_online_self_training_is_one_round_without_stored_labels() -> None:
    assert short(plan(SHARES, mutual=False, online=True)) == [
        ("00_baseline_A0", 0.0, "", "", ""),
        ("01_train_A1", 1.0, "00_baseline_A0", "", ""),
    ]


@pytest.mark.parametrize("mutual", [True, False])
def test_without_shares_there_is_only_the_baseline(mutual: bool) -> None:
    assert [s.model for s in plan([], mutual)] == (["A", "B"] if mutual else ["A"])


def test_the_papers_five_rounds() -> None:
    shares = [0.2, 0.4, 0.6, 0.8, 1.0]
    assert len(plan(shares, mutual=True)) == 2 + 5 * 4
    assert len(plan(shares, mutual=False)) == 1 + 5 * 2
    assert len({s.name for s in plan(shares, mutual=True)}) == 22
