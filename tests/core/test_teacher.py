import copy

import pytest
import torch
from torch import nn

from sed.core.teacher import Teacher
from tests.reference.equations import average


def network(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).to(dtype)


def moved(student, seed=1):
    """The student after some training: other weights, other running statistics, other counters."""
    torch.manual_seed(seed)
    student.train()(torch.randn(4, 3, 8, 8, dtype=student[0].weight.dtype))
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(torch.randn_like(weight))
    return student


@pytest.mark.parametrize("rate", [0.99, 0.9, 0.3, 1.0])
def test_weights_and_float_buffers_are_averaged_and_counters_copied(rate):
    student = network(dtype=torch.float64)
    teacher = Teacher(student)
    for seed in (1, 2):
        before = {name: value.clone() for name, value in teacher.module.state_dict().items()}
        moved(student, seed)
        expected = average(before, student.state_dict(), rate)
        teacher.update(student, rate)
        for name, value in teacher.module.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-14)
    assert int(teacher.module[1].num_batches_tracked) == 2
    if rate < 1:
        assert not torch.equal(teacher.module[1].running_mean, torch.zeros(4, dtype=torch.float64))


def test_rate_0_is_an_exact_copy_even_of_a_ruined_teacher():
    student = network()
    teacher = Teacher(student)
    with torch.no_grad():
        teacher.module[0].weight.fill_(float("nan"))
    teacher.update(moved(student), 0.0)
    for own, other in zip(teacher.module.state_dict().values(), student.state_dict().values(), strict=True):
        assert torch.equal(own, other)


def test_the_student_is_copied_and_never_shared():
    student = network()
    teacher = Teacher(student)
    before = teacher.checksum()
    moved(student)
    assert teacher.checksum() == before
    assert student[0].weight.requires_grad
    teacher.update(student, 0.0)
    assert {p.data_ptr() for p in teacher.parameters()}.isdisjoint(p.data_ptr() for p in student.parameters())


def test_it_stays_in_eval_mode_and_out_of_the_gradient():
    student = network()
    teacher = Teacher(student)
    holder = nn.ModuleList([student, teacher])
    holder.train()
    assert student.training
    assert student[1].training
    assert not teacher.training
    assert not any(module.training for module in teacher.modules())
    assert not any(weight.requires_grad for weight in teacher.parameters())
    assert not teacher(torch.randn(1, 3, 8, 8)).requires_grad


def test_an_eval_student_is_left_in_its_mode():
    student = network().train()
    Teacher(student).update(student, 0.5)
    assert student.training


def test_update_allocates_no_weights():
    student = network()
    teacher = Teacher(student)
    places = [tensor.data_ptr() for tensor in teacher.state_dict().values()]
    teacher.update(moved(student), 0.9)
    teacher.update(student, 0.0)
    assert places == [tensor.data_ptr() for tensor in teacher.state_dict().values()]


def test_state_dict_round_trip_continues_exactly():
    student = network()
    teacher = Teacher(student)
    teacher.update(moved(student), 0.9)
    saved, weights = copy.deepcopy(teacher.state_dict()), copy.deepcopy(student.state_dict())
    teacher.update(moved(student, 5), 0.9)

    other_student = network(7)
    other = Teacher(other_student)
    other.load_state_dict(saved)
    other_student.load_state_dict(weights)
    other.update(moved(other_student, 5), 0.9)
    assert other.checksum() == teacher.checksum()
    assert int(other.n_averaged) == int(teacher.n_averaged) == 2


def test_checksum_sees_every_weight_and_buffer():
    student = network()
    teacher = Teacher(student)
    seen = {teacher.checksum()}
    for tensor in [*teacher.module.parameters(), *teacher.module.buffers()]:
        with torch.no_grad():
            tensor.add_(1)
        seen.add(teacher.checksum())
    assert len(seen) == 1 + len(list(teacher.module.state_dict()))
    assert Teacher(student).checksum() == Teacher(copy.deepcopy(student)).checksum()


def test_bad_input_is_refused():
    student = network()
    teacher = Teacher(student)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        teacher.update(student, 1.1)
    with pytest.raises(ValueError, match="tensors"):
        teacher.update(nn.Conv2d(3, 4, 3), 0.9)
    with pytest.raises(ValueError, match=r"0\.weight.*float32"):
        Teacher(network().half())
    with pytest.raises(TypeError, match="update"):
        teacher.update_parameters(student)


@pytest.mark.parametrize("rate", [0.0, 0.9])
def test_update_does_not_wait_for_the_device(rate):
    """Tensors on "meta" have no values: code that reads one back fails."""
    student = network().to("meta")
    Teacher(student).update(student, rate)
    with pytest.raises((NotImplementedError, RuntimeError)):
        Teacher(student).checksum()
