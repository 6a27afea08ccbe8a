"""Batch norm that trains: its running statistics come from the labelled images alone, in every method."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from sed.detectors import build_detector
from sed.methods.base import Schedule, statistics_kept
from sed.methods.build import build_method
from sed.options.methods import PseudoLabelOptions, SEDOptions, SEDPlusOptions
from tests.reference.detectors import SMALL_RCNN, make_labeled, make_unlabeled

SCHEDULE = Schedule(burn_in=2, max_iter=10, first_drop=8)
OPTIONS = {
    "sed": SEDOptions(regions_per_view=8),
    "sed_plus": SEDPlusOptions(threshold=0.0, regions_per_view=8),
    "pseudo_label": PseudoLabelOptions(threshold=0.0),
}


def statistics(model: nn.Module) -> list[torch.Tensor]:
    return [b.clone() for m in model.modules() if isinstance(m, nn.BatchNorm2d) for b in m.buffers()]


@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_has_the_running_statistics_of_its_labelled_images_alone(name: str) -> None:
    torch.manual_seed(0)
    detector = build_detector(dataclasses.replace(SMALL_RCNN, norm="BN"))
    baseline = copy.deepcopy(detector).train()
    before = statistics(detector)
    method = build_method(name, detector, SCHEDULE, OPTIONS[name]).train()
    losses = method(make_labeled(), make_unlabeled(), 5)
    assert any(not key.startswith("sup/") for key in losses)
    baseline.supervised_losses(make_labeled())
    after, expected = statistics(detector), statistics(baseline)
    assert all(torch.equal(a, b) for a, b in zip(after, expected, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert all(m.track_running_stats for m in detector.modules() if isinstance(m, nn.BatchNorm2d))


def test_batch_norm_still_normalises_by_the_batch() -> None:
    norm = nn.BatchNorm2d(3).train()
    values = torch.randn(4, 3, 5, 5) * 7 + 2
    expected = copy.deepcopy(norm)(values)
    with statistics_kept(norm):
        assert torch.equal(norm(values), expected)
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert norm.num_batches_tracked == 0


def test_eval_mode_and_errors_leave_the_model_as_it_was() -> None:
    """A model in eval mode, and a step that fails."""
    norm = nn.BatchNorm2d(3)
    norm.running_mean.fill_(1.5)
    values = torch.randn(4, 3, 5, 5)
    norm.eval()
    expected = norm(values)
    with statistics_kept(norm):
        assert torch.equal(norm(values), expected)
    with pytest.raises(RuntimeError, match="stop"), statistics_kept(norm):
        raise RuntimeError("stop")
    assert norm.track_running_stats
    untracked = nn.BatchNorm2d(3, track_running_stats=False)
    with statistics_kept(untracked):
        pass
    assert not untracked.track_running_stats
