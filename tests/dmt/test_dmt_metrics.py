import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from dmt.metrics import ClassificationScore, confusion, mean_iou


# ---------------------------------------------------------------- check 19: mIoU
def test_mean_iou_of_a_matrix():
    mean, each = mean_iou(torch.tensor([[3, 1], [1, 5]]))
    assert mean.item() == pytest.approx(0.657143, abs=5e-7)
    assert each.tolist() == pytest.approx([3 / 5, 5 / 7])


def test_matrix_has_the_truth_in_its_rows_and_no_ignored_pixel():
    truth = torch.tensor([[0, 0, 1], [1, 255, 1]], dtype=torch.uint8)
    predicted = torch.tensor([[0, 1, 1], [0, 1, 1]])
    assert confusion(truth, predicted, 2).tolist() == [[1, 1], [1, 2]]
    predicted[1, 1] = 255  # of no meaning there
    assert confusion(truth, predicted, 2).sum() == 5


def test_a_class_that_nobody_names_is_not_in_the_mean():
    mean, each = mean_iou(torch.tensor([[3, 1, 0], [1, 5, 0], [0, 0, 0]]))
    assert mean.item() == pytest.approx(0.657143, abs=5e-7)
    assert math.isnan(each[2])


def test_a_class_that_is_only_predicted_counts_zero():
    mean, each = mean_iou(torch.tensor([[3, 1], [0, 0]]))
    assert each.tolist() == [0.75, 0.0]
    assert mean.item() == 0.375


def test_nothing_but_ignored_pixels():
    matrix = confusion(torch.full((4, 4), 255), torch.zeros(4, 4, dtype=torch.int64), 3)
    assert matrix.tolist() == [[0] * 3] * 3
    assert math.isnan(mean_iou(matrix)[0])


@pytest.mark.parametrize("seed", range(3))
def test_equals_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, 6, (3, 20, 20)), rng.integers(0, 5, (3, 20, 20))
    truth[truth == 5] = 255
    matrix = confusion(torch.from_numpy(truth), torch.from_numpy(predicted), 5)
    known = truth != 255
    assert matrix.tolist() == confusion_matrix(truth[known], predicted[known], labels=range(5)).tolist()
    expected = jaccard_score(truth[known], predicted[known], average=None)
    assert mean_iou(matrix)[1].tolist() == pytest.approx(expected.tolist())
    parts = [confusion(torch.from_numpy(t), torch.from_numpy(p), 5) for t, p in zip(truth, predicted, strict=True)]
    assert torch.equal(sum(parts), matrix)


def test_perfect_and_wholly_wrong():
    labels = torch.arange(6) % 3
    assert mean_iou(confusion(labels, labels, 3))[0] == 1.0
    assert mean_iou(confusion(labels, (labels + 1) % 3, 3))[0] == 0.0


def test_large_counts_do_not_round():
    count = 2**53 // 4 + 1
    mean, _ = mean_iou(torch.tensor([[count, count], [0, count]]))
    assert mean.item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("truth", "predicted"), [([0, 2], [0, 0]), ([0, 1], [0, 2]), ([0, 1], [0, 255]), ([0, 1], [0])]
)
def test_labels_that_are_no_class(truth, predicted):
    with pytest.raises(ValueError, match=r"of 2 classes|differ in shape"):
        confusion(torch.tensor(truth), torch.tensor(predicted), 2)


# ---------------------------------------------------------------- check 16: fine-grained accuracy
def test_fine_grained_accuracy():
    score = ClassificationScore()
    score.add(torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.2, 0.8]]), torch.tensor([0, 0, 1]))
    assert score.fine_grained == pytest.approx(0.5)
    assert score.accuracy == pytest.approx(2 / 3)
    assert (score.images, score.right) == (3, 2)


def test_batches_add_up_and_an_empty_one_adds_nothing():
    source = torch.Generator().manual_seed(0)
    probabilities = torch.randn(50, 4, generator=source).softmax(1)
    labels = torch.randint(0, 4, (50,), generator=source)
    whole, parts = ClassificationScore(), ClassificationScore()
    whole.add(probabilities, labels)
    for start in (0, 20, 50):
        parts.add(
            probabilities[start : start + 30][: 20 if start == 0 else None],
            labels[start : start + 30][: 20 if start == 0 else None],
        )
    assert (parts.images, parts.right) == (whole.images, whole.right)
    assert parts.confidence == pytest.approx(whole.confidence)
    assert whole.accuracy == pytest.approx(accuracy_score(labels, probabilities.argmax(1)))
    assert whole.fine_grained <= whole.accuracy


def test_sure_and_right_makes_both_alike():
    score = ClassificationScore()
    score.add(torch.eye(3), torch.tensor([0, 1, 0]))
    assert score.accuracy == score.fine_grained == pytest.approx(2 / 3)


def test_no_image_is_a_score_of_zero():
    assert ClassificationScore().accuracy == ClassificationScore().fine_grained == 0.0
