"""The teacher's weights against the closed form, its buffers and its mode."""

import copy

import pytest
import torch
from torch import nn

from semiseg.components.teacher import Teacher
from semiseg.networks import UNet


def network():
    torch.manual_seed(0)
    return UNet(1, 2, 2, widths=[4, 8], dropout=[0.5, 0.5])


def filled(module, value):
    module = copy.deepcopy(module)
    for tensor in [*module.parameters(), *module.buffers()]:
        nn.init.constant_(tensor, value)
    return module


@pytest.mark.parametrize("decay", [0.9, 0.99])
def test_after_n_steps_a_constant_student_has_left_1_minus_a_to_the_n(decay):
    teacher, student = Teacher(filled(network(), 0.0), decay), filled(network(), 3.0)
    late = 10_000  # where the decay no longer rises
    for n in range(1, 6):
        teacher.follow(student, late + n)
        for weight in teacher.network.parameters():
            torch.testing.assert_close(weight, torch.full_like(weight, 3 * (1 - decay**n)))


def test_the_first_steps_are_a_plain_mean_and_the_first_is_the_student():
    teacher = Teacher(filled(network(), 7.0))
    for step, value in enumerate([1.0, 2.0, 6.0]):
        teacher.follow(filled(network(), value), step)
        weight = next(teacher.network.parameters())
        torch.testing.assert_close(weight, torch.full_like(weight, [1.0, 1.5, 3.0][step]))


@pytest.mark.parametrize(("rule", "expected"), [("copy", 4.0), ("average", 0.4), ("own", 0.0)])
def test_buffers_follow_their_rule(rule, expected):
    teacher = Teacher(filled(network(), 0.0), decay=0.9, buffers=rule)
    teacher.follow(filled(network(), 4.0), 1000)
    for name, buffer in teacher.network.named_buffers():
        wanted = 4.0 if rule == "average" and "tracked" in name else expected
        torch.testing.assert_close(buffer.float(), torch.full_like(buffer, wanted, dtype=torch.float), msg=name)


def test_the_teacher_has_no_gradient_and_is_another_network():
    student = network()
    teacher = Teacher(student)
    assert not any(weight.requires_grad for weight in teacher.parameters())
    assert not teacher(torch.randn(1, 1, 8, 8)).requires_grad
    with torch.no_grad():
        next(student.parameters()).add_(1)
    assert not torch.equal(next(student.parameters()), next(teacher.network.parameters()))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_in_training_the_mode_is_the_one_asked_for(mode):
    around = nn.ModuleList([Teacher(network(), mode=mode)])
    assert around[0].network.training == (mode == "train"), "Lightning calls neither train() nor eval() at the start"
    around.train()
    assert around[0].network.training == (mode == "train")
    image = torch.randn(1, 1, 8, 8)
    assert torch.equal(around[0](image), around[0](image)) == (mode == "eval")
    around.eval()
    assert not around[0].network.training
