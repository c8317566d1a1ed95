"""Order of a fit's stages, and the division of its epochs among them.

Tables change their form first, since pruning may reduce their parts; factors come last, for the remaining weights.
Every reduction comes before the final training, and quantization-aware training comes last, in the final shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
    """Return the numbers of epochs in the final shape, and quantization-aware; each stage has at least one, which may
    exceed the distillation's total.

    One epoch comes after each step of pruning but the last; of the rest, a third are quantization-aware, where any
    group is.
    """
    assert weights.distillation is not None
    steps = weights.pruning.steps - 1 if weights.pruning is not None else 0
    left = weights.distillation.epochs - steps
    rounding = max(1, left // 3) if weights.quantization_aware else 0
    return max(1, left - rounding), rounding


def reshape(
    model: nn.Module,
    structure: ModelStructure,
    techniques: Iterable[Reshaping],
    counts: Mapping[str, Tensor],
    evidence: Callable[[], Evidence] | None = None,
    between: Callable[[nn.Module], None] | None = None,
) -> tuple[nn.Module, ModelStructure]:
    """Apply the techniques in their order, forms of tables that follow each other at once, and return a changed copy of
    the model with its structure; without any, the model itself.

    Args:
        counts: (rows,) lookups of each id, by the table's dotted name
        evidence: returns batches for the importance of units, called where they are needed
        between: trains in place between two steps of pruning

    Raises:
        ValueError: a technique cannot be applied, or would leave a group unchanged.
    """
    for _, alike in groupby(
        techniques, key=lambda technique: TableForm if isinstance(technique, TableForm) else id(technique)
    ):
        match list(alike):
            case [Architecture()]:
                pass  # the student was built in its sizes
            case [TableForm(), *_] as listed:
                forms = [form for form in listed if isinstance(form, TableForm)]
                model, structure = compress_tables(model, forms, structure, counts)
            case [Attention() as attention]:
                model = sparsify(model, attention)
            case [Pruning() as pruning]:
                batches = None if pruning.importance == "magnitude" or evidence is None else evidence()
                model, structure = prune(model, pruning, structure, batches, between)
            case [LowRank() as low_rank]:
                model = factorize(model, low_rank, structure)
            case unknown:
                raise TypeError(f"A technique is one that `reshape` applies, but got {unknown}.")
    return model, structure
