import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.distributed as dist

from dmt.curriculum import (
    CODES,
    HIGHEST,
    LOWEST,
    NOTHING,
    Ranking,
    code_of,
    confidence_of,
    least_confidence_of,
    predict,
    thresholded,
)
from tests.reference import dmt_curriculum as literal

A, B = [0.5, 0.6, 0.7, 0.8, 0.9], [0.4, 0.55, 0.95]  # check 9


def codes(confidences):
    return code_of(torch.tensor(confidences, dtype=torch.float64).logit()).numpy()


def ranking_of(*classes):
    ranking = Ranking(len(classes))
    for label, confidences in enumerate(classes):
        ranking.add(np.full(len(confidences), label, np.uint8), codes(confidences))
    return ranking


def kept(ranking, share, **options):
    return ranking.kept(ranking.thresholds(share, **options)).tolist()


# ---------------------------------------------------------------- codes
def test_codes_rise_with_the_confidence_and_keep_its_log_odds():
    log_odds = torch.linspace(LOWEST, HIGHEST, 200_001, dtype=torch.float64)
    found = code_of(log_odds)
    assert found.dtype == torch.uint16
    assert found[[0, -1]].tolist() == [0, CODES - 1]
    assert found.long().diff().min() >= 0
    back = found.double() * (HIGHEST - LOWEST) / (CODES - 1) + LOWEST
    assert (back - log_odds).abs().max() <= (HIGHEST - LOWEST) / (CODES - 1) / 2 + 1e-9
    assert len(found.long().unique()) == CODES


def test_confidences_survive_to_a_ten_thousandth():
    confidences = torch.tensor([0.01, 0.1, 0.5, 0.9, 0.99, 0.9999], dtype=torch.float64)
    found = confidence_of(code_of(confidences.logit()))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, confidences.float(), atol=6e-5, rtol=0)


def test_saturated_confidences_are_told_apart_where_float32_is_1():
    left = torch.tensor([1.1e-9, 1e-9, 0.9e-9], dtype=torch.float64)
    assert ((1 - left).float() == 1.0).all()
    assert code_of((1 - left).logit()).long().diff().min() > 0


def test_beyond_the_range_are_the_first_and_the_last_code():
    assert code_of(torch.tensor([-math.inf, -7.0, 23.0, math.inf])).tolist() == [0, 0, CODES - 1, CODES - 1]


def test_confidence_of_arrays_and_of_any_integer_type():
    expected = confidence_of(torch.tensor([0, 40000, 65535]))
    assert 0 < expected[0] < expected[1] < expected[2] <= 1
    assert torch.equal(confidence_of(np.array([0, 40000, 65535], np.uint16)), expected)
    assert torch.equal(confidence_of(torch.tensor([0, 40000, 65535], dtype=torch.int32)), expected)


# ---------------------------------------------------------------- labels
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (6, 4)])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_prediction_equals_exact_sums(shape, scale):
    logits = scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    labels, found = predict(logits)
    assert labels.dtype == torch.uint8
    assert found.dtype == torch.uint16
    assert labels.shape == found.shape == (shape[0], *shape[2:])
    assert torch.equal(labels.long(), logits.argmax(1))
    rows = logits.movedim(1, -1).reshape(-1, shape[1]).tolist()
    for row, label, code in zip(rows, labels.flatten().tolist(), found.flatten().tolist(), strict=True):
        step = (HIGHEST - LOWEST) / (CODES - 1)
        assert abs(code * step + LOWEST - min(literal.log_odds(row, label), HIGHEST)) <= step


def test_log_odds_do_not_cancel():
    found = predict(torch.tensor([[20.0, 0.0], [20.5, 0.0], [0.0, 21.0]]))[1].long()
    assert found.diff().min() > 0  # 1 - softmax would be 0 in all


@pytest.mark.parametrize("bad", [[math.nan, 0.0], [math.inf, math.inf]])
def test_a_diverged_network_is_named(bad):
    with pytest.raises(ValueError, match="diverged"):
        predict(torch.tensor([[1.0, 0.0], bad]))


def test_prediction_of_nothing():
    labels, found = predict(torch.zeros(0, 3, 4, 4))
    assert labels.shape == found.shape == (0, 4, 4)


def test_half_precision_and_float64_agree():
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).half()
    for one, two in zip(predict(logits), predict(logits.double()), strict=True):
        assert (one.long() - two.long()).abs().max() <= 1


# ---------------------------------------------------------------- check 10: CBST's re-normalised labels
def test_renormalised_label_of_check_10():
    logits = torch.tensor([[0.6, 0.4]]).log()
    k = torch.tensor([0.61, 0.39])
    labels, found = predict(logits, k)
    assert labels.tolist() == [1]
    assert confidence_of(found).item() == pytest.approx(0.4, abs=1e-4)
    direct, code = predict(logits)
    assert thresholded(direct.numpy(), code.numpy(), codes([0.61, 0.39])).tolist() == [255]


def test_renormalised_labels_equal_the_literal_form():
    logits = 2 * torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(1))
    k = torch.tensor([0.8, 0.5, 0.3])
    labels, found = predict(logits, k)
    rows = logits.double().softmax(1).movedim(1, -1).reshape(-1, 3)
    assert labels.flatten().tolist() == [literal.renormalised(row, k.double().tolist()) for row in rows.tolist()]
    assert set(labels.unique().tolist()) == {0, 1, 2, 255}
    some = (labels != 255) & (labels != logits.argmax(1))
    assert some.any()  # re-normalising changes labels
    chosen = rows.reshape(2, 6, 7, 3).gather(3, labels.long().clamp(max=2)[..., None])[..., 0]
    torch.testing.assert_close(confidence_of(found)[some], chosen[some].float(), atol=1e-4, rtol=0)


def test_equal_thresholds_change_no_label():
    logits = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(2))
    labels, found = predict(logits, torch.full((3,), 1e-4))
    plain = predict(logits)
    assert torch.equal(labels, plain[0])
    assert torch.equal(found.long(), plain[1].long())


def test_thresholds_as_probabilities_keep_what_the_codes_keep():
    logits = 12 * torch.randn(2, 2, 30, 30, generator=torch.Generator().manual_seed(3))  # p is 1 in float32
    labels, found = predict(logits)
    ranking = Ranking(2)
    ranking.add(labels, found)
    thresholds = np.array([ranking.thresholds(0.3)[0]] * 2)  # equal: no label can change
    assert confidence_of(thresholds[0]) == 1.0
    kept_by_code = thresholded(labels.numpy(), found.numpy(), thresholds)
    assert 0 < (kept_by_code != 255).mean() < 1
    assert np.array_equal(predict(logits, least_confidence_of(thresholds))[0].numpy(), kept_by_code)


def test_least_confidences():
    k = least_confidence_of(np.array([0, 40000, 65535, NOTHING]))
    assert k[0] == 1e-4
    assert code_of(k[1:3].logit() + 1e-5).tolist() == [40000, 65535]
    assert code_of(k[1:3].logit() - 1e-5).tolist() == [39999, 65534]
    assert k[3] == math.inf
    assert predict(torch.tensor([[0.0, 30.0]]), torch.tensor([0.9, math.inf]))[0].tolist() == [255]


# ---------------------------------------------------------------- check 9: shares of classes
@pytest.mark.parametrize(
    ("share", "theirs", "exact"),
    [
        (0.2, [2, 3], [1, 1]),
        (0.4, [3, 2], [2, 1]),
        (0.6, [4, 2], [3, 1]),
        (0.8, [5, 3], [4, 2]),
        (1.0, [5, 3], [5, 3]),
    ],
)
def test_kept_of_two_classes(share, theirs, exact):
    ranking = ranking_of(A, B)
    assert kept(ranking, share, rule="authors") == theirs
    assert kept(ranking, share) == exact
    assert [literal.authors_of_class(values, share) for values in (A, B)] == theirs


def test_thresholds_of_the_authors_at_share_04():
    found = ranking_of(A, B).thresholds(0.4, rule="authors")
    torch.testing.assert_close(confidence_of(found), torch.tensor([0.7, 0.55]), atol=1e-4, rtol=0)


# ---------------------------------------------------------------- check 11: one ranking over all classes
def test_kept_of_a_hundred_images():
    ranking = ranking_of([i / 100 for i in range(1, 100, 2)], [min(i / 100, 0.9999) for i in range(2, 101, 2)])
    found = ranking.thresholds(0.2, class_balanced=False, rule="authors")
    torch.testing.assert_close(confidence_of(found - 1), torch.full((2,), 0.82), atol=1e-4, rtol=0)  # strictly above
    assert sum(kept(ranking, 0.2, class_balanced=False, rule="authors")) == 18
    assert kept(ranking, 0.2, class_balanced=False) == [10, 10]
    for rule in ("exact", "authors"):
        assert sum(kept(ranking, 1.0, class_balanced=False, rule=rule)) == 100


def test_kept_of_ten_images():
    ranking = ranking_of([i / 11 for i in range(1, 11)])
    assert kept(ranking, 0.2, class_balanced=False, rule="authors") == [0]
    assert [kept(ranking, share, class_balanced=False) for share in (0.2, 0.24, 0.26)] == [[2], [2], [3]]


# ---------------------------------------------------------------- against sorting, with ties
def random_classes(seed):
    rng = np.random.default_rng(seed)
    return [(rng.integers(2, 30, size) / 31).tolist() for size in (1, 2, 7, 40, 333)]  # many ties


@pytest.mark.parametrize("share", [0.001, 0.01, 0.2, 0.35, 0.4, 0.6, 0.7, 0.8, 0.999, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_kept_equals_sorting(share, seed):
    classes = random_classes(seed)
    ranking, every = ranking_of(*classes), [value for values in classes for value in values]
    exact = Fraction(str(share))
    assert kept(ranking, share) == [literal.exact(values, exact) for values in classes]
    assert kept(ranking, share, rule="authors") == [literal.authors_of_class(values, share) for values in classes]
    total = sum(kept(ranking, share, class_balanced=False, rule="authors"))
    assert total == literal.authors_of_all(every, share)
    rounded = Fraction(math.floor(exact * len(every) + Fraction(1, 2)), len(every))
    assert sum(kept(ranking, share, class_balanced=False)) == literal.exact(every, rounded)


def test_float_shares_are_not_rounded_down():
    assert 0.57 * 100 < 57  # in floating point
    assert kept(ranking_of([i / 101 for i in range(1, 101)]), 0.57) == [57]


@pytest.mark.parametrize("class_balanced", [True, False])
def test_kept_labels_only_grow_with_the_share(class_balanced):
    ranking = ranking_of(*random_classes(5))
    found = [ranking.thresholds(share, class_balanced) for share in np.arange(0.01, 1.01, 0.01)]
    assert all((later <= earlier).all() for earlier, later in pairwise(found))
    assert (found[0] > found[-1]).all()


def test_a_class_without_pixels_keeps_nothing_and_raises_nothing():
    ranking = ranking_of(A, [])
    assert ranking.thresholds(0.4)[1] == ranking.thresholds(0.4, rule="authors")[1] == NOTHING
    for share in (0.4, 1.0):
        for rule in ("exact", "authors"):
            assert kept(ranking, share, rule=rule)[1] == 0
    for options in ({}, {"class_balanced": False}, {"class_balanced": False, "rule": "authors"}):
        assert kept(Ranking(3), 0.4, **options) == [0, 0, 0]
    labels = np.array([0, 1], np.uint8)
    assert thresholded(labels, np.array([65535, 65535]), np.array([0, NOTHING])).tolist() == [0, 255]


def test_wrong_shares_and_rules_are_named():
    for share, rule in ((0.0, "exact"), (-1.0, "exact"), (0.2, "theirs")):
        with pytest.raises(ValueError, match="expected share > 0 and a rule"):
            Ranking(2).thresholds(share, rule=rule)


# ---------------------------------------------------------------- streaming
def test_batches_and_parts_count_as_the_whole():
    rng = np.random.default_rng(0)
    labels, found = rng.integers(0, 3, (6, 9, 9)).astype(np.uint8), rng.integers(0, CODES, (6, 9, 9)).astype(np.uint16)
    labels[rng.random(labels.shape) < 0.3] = 255
    whole, parts = Ranking(3), Ranking(3)
    whole.add(labels, found)
    for one, two in zip(labels, found, strict=True):
        parts.add(torch.from_numpy(one), torch.from_numpy(two))
    assert torch.equal(whole.histogram, parts.histogram)
    assert whole.counts.tolist() == [(labels == c).sum() for c in range(3)]
    assert whole.histogram.shape == (3, CODES)  # whatever was added


def test_all_ignored_and_empty_input_count_nothing():
    ranking = Ranking(2)
    ranking.add(np.full((3, 3), 255, np.uint8), np.zeros((3, 3), np.uint16))
    ranking.add(np.zeros((0,), np.uint8), np.zeros((0,), np.uint16))
    assert ranking.counts.tolist() == [0, 0]


def test_wrong_labels_and_shapes_are_named():
    with pytest.raises(ValueError, match="labels 0 to 2 of 2 classes"):
        Ranking(2).add(np.array([0, 2]), np.array([5, 5]))
    with pytest.raises(ValueError, match="differ in shape"):
        Ranking(2).add(np.array([0, 1]), np.array([5]))


def test_merging_alone_changes_nothing_and_happens_once():
    ranking = ranking_of(A, B)
    before = ranking.histogram.clone()
    ranking.merge()
    assert torch.equal(ranking.histogram, before)
    with pytest.raises(ValueError, match="merged twice"):
        ranking.merge()
    with pytest.raises(ValueError, match="merged over processes already"):
        ranking.add(np.array([0]), np.array([5]))


def merge_in_process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    ranking = ranking_of(A, []) if rank else ranking_of([], B)
    ranking.merge()
    torch.save(ranking.histogram, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_merge_to_the_whole(tmp_path):
    torch.multiprocessing.spawn(merge_in_process, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pth"), ranking_of(A, B).histogram)


# ---------------------------------------------------------------- applying thresholds
def test_thresholds_by_the_class_of_the_label():
    labels = np.array([[0, 1, 255], [1, 0, 1]], np.uint8)
    found = np.array([[10, 10, 65535], [20, 9, 19]], np.uint16)
    result = thresholded(labels, found, np.array([10, 20]))
    assert result.dtype == np.uint8
    assert result.tolist() == [[0, 255, 255], [1, 255, 255]]
    assert labels[0, 1] == 1  # the input is as it was
    assert np.array_equal(thresholded(labels, found, np.array([0, 0])), labels)


def test_as_many_labels_are_left_as_the_ranking_says():
    logits = 3 * torch.randn(4, 5, 20, 20, generator=torch.Generator().manual_seed(4))
    labels, found = (value.numpy() for value in predict(logits))
    ranking = Ranking(5)
    ranking.add(labels, found)
    thresholds = ranking.thresholds(0.4)
    left = thresholded(labels, found, thresholds)
    assert [(left == c).sum() for c in range(5)] == ranking.kept(thresholds).tolist()
    wanted = [math.floor(0.4 * (labels == c).sum()) for c in range(5)]
    assert all(0 <= kept - least <= 3 for kept, least in zip(ranking.kept(thresholds), wanted, strict=True))  # ties
