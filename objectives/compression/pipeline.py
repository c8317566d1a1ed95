"""Order of a fit's stages, and the division of its epochs among them.

Tables change their form first, since pruning may reduce their parts; factors come last, for the remaining weights.
Every reduction comes before the final training, and quantization-aware training comes last, in the final shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from objectives.compression.attention import sparsify
from objectives.compression.embeddings import compress_tables
from objectives.compression.importance import Evidence
from objectives.compression.low_rank import factorize
from objectives.compression.pruning import prune
from spaces.model_structure import ModelStructure
from spaces.weights import Weights


@dataclass(frozen=True)
class Epochs:
    """Numbers of epochs: after each step of pruning but the last, then in the final shape, then quantization-aware."""

    between: int
    plain: int
    rounding: int


def epochs_of(weights: Weights) -> Epochs:
    """Divide the distillation's epochs among the stages; each stage has at least one, which may exceed the total.

    One comes after each step of pruning but the last; of the rest, a third are quantization-aware, where any group is.
    """
    assert weights.distillation is not None
    steps = weights.pruning.steps - 1 if weights.pruning is not None else 0
    left = weights.distillation.epochs - steps
    rounding = max(1, left // 3) if weights.quantization_aware else 0
    return Epochs(1 if steps else 0, max(1, left - rounding), rounding)


def reshape(
    model: nn.Module,
    structure: ModelStructure,
    weights: Weights,
    counts: Mapping[str, Tensor],
    evidence: Callable[[], Evidence],
    between: Callable[[nn.Module], None],
) -> tuple[nn.Module, ModelStructure]:
    """Copy the model, the baseline's or a smaller sibling, in the requested shape, and return the copy with its
    structure.

    Args:
        counts: (rows,) lookups of each id, by the table's dotted name
        evidence: returns batches for the importance of units, called where they are needed
        between: trains in place between two steps of pruning

    Raises:
        ValueError: a stage cannot be done, or would leave a group unchanged.
    """
    if weights.table_forms:
        model, structure = compress_tables(model, weights.table_forms, structure, counts)
    if weights.attention is not None:
        model = sparsify(model, weights.attention)
    if weights.pruning is not None:
        needed = None if weights.pruning.importance == "magnitude" else evidence()
        model, structure = prune(model, weights.pruning, structure, needed, between)
    if weights.low_rank is not None:
        model = factorize(model, weights.low_rank, structure)
    return model, structure
