"""Checks of the techniques that apply to each part of a model: each is applied once, its result exported and run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import onnx_ir as ir
from torch import Tensor

from objectives.compression.export import Signature, check_parity, largest_difference, to_onnx
from objectives.compression.module_edit import names_of
from objectives.compression.pipeline import Means, reshape
from objectives.compression.quantization import quantize
from objectives.compression.quantization.weights import weights
from objectives.compression.structure.groups import weight_of
from objectives.errors import one_line
from objectives.int8_weights import Int8WeightBits
from objectives.onnx_graph import is_large
from objectives.recommenders.protocol import Recommender
from objectives.records import LOW_RANK, PRUNING, Tried
from spaces.model_structure import ModelStructure
from spaces.techniques.embeddings import SMALLEST, MixedDimensions, QuotientRemainder
from spaces.techniques.low_rank import LowRank
from spaces.techniques.pruning import Pruning
from spaces.techniques.quantization import LINEAR_WIDTHS, RECURRENT_WIDTHS, TABLE_WIDTHS, Precision
from spaces.techniques.reshaping import Reshaping
from spaces.weights import MIXED, SHARED

_ROWS = 512
_NOT_HELD = "the exported graph neither looks its weight up nor multiplies by it as it is"
# How each technique is tried on parts of a model.
_TRIED: Mapping[str, Callable[[Sequence[str]], Sequence[Reshaping]]] = {
    PRUNING: lambda parts: [Pruning(tuple((part, 0.5) for part in parts), multiple=1)],
    LOW_RANK: lambda parts: [LowRank(tuple((part, 0.25) for part in parts))],
    SHARED: lambda parts: [QuotientRemainder(part, 0.2) for part in parts],
    MIXED: lambda parts: [MixedDimensions(part, 0.4) for part in parts],
}


@dataclass(frozen=True)
class TechniqueChecks:
    """Checks of the techniques of one model; tracing has already established which transformations are equivalent.

    graph: the exported model
    weight_bits: bits of the weights in int8 products
    """

    recommender: Recommender
    structure: ModelStructure
    graph: ir.Model
    signature: Signature
    weight_bits: Int8WeightBits = 8

    def run(self) -> tuple[Tried, ...]:
        """Check pruning and low rank on each group, and widths and forms of tables on each separately stored part."""
        groups, parts = self.structure.groups, self.structure.stored(self.structure.heavy_tables())
        layers = [group for group in groups if group.kind in ("linear", "attention")]
        recurrent = [group for group in groups if group.kind == "recurrent"]
        tables = [name for name in parts if name not in {group.name for group in groups if group.kind != "table"}]
        fixed = {table.name: table.form_refused for table in self.structure.tables if table.form_refused is not None}
        free = {table.name for table in self.structure.tables if table.rows >= SMALLEST} - fixed.keys()
        return (
            *(Tried(group.name, PRUNING, group.unprunable_reason) for group in groups if not group.prunable),
            *self._reshaped(PRUNING, [group.name for group in groups if group.prunable]),
            *(Tried(group.name, LOW_RANK, group.unfactorable_reason) for group in layers if not group.factorable),
            *self._reshaped(LOW_RANK, [group.name for group in layers if group.factorable]),
            *self._widths({group.name: group.modules for group in layers}, LINEAR_WIDTHS),
            *self._widths({group.name: group.modules for group in recurrent}, RECURRENT_WIDTHS),
            *self._widths({name: parts[name] for name in tables}, TABLE_WIDTHS),
            *(Tried(name, form, reason) for form in (SHARED, MIXED) for name, reason in fixed.items()),
            *self._reshaped(SHARED, [name for name in tables if free & set(parts[name])]),
            *self._reshaped(MIXED, [name for name in tables if free & set(parts[name])]),
        )

    def _widths(self, parts: Mapping[str, Sequence[str]], widths: Sequence[str]) -> Iterator[Tried]:
        """Check each width on each part; modules whose weights the graph holds otherwise, or only adds, keep fp32."""
        absent = {module for modules in parts.values() for module in modules if not self._held(module)}
        apart = [module for modules in parts.values() if not absent.issuperset(modules) for module in modules]
        for width in widths:
            if width != "fp32":
                yield from self._each(width, list(parts), partial(self._narrow, width))
                yield from (Tried(name, width, _NOT_HELD) for name in apart if name in absent)

    def _held(self, module: str) -> bool:
        """Return True if the graph looks up the module's weight, or multiplies by it, under one of its names."""
        model = self.recommender.model
        weight = f"{module}.{weight_of(model.get_submodule(module))}"
        names = (name.rpartition(".")[0] for name in names_of(model, weight))
        return any(weights(self.graph.graph, [name]) for name in names)

    def _reshaped(self, technique: str, parts: Sequence[str]) -> Iterator[Tried]:
        return self._each(technique, parts, partial(self._reshape, technique))

    def _reshape(self, technique: str, parts: Sequence[str]) -> None:
        counts = self._counts if technique in (SHARED, MIXED) else {}
        smaller, _ = reshape(self.recommender.model, self.structure, _TRIED[technique](parts), Means(counts))
        check_parity(smaller, to_onnx(smaller, self._rows, self.signature), self._rows, self.signature.scores)

    def _narrow(self, width: str, parts: Sequence[str]) -> None:
        precision = Precision(tuple((name, width) for name in parts))
        rows = {name: values.numpy() for name, values in self._rows.items()}
        narrow = quantize(self.graph, precision, self.structure, rows, None, self.weight_bits)
        largest_difference(narrow, self.graph, rows)

    @cached_property
    def _rows(self) -> Mapping[str, Tensor]:
        return self.recommender.serving_rows(_ROWS)

    @cached_property
    def _counts(self) -> Mapping[str, Tensor]:
        return self.recommender.counts(self.recommender.model, self.structure.tables)

    def _each(self, technique: str, parts: Sequence[str], apply: Callable[[Sequence[str]], None]) -> Iterator[Tried]:
        """Apply the technique to all parts at once, and one by one only where that fails."""
        together = self._trouble(apply, parts) if parts else None
        for part in parts:
            reason = together and (together if len(parts) == 1 else self._trouble(apply, [part]))
            yield Tried(part, technique, reason)

    def _trouble(self, apply: Callable[[Sequence[str]], None], parts: Sequence[str]) -> str | None:
        try:
            apply(parts)
        except Exception as error:  # anything that the user's own forward may raise on smaller layers
            return one_line(error)
        finally:
            if is_large(self.graph):
                gc.collect()  # graphs and the exporter's programs hold their weights in cycles
        return None
