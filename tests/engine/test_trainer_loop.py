"""The loop with a tiny detector: resume, accumulation, guards, precision, evaluation, what is written."""

import json
import logging

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sed.engine import checkpoint
from sed.engine.logging import Reporter
from sed.engine.solver import Clip
from sed.runtime.checkpoint_files import checkpoint_path, checkpoints
from sed.runtime.guards import TrainingError
from tests.reference.training import TinyDetector, make_trainer, same


@pytest.fixture(autouse=True)
def log_to_caplog(monkeypatch):
    """setup_logging of another test may have cut the project's log off from pytest's."""
    monkeypatch.setattr(logging.getLogger("sed"), "propagate", True)


def final_state(folder, step):
    return checkpoint.read_full(checkpoint_path(folder, step))


def losses(folder):
    """All rows of metrics.jsonl but for the time that they took."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds_per_step"} for row in rows]


# ---------------------------------------------------------------------------------------------- resume
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, stop):
    """Dropout draws from the global generator, batch norm keeps statistics, and the window spans the break."""
    setting = {"detector": {"dropout": 0.5, "norm": "BN"}, "checkpoint_period": 1, "accumulate": 2}
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    whole.mkdir(), halves.mkdir()
    make_trainer(whole, **setting).train()

    # Runs to the end; what is beyond `stop` is taken away, except for the lines that a killed run had logged
    make_trainer(halves, **setting, checkpoints_kept=9).train()
    for step in range(stop + 1, 7):
        checkpoint_path(halves, step).unlink()
    kept = checkpoint_path(halves, stop)
    second = make_trainer(halves, **setting)
    torch.manual_seed(12345)  # the new process starts from other random numbers
    second.resume(kept)
    assert second.step == stop
    second.train()
    same(final_state(whole, 6), final_state(halves, 6))
    same(losses(whole), losses(halves))


def test_dropout_makes_the_random_state_matter(tmp_path):
    """The counter-test: without restoring the generators the runs differ."""
    setting = {"detector": {"dropout": 0.5}, "checkpoint_period": 3, "checkpoints_kept": 9}
    trainer = make_trainer(tmp_path, **setting)
    trainer.train()
    expected = trainer.method.state_dict()
    again = make_trainer(tmp_path, **setting)
    again.resume(checkpoint_path(tmp_path, 3))
    torch.manual_seed(7)
    again.train()
    assert any(not torch.equal(expected[name], value) for name, value in again.method.state_dict().items())


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    trainer = make_trainer(tmp_path, evaluate=lambda d: {"AP": 3.0})
    trainer.train()
    before = {name: value.clone() for name, value in trainer.method.state_dict().items()}
    again = make_trainer(tmp_path, evaluate=lambda d: {"AP": 3.0})
    again.resume(checkpoints(tmp_path)[-1])
    assert again.train().best["AP"] == 3.0
    same(dict(again.method.state_dict()), before)


# ---------------------------------------------------------------------------------------------- batches
def test_accumulation_equals_the_big_batch(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    big = make_trainer(tmp_path / "a", batch=8, max_iter=4)
    small = make_trainer(tmp_path / "b", batch=4, accumulate=2, max_iter=4)
    big.train(), small.train()
    for name, value in big.method.state_dict().items():
        torch.testing.assert_close(small.method.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    assert small.streams["labeled"].position == 8
    assert int(small.method.teacher.n_averaged) == int(big.method.teacher.n_averaged) == 4  # once a step


def test_the_unlabelled_stream_rests_during_burn_in(tmp_path):
    trainer = make_trainer(tmp_path, burn_in=4, max_iter=6)
    trainer.train()
    assert trainer.streams["labeled"].position == 6
    assert trainer.streams["unlabeled"].position == 2


# ---------------------------------------------------------------------------------------------- guards
@pytest.mark.parametrize("norm", ["GN", "BN"])
def test_a_non_finite_step_leaves_no_trace_and_is_counted(tmp_path, caplog, norm):
    trainer = make_trainer(tmp_path, max_iter=3, burn_in=9, detector={"norm": norm}, poison=(1,), checkpoint_period=1)
    states = []
    update = trainer.method.update_teacher
    trainer.method.update_teacher = lambda step: (update(step), states.append(step))
    before = None

    original = trainer._step

    def spy(batches):
        nonlocal before
        if trainer.step == 1:
            before = {k: v.clone() for k, v in trainer.method.state_dict().items()}
        good = original(batches)
        if trainer.step == 1:
            assert not good
            same(dict(trainer.method.state_dict()), before)
        return good

    trainer._step = spy
    with caplog.at_level(logging.WARNING):
        counters = trainer.train()
    assert (counters.skipped, counters.skipped_in_row) == (1, 0)
    assert states == [0, 2]  # the teacher waited
    assert "step 1: loss or gradient is not finite; step skipped (1 in all)" in caplog.text
    assert losses(tmp_path)[-1]["skipped"] == 1
    assert not checkpoint_path(tmp_path, 2).exists()  # not saved in the midst of a bad row
    assert all(torch.isfinite(v).all() for v in trainer.method.state_dict().values())


def test_a_row_of_them_stops_the_training_and_keeps_the_last_good_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path, max_iter=40, burn_in=99, poison=tuple(range(5, 40)), max_skipped=20)
    with pytest.raises(TrainingError, match=r"20 times in a row.*checkpoint_0000004.pth.*SOLVER.BASE_LR"):
        trainer.train()
    kept = checkpoints(tmp_path)
    assert kept[-1].name == "checkpoint_0000004.pth"
    state = checkpoint.read_full(kept[-1])["method"]
    assert all(torch.isfinite(value).all() for value in state.values())
    assert trainer.step == 24


def test_one_read_back_a_step(tmp_path):
    """The guard's; losses and metrics wait on the device until the window ends."""

    class Count(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.reads = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.reads += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    trainer = make_trainer(tmp_path, max_iter=9, burn_in=2, optimizer="SGD")
    batches = {name: iter(stream) for name, stream in trainer.streams.items()}
    trainer._step(batches)
    trainer.step = 5  # after burn-in
    with Count() as count:
        assert trainer._step(batches)
        trainer.method.update_teacher(5)
    assert count.reads == 1


def test_collapse_alarm_warns_once(tmp_path, caplog):
    trainer = make_trainer(tmp_path, max_iter=40, burn_in=4, log_period=5, collapse_steps=15)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    alarms = [r for r in caplog.records if "found next to nothing" in r.getMessage()]
    assert len(alarms) == 1
    assert "SEMI.BURN_IN" in alarms[0].getMessage()


@pytest.mark.parametrize("quiet", [{"collapse_steps": 0}, {"collapse_steps": 1000}])
def test_collapse_alarm_stays_silent(tmp_path, caplog, quiet):
    with caplog.at_level(logging.WARNING):
        make_trainer(tmp_path, max_iter=40, burn_in=4, log_period=5, **quiet).train()
    assert "found next to nothing" not in caplog.text


def test_collapse_count_starts_again_when_something_is_found():
    from sed.runtime.guards import Counters, watch_collapse

    counters = Counters()
    for positives in (0.0, 0.0, 0.5, 0.4, 0.0):  # an object in three steps is as good as none
        watch_collapse(counters, {"teacher_positives": positives}, 0, 20, 60)
    assert counters.silent == 40
    assert not counters.warned
    watch_collapse(counters, {}, 0, 20, 60)  # a burn-in window says nothing
    assert counters.silent == 40


# ---------------------------------------------------------------------------------------------- precision
@pytest.mark.parametrize(
    ("amp", "dtype"), [("", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_mixed_precision_is_really_on(tmp_path, amp, dtype):
    trainer = make_trainer(tmp_path, max_iter=3, amp=amp)
    seen = set()
    trainer.method.student.model["head"].register_forward_hook(lambda m, i, out: seen.add(out.dtype))
    trainer.train()
    assert seen == {dtype}
    assert all(p.dtype == torch.float32 for p in trainer.method.parameters())
    if amp == "float16":  # loss scaling starts high and may step down
        assert trainer.precision.scaler.get_scale() == 65536 / 2**trainer.counters.skipped
    else:
        assert trainer.counters.skipped == 0
        assert not trainer.precision.scaler.is_enabled()


def test_loss_scaling_leaves_the_true_gradient_norm(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    make_trainer(tmp_path / "a", max_iter=1, clip=Clip()).train()
    trainer = make_trainer(tmp_path / "b", max_iter=1, clip=Clip(), amp="float16")
    trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer.train()
    exact, scaled = (losses(tmp_path / name)[-1]["grad_norm"] for name in "ab")
    assert scaled == pytest.approx(exact, rel=0.02)


# ---------------------------------------------------------------------------------------------- evaluation
@pytest.mark.parametrize("eval_period", [3, 6])
def test_an_evaluation_that_fails_loses_no_step(tmp_path, eval_period):
    setting, seen = {"max_iter": 6, "burn_in": 2, "eval_period": eval_period}, []
    with pytest.raises(ZeroDivisionError):
        make_trainer(tmp_path, evaluate=lambda d: {"AP": 1 / 0}, **setting).train()
    for _ in range(2):
        again = make_trainer(tmp_path, evaluate=lambda d: seen.append(d) or {"AP": 1.0}, **setting)
        again.resume(checkpoints(tmp_path)[-1]), again.train()
    assert len(seen) == (4 if eval_period == 3 else 2)  # student and teacher; nothing is owed the second time


def test_best_teacher_is_kept_and_both_are_evaluated(tmp_path):
    aps, seen = iter([5.0, 9.0, 10.0, 11.0, 7.0]), []

    def evaluate(detector):
        seen.append(detector)
        torch.rand(7)  # an evaluation that draws random numbers must not change the training
        return {"AP": next(aps), "AP50": 1.0}

    weights = {}
    trainer = make_trainer(tmp_path, max_iter=6, burn_in=2, eval_period=2, evaluate=evaluate)
    update = trainer.method.update_teacher

    def remember(step):
        update(step)
        weights[step + 1] = {k: v.clone() for k, v in trainer.method.teacher.module.plain_state_dict().items()}

    trainer.method.update_teacher = remember
    counters = trainer.train()
    student, teacher = trainer.method.student, trainer.method.teacher.module
    # at step 2 the teacher is a copy of the student: evaluated once
    assert [d is student for d in seen] == [True, True, False, True, False]
    assert seen[2] is teacher
    assert (counters.best_step, counters.best["AP"]) == (4, 10.0)
    same(dict(torch.load(tmp_path / "model_best.pth", weights_only=True)), dict(weights[4]))
    rows = [row for row in losses(tmp_path) if "teacher/AP" in row]
    assert [(r["step"], r["student/AP"], r["teacher/AP"]) for r in rows] == [(2, 5, 5), (4, 9, 10), (6, 11, 7)]
    assert counters.last == {"student": {"AP": 11.0, "AP50": 1.0}, "teacher": {"AP": 7.0, "AP50": 1.0}}


def test_evaluation_leaves_the_training_untouched(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()

    def evaluate(detector):
        torch.rand(7)
        return {"AP": 1.0}

    setting = {"detector": {"dropout": 0.5}, "eval_period": 1}
    with_it = make_trainer(tmp_path / "a", evaluate=evaluate, **setting)
    with_it.train()
    without = make_trainer(tmp_path / "b", **setting)  # seeds again
    without.train()
    same(dict(with_it.method.state_dict()), dict(without.method.state_dict()))


# ---------------------------------------------------------------------------------------------- files
def test_logged_losses_are_means_over_the_window(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    make_trainer(tmp_path / "a", max_iter=4, log_period=1).train()
    make_trainer(tmp_path / "b", max_iter=4, log_period=4).train()
    each, mean = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert [row["step"] for row in each] == [1, 2, 3, 4]
    assert [row["step"] for row in mean] == [4]
    for name in ("loss", "sup/dense_cls", "grad_norm"):
        assert mean[0][name] == pytest.approx(sum(row[name] for row in each) / 4)
    late = [row["distill/dense_cls"] for row in each if "distill/dense_cls" in row]
    assert mean[0]["distill/dense_cls"] == pytest.approx(sum(late) / len(late))  # over the steps that had it


def test_learning_rate_is_logged_and_applied(tmp_path):
    make_trainer(tmp_path, max_iter=3, log_period=1).train()
    assert [row["lr"] for row in losses(tmp_path)] == pytest.approx([0.005, 0.0075, 0.01])


def test_tensorboard_events_are_written(tmp_path):
    make_trainer(tmp_path, max_iter=2).train()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Scalars("loss")[-1].step == 2


def test_only_the_last_checkpoints_are_kept(tmp_path):
    make_trainer(tmp_path, max_iter=7, checkpoint_period=1, checkpoints_kept=3).train()
    assert [p.name for p in checkpoints(tmp_path)] == [f"checkpoint_000000{s}.pth" for s in (5, 6, 7)]


def test_wrong_architecture_is_one_clear_error(tmp_path):
    make_trainer(tmp_path, max_iter=2).train()
    path = checkpoints(tmp_path)[-1]
    other = make_trainer(tmp_path, detector={"channels": 6})
    with pytest.raises(
        checkpoint.CheckpointError, match=r"checkpoint_0000002.*backbone.0.weight is \(4, 3, 3, 3\) there"
    ):
        other.resume(path)
    with pytest.raises(checkpoint.CheckpointError, match="its optimizer is AdamW, here it is SGD"):
        make_trainer(tmp_path, optimizer="SGD").resume(path)


def test_the_time_of_a_step_leaves_evaluations_out(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("sed.engine.logging.time.monotonic", lambda: clock[0])
    reporter = Reporter(tmp_path, start=0, max_iter=5)

    def steps(*seconds):
        for passed in seconds:
            clock[0] += passed
            reporter.step()

    steps(2.0, 4.0)
    reporter.write(2, {"loss": 1.0})
    steps(1.0)
    clock[0] += 50.0  # an evaluation
    reporter.write(3, {"teacher/AP": 1.0})
    reporter.write(3, {"loss": 1.0})
    steps(5.0, 6.0)
    reporter.write(5, {"loss": 1.0})
    reporter.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("seconds_per_step") for row in rows] == [3.0, 1.0, None, 5.5]


def test_clip_is_called_with_all_gradients(tmp_path):
    trainer = make_trainer(tmp_path, max_iter=1, optimizer="SGD", clip=Clip("full_model", 1e-3))
    before = [p.clone() for p in trainer._parameters]
    trainer.train()
    moved = torch.stack([(a - b).norm() for a, b in zip(before, trainer._parameters, strict=True)]).norm()
    assert 0 < moved < 0.005 * (1e-3 + 0.01 * 10)  # lr x (clipped gradient + weight decay)
    assert isinstance(trainer.method.student, TinyDetector)
