"""A student takes what fits from its teacher, and nothing else changes."""

from __future__ import annotations

import torch
from torch import nn

from objectives.recommenders import dcn_v2, dlrm
from objectives.recommenders.transfer import start_from
from tests.recommenders_tests.mixed_fields import CODES, FIELDS, draw, lively, scores


def _pair(of_student: dcn_v2.Sizes, of_teacher: dcn_v2.Sizes) -> tuple[nn.Module, nn.Module]:
    teacher = lively(dcn_v2.DCNV2(FIELDS, of_teacher))
    torch.manual_seed(3)
    return dcn_v2.DCNV2(FIELDS, of_student), teacher


def test_tensors_of_one_name_and_shape_are_copied_and_named_and_the_rest_stays() -> None:
    student, teacher = _pair(dcn_v2.Sizes(6, 1, (20, 8)), dcn_v2.Sizes(6, 2, (20, 12)))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    names = start_from(student, teacher)
    layer = ("weight", "bias")
    norm = (*layer, "running_mean", "running_var", "num_batches_tracked")
    assert set(names) == {
        *(f"tables.{field.name}.weight" for field in CODES), *(f"cross.0.{n}" for n in layer), "head.bias",
        *(f"mlp.0.{n}" for n in layer), *(f"mlp.1.{n}" for n in norm), "mlp.5.num_batches_tracked",
    }  # fmt: skip
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, teacher.state_dict()[name] if name in names else before[name]), name


def test_a_student_of_the_teachers_sizes_scores_like_it_and_shares_no_memory() -> None:
    student, teacher = _pair(dcn_v2.Sizes(6, 2, (20, 12)), dcn_v2.Sizes(6, 2, (20, 12)))
    assert set(start_from(student, teacher)) == set(teacher.state_dict())
    inputs = draw(FIELDS, 30)
    expected = scores(teacher, inputs)
    assert (scores(student.eval(), inputs) == expected).all()
    with torch.no_grad():
        student.get_parameter("head.bias").add_(1.0)
    assert (scores(teacher, inputs) == expected).all()
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_a_narrower_student_takes_the_biases_and_towers_that_fit() -> None:
    teacher = dlrm.DLRM(FIELDS, dlrm.Sizes(6, (10, 8), (20, 12)))
    student = dlrm.DLRM(FIELDS, dlrm.Sizes(4, (10,), (20, 12)))
    assert set(start_from(student, teacher)) == {
        "bottom.0.weight", "bottom.0.bias", "top.0.bias", "top.3.weight", "top.3.bias", "head.weight", "head.bias",
    }  # fmt: skip


def test_nothing_fits_between_strangers() -> None:
    assert start_from(nn.Linear(2, 3), nn.Linear(4, 5)) == ()
