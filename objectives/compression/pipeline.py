"""Order of a fit's stages, and the division of its epochs among them.

Tables change their form first, since pruning may reduce their parts; factors come last, for the remaining weights.
Every reduction comes before the final training, and quantization-aware training comes last, in the final shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import singledispatch
from itertools import groupby

from torch import Tensor, nn

from objectives.compression.attention import sparsify
from objectives.compression.embeddings import compress_tables
from objectives.compression.importance import Evidence
from objectives.compression.low_rank import factorize
from objectives.compression.pruning import prune
from spaces.model_structure import ModelStructure
from spaces.techniques.architecture import Architecture
from spaces.techniques.attention import Attention
from spaces.techniques.embeddings import TableForm
from spaces.techniques.low_rank import LowRank
from spaces.techniques.pruning import Pruning
from spaces.techniques.reshaping import Reshaping
from spaces.weights import Weights


def epochs_of(weights: Weights) -> tuple[int, int]:
    """Return the numbers of epochs of the last cycle: in the final shape, and quantization-aware.

    Each stage has at least one epoch, even where this exceeds the distillation's total. Only a slice of an elastic
    network may have none in its final shape.

    One epoch comes after each step of pruning but the last, in the first cycle; of the rest, a third are
    quantization-aware, where any group is.
    """
    assert weights.distillation is not None
    steps = weights.pruning.steps - 1 if weights.pruning is not None and weights.previous is None else 0
    left = weights.distillation.epochs - steps
    rounding = max(1, left // 3) if weights.quantization_aware else 0
    return max(0 if weights.elastic else 1, left - rounding), rounding


@dataclass(frozen=True)
class Means:
    """Inputs of techniques besides the model and its structure.

    counts: (rows,) lookups of each id, by the table's dotted name
    evidence: returns batches for the importance of units, called where they are needed
    between: trains in place between two steps of pruning
    """

    counts: Mapping[str, Tensor]
    evidence: Callable[[], Evidence] | None = None
    between: Callable[[nn.Module], object] | None = None


Reshaped = tuple[nn.Module, ModelStructure]


def reshape(model: nn.Module, structure: ModelStructure, techniques: Iterable[Reshaping], means: Means) -> Reshaped:
    """Apply the techniques in their order, and return a changed copy of the model with its structure.

    Forms of tables that follow each other are applied at once. Without techniques, the model itself is returned.

    Raises:
        ValueError: a technique cannot be applied, or would leave a group unchanged.
    """
    for are_forms, alike in groupby(techniques, key=lambda technique: isinstance(technique, TableForm)):
        if are_forms:
            forms = [form for form in alike if isinstance(form, TableForm)]
            model, structure = compress_tables(model, forms, structure, means.counts)
        else:
            for technique in alike:
                model, structure = _apply(technique, model, structure, means)
    return model, structure


@singledispatch
def _apply(technique: object, model: nn.Module, structure: ModelStructure, means: Means) -> Reshaped:
    """Apply one technique; each registers below for the type of its record."""
    raise TypeError(f"A technique is registered in {__name__}, but got {technique}.")


@_apply.register
def _(technique: Architecture, model: nn.Module, structure: ModelStructure, means: Means) -> Reshaped:
    return model, structure  # the student was built in its sizes


@_apply.register
def _(technique: Attention, model: nn.Module, structure: ModelStructure, means: Means) -> Reshaped:
    return sparsify(model, technique), structure


@_apply.register
def _(technique: Pruning, model: nn.Module, structure: ModelStructure, means: Means) -> Reshaped:
    batches = None if technique.importance == "magnitude" or means.evidence is None else means.evidence()
    return prune(model, technique, structure, batches, means.between)


@_apply.register
def _(technique: LowRank, model: nn.Module, structure: ModelStructure, means: Means) -> Reshaped:
    return factorize(model, technique, structure), structure
