"""Structure of a recommender's model, or of a sibling of it, traced on a few rows of requests."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from objectives.compression.module_edit import recounted
from objectives.compression.program_key import ProgramKey, program_key
from objectives.compression.structure import Traced, trace
from objectives.recommenders.protocol import Recommender
from spaces.model_structure import ModelStructure
from spaces.techniques.architecture import Architecture

_ROWS = 7
# Siblings whose structure stays in memory.
_MOST = 64


# A builder serves one study, so the structure of one model stays in memory, those of its siblings by their sizes, and
# their groups by their programs.
_known: dict[str, Traced] = {}
_siblings: dict[tuple[str, Architecture], Traced] = {}
_groups: dict[tuple[str, ProgramKey], ModelStructure] = {}


def of_baseline(recommender: Recommender) -> Traced:
    """Return the structure of the recommender's own model, which never changes.

    Raises:
        TraceError: the model's forward cannot be traced.
    """
    if recommender.key not in _known:
        _known.clear()
        _known[recommender.key] = of_sibling(recommender, recommender.model)
    return _known[recommender.key]


def of_student(recommender: Recommender, student: nn.Module, architecture: Architecture) -> Traced:
    """Return the structure of a student, which is traced once for all that have its sizes.

    Raises:
        TraceError: the model's forward cannot be traced.
    """
    key = recommender.key, architecture
    if key not in _siblings:
        while len(_siblings) >= _MOST:
            del _siblings[next(iter(_siblings))]
        _siblings[key] = of_sibling(recommender, student)
    return _siblings[key]


def groups_of_student(recommender: Recommender, student: nn.Module, architecture: Architecture) -> ModelStructure:
    """Return the structure of a student that is not pruned.

    It has no prunable dimensions. Since these alone depend on sizes, one structure is traced for all students of a
    program.

    Raises:
        TraceError: the model's forward cannot be traced.
    """
    program = program_key(student)
    known = None if program is None else _groups.get((recommender.key, program))
    if known is None:
        structure = of_student(recommender, student, architecture).structure
        groups = (replace(group, dims=(), unprunable_reason="it is not pruned") for group in structure.groups)
        known = replace(structure, groups=tuple(groups))
        if program is not None:
            _groups[recommender.key, program] = known
    return recounted(known, student)


def of_sibling(recommender: Recommender, model: nn.Module) -> Traced:
    """Return the structure of any model that takes the same inputs.

    Raises:
        TraceError: the model's forward cannot be traced.
    """
    rows = recommender.serving_rows(_ROWS)
    return trace(model, {n: values[:1] if n in recommender.once else values for n, values in rows.items()})
