"""A student takes what fits from its teacher, and nothing else changes."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from objectives.recommenders.families import dcn_v2
from objectives.recommenders.families.transfer import start_from
from tests.families_tests.mixed_fields import CODES, FIELDS, draw, lively, scores


def _pair(of_student: dcn_v2.Sizes, of_teacher: dcn_v2.Sizes) -> tuple[nn.Module, nn.Module]:
    teacher = lively(dcn_v2.DCNV2(FIELDS, of_teacher))
    torch.manual_seed(3)
    return dcn_v2.DCNV2(FIELDS, of_student), teacher


def test_units_at_even_distances_are_taken_and_what_the_teacher_has_not_stays() -> None:
    student, teacher = _pair(dcn_v2.Sizes(3, 3, (10, 16)), dcn_v2.Sizes(6, 2, (20, 12)))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    start_from(student, teacher)
    ours, theirs = student.state_dict(), teacher.state_dict()
    table = f"tables.{CODES[0].name}.weight"
    assert torch.equal(ours[table], theirs[table][:, ::2])
    assert torch.equal(ours["mlp.0.bias"], theirs["mlp.0.bias"][::2])
    assert torch.equal(ours["mlp.1.running_mean"], theirs["mlp.1.running_mean"][::2])
    kept = {name for name, tensor in ours.items() if torch.equal(tensor, before[name])}
    wider = {name for name in ours if name.startswith(("cross.2", "mlp.4"))}
    assert wider and wider <= kept, "a layer that the teacher has not, and one that is wider"


def test_a_narrower_product_is_that_of_the_units_that_are_taken() -> None:
    """Numpy is the oracle: each unit in the middle is met by the same of the next layer, at a fractional ratio too."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(5, 10), nn.ReLU(), nn.Linear(10, 3))
    student = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    start_from(student, teacher)
    first, bias, second, last = (p.detach().numpy() for p in teacher.parameters())
    x, kept = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32), [0, 2, 5, 7]
    expected = np.maximum(x @ first[kept].T + bias[kept], 0) @ second[:, kept].T + last
    np.testing.assert_allclose(student(torch.from_numpy(x)).detach().numpy(), expected, atol=1e-5)


def test_a_student_of_the_teachers_sizes_scores_like_it_and_shares_no_memory() -> None:
    student, teacher = _pair(dcn_v2.Sizes(6, 2, (20, 12)), dcn_v2.Sizes(6, 2, (20, 12)))
    start_from(student, teacher)
    inputs = draw(FIELDS, 30)
    expected = scores(teacher, inputs)
    assert (scores(student.eval(), inputs) == expected).all()
    with torch.no_grad():
        student.get_parameter("head.bias").add_(1.0)
    assert (scores(teacher, inputs) == expected).all()
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_whole_numbers_are_taken_as_they_are_or_not_at_all() -> None:
    """Every other position of a longer history would point beyond the rows of a shorter one's table."""

    def positioned(length: int) -> nn.Module:
        model = nn.Embedding(length, 3)
        model.register_buffer("positions", torch.arange(length))
        return model

    teacher, shorter, same = positioned(50), positioned(25), positioned(50)
    teacher.get_buffer("positions").add_(1)
    for student in (shorter, same):
        start_from(student, teacher)
    assert torch.equal(shorter.get_buffer("positions"), torch.arange(25))
    assert torch.equal(shorter.get_parameter("weight"), teacher.get_parameter("weight")[::2])
    assert torch.equal(same.get_buffer("positions"), teacher.get_buffer("positions"))


def test_nothing_fits_between_strangers() -> None:
    student = nn.Linear(4, 5)
    before = [p.clone() for p in student.parameters()]
    start_from(student, nn.Linear(2, 3))
    assert all(torch.equal(p, q) for p, q in zip(student.parameters(), before, strict=True))
