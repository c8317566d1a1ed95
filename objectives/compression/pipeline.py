"""Order of a fit's stages, and the division of its epochs among them.

Tables change their form first, since pruning may reduce their parts; factors come last, for the remaining weights.
Every reduction comes before the final training, and quantization-aware training comes last, in the final shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class Means:
    """What techniques use besides the model.

    counts: (rows,) lookups of each id, by the table's dotted name
    evidence: returns batches for the importance of units, called where they are needed
    between: trains in place between two steps of pruning
    """

    counts: Mapping[str, Tensor]
    evidence: Callable[[], Evidence] | None = None
    between: Callable[[nn.Module], None] | None = None


def reshape(
    model: nn.Module, structure: ModelStructure, techniques: Iterable[Reshaping], means: Means
) -> tuple[nn.Module, ModelStructure]:
    """Apply the techniques in their order, forms of tables that follow each other at once, and return a changed copy of
    the model with its structure; without any, the model itself.

    Raises:
        ValueError: a technique cannot be applied, or would leave a group unchanged.
    """
    for _, alike in groupby(techniques, key=lambda technique: isinstance(technique, TableForm) or technique):
        match list(alike):
            case [Architecture()]:
                pass  # the student was built in its sizes
            case [TableForm(), *_] as listed:
                forms = [form for form in listed if isinstance(form, TableForm)]
                model, structure = compress_tables(model, forms, structure, means.counts)
            case [Attention() as attention]:
                model = sparsify(model, attention)
            case [Pruning() as pruning]:
                evidence = None if pruning.importance == "magnitude" or means.evidence is None else means.evidence()
                model, structure = prune(model, pruning, structure, evidence, means.between)
            case [LowRank() as low_rank]:
                model = factorize(model, low_rank, structure)
            case unknown:
                raise TypeError(f"A technique is one that `reshape` applies, but got {unknown}.")
    return model, structure
