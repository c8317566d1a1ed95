"""In which order the stages of a fit run, and how the passes over train are shared out among them.

Tables change their form first, since pruning may narrow what they hold then; factors come last, of what is left. All
that takes something away comes before the model learns, and it learns to round when it has its final shape.
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
    """Over train: after each step of pruning but the last, then as the model is, then with its rounding in the loop."""

    between: int
    plain: int
    rounding: int


def epochs_of(weights: Weights) -> Epochs:
    """As many in all as the distillation has, where it has one for each stage; a stage has one at least.

    One comes after each step of pruning but the last; of the rest a third learn with rounding, where any do.
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
    """A copy of the model, its own or of a smaller sibling, in the asked shape; and what the copy is made of.

    Args:
        counts: how often each id is looked up, (rows,), by the table's dotted name
        evidence: batches that tell what a unit matters, where they are needed
        between: trains in place between two steps of pruning

    Raises:
        ValueError: a stage that cannot be done, or in which a group would stay as it is.
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
