"""Embedding tables in fewer numbers: rare ids share rows, or have fewer dimensions.

Rare ids are determined by lookup counts of the training data, in any order of the ids: each id has a place, and
frequent ids have the first places. The padding row, else row 0 (by convention that of unknown ids), has the first.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objectives.compression.low_rank import factors
from objectives.compression.module_edit import recounted, with_dims, with_modules
from spaces.model_structure import AxisSlice, ModelStructure, PrunableDim
from spaces.techniques.embeddings import SMALLEST, MixedDimensions, QuotientRemainder, TableForm

# Columns and steps of the subspace iteration.
_SKETCH, _ITERATIONS = 8, 10
# Each block is one more lookup for every id.
_BLOCKS = 4


class CompressedTable(nn.Module, ABC):
    """A table that stores the rows of frequent ids in full and those of rare ids in fewer numbers.

    Its parts hold the ids in order of their places; `places` (rows, 1) maps an id to its place, and is None where ids
    are in that order already.
    """

    places: Tensor | None

    def __init__(self, places: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("places", places)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up embeddings by id: (...) -> (..., d)."""
        # An index of a vector would be exported as a GatherND, which the other graph passes do not recognise as a
        # lookup.
        return self.rows_at(ids if self.places is None else F.embedding(ids, self.places).squeeze(-1))

    @abstractmethod
    def rows_at(self, places: Tensor) -> Tensor:
        """Look up embeddings by place: (...) -> (..., d)."""

    @property
    @abstractmethod
    def frequent(self) -> nn.Embedding:
        """The embedding of the first places, with all their dimensions."""

    @abstractmethod
    def wide(self) -> tuple[str, ...]:
        """Return the names of its tensors whose columns are the d dimensions."""


class QuotientRemainderTable(CompressedTable):
    """A table whose first places have a full row each, and whose later places share rows.

    The row of a later place is the elementwise product of the row of its quotient and the row of its remainder, on
    division by the number of remainders (Shi et al., KDD 2020, section 3).
    """

    def __init__(self, own: Tensor, quotient: Tensor, remainder: Tensor, places: Tensor | None = None) -> None:
        super().__init__(places)
        self.own = _embedding(own)
        self.quotient = _embedding(quotient)
        self.remainder = _embedding(remainder)

    @classmethod
    def of(cls, table: Tensor, share: float, counts: Tensor, padding: int | None = None) -> QuotientRemainderTable:
        """Compress a whole table (rows, d); the shared rows are the nearest ones by `_rank_one`.

        Args:
            share: share of the rows that are kept, in [0, 1); the first place is, and the last one is not
            counts: (rows,) lookups of each id
        """
        own = min(len(table) - 1, max(1, math.ceil(share * len(table))))
        order = _order([own, len(table) - own], counts, padding)
        return cls(table[order[:own]], *_rank_one(table[order[own:]]), _places(order))

    @property
    def frequent(self) -> nn.Embedding:
        return self.own

    def rows_at(self, places: Tensor) -> Tensor:
        own, count = self.own.num_embeddings, self.remainder.num_embeddings
        rare = (places - own).clamp(min=0)
        shared = self.quotient(rare // count) * self.remainder(rare % count)
        return torch.where((places < own).unsqueeze(-1), self.own(places.clamp(max=own - 1)), shared)

    def wide(self) -> tuple[str, ...]:
        return ("own.weight", "quotient.weight", "remainder.weight")


class Projection(nn.Module):
    """Projection (..., d_k) -> (..., d) by a weight (d_k, d).

    In this layout the exporter keeps the weight and its name. It would transpose the weight of a Linear into an unnamed
    copy where ids have two axes.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, rows: Tensor) -> Tensor:
        return rows @ self.weight


class MixedTable(CompressedTable):
    """A table of consecutive blocks of places, each with its own dimension (Ginart et al., ISIT 2021).

    A block is its rows (n_k, d_k) and, where d_k is smaller than d, a projection (d_k, d).
    """

    def __init__(self, blocks: Sequence[tuple[Tensor, Tensor | None]], places: Tensor | None = None) -> None:
        super().__init__(places)
        self.blocks = nn.ModuleList(_embedding(rows) for rows, _ in blocks)
        self.projections = nn.ModuleList(nn.Identity() if by is None else Projection(by) for _, by in blocks)

    @classmethod
    def of(cls, table: Tensor, temperature: float, counts: Tensor, padding: int | None = None) -> MixedTable:
        """Compress a whole table (rows, d) into blocks, each the nearest of its rank.

        Args:
            counts: (rows,) lookups of each id

        Raises:
            ValueError: counts have another length, or are all 0 in the first block.
        """
        sizes = block_sizes(len(table))
        order = _order(sizes, counts, padding)
        dimensions = block_dimensions(sizes, table.shape[1], temperature, _told(counts, padding)[order])
        blocks = zip(torch.split(order, sizes), dimensions, strict=True)
        return cls([_block(table[ids], d) for ids, d in blocks], _places(order))

    @property
    def frequent(self) -> nn.Embedding:
        return self._block(0)

    def rows_at(self, places: Tensor) -> Tensor:
        values, start = self._rows(0, places), self._block(0).num_embeddings
        for k in range(1, len(self.blocks)):
            values = torch.where((places >= start).unsqueeze(-1), self._rows(k, places - start), values)
            start += self._block(k).num_embeddings
        return values

    def _block(self, k: int) -> nn.Embedding:
        block = self.blocks[k]
        assert isinstance(block, nn.Embedding)
        return block

    def _rows(self, k: int, places: Tensor) -> Tensor:
        """Return the rows of a block; places outside it get its first or last row."""
        block = self._block(k)
        rows: Tensor = self.projections[k](block(places.clamp(0, block.num_embeddings - 1)))
        return rows

    def wide(self) -> tuple[str, ...]:
        whole = (isinstance(projection, nn.Identity) for projection in self.projections)
        return tuple(f"{'blocks' if w else 'projections'}.{k}.weight" for k, w in enumerate(whole))


def whole_forms(table: nn.Embedding) -> Iterator[CompressedTable]:
    """Yield the table in each form, with its ids in other places, such that no row loses anything."""
    weight, counts = table.weight.detach(), torch.arange(1, table.num_embeddings + 1)
    yield QuotientRemainderTable.of(weight, 1.0, counts)  # the rarest id alone is a product, of one row and one
    yield MixedTable.of(weight, 0.0, counts)


def compress_tables(
    model: nn.Module, forms: Sequence[TableForm], structure: ModelStructure, counts: Mapping[str, Tensor]
) -> tuple[nn.Module, ModelStructure]:
    """Copy the model with tables in the given forms, and return the copy with its structure.

    The structure's prunable dimensions refer to the compressed tables. A heavy table, or one that a form names, is
    treated separately from its group.

    A table of fewer than `SMALLEST` rows is left unchanged, as is one that would not become smaller, one whose rare ids
    are unknown, and one that the structure excludes from other forms.

    Args:
        counts: (rows,) lookups of each id, by the table's dotted name

    Raises:
        ValueError: an unknown group or table, a group without tables, or one in which none becomes smaller; counts
        whose length differs from their table's.
    """
    stored = structure.stored((*structure.heavy_tables(), *(form.group for form in forms)))
    fixed = {table.name for table in structure.tables if table.form_refused is not None}
    others = {group.name: group.kind for group in structure.groups if group.kind != "table"}
    compressed: dict[str, CompressedTable] = {}
    for form in forms:
        if form.group in others:
            raise ValueError(f"Groups of kind table hold tables, but {form.group!r} is of kind {others[form.group]}.")
        free = [module for module in stored.get(form.group, ()) if module not in fixed]
        made = _smaller(model, free, form, counts)
        if not made:
            raise ValueError(
                f"Tables have nothing to gain by {form}: none of {SMALLEST} rows or more, of known counts, is smaller."
            )
        compressed |= made
        structure = _moved(structure, made)
    result = with_modules(model, compressed)
    return result, recounted(structure, result)


def block_sizes(rows: int) -> list[int]:
    """Return the rows of each block of a table of 8 rows or more, each twice the one before; the last has the rest."""
    first = math.ceil(rows / (2**_BLOCKS - 1))
    sizes = [first * 2**k for k in range(_BLOCKS - 1)]
    return [*sizes, rows - sum(sizes)]


def block_dimensions(sizes: Sequence[int], whole: int, temperature: float, counts: Tensor) -> list[int]:
    """Return d (p_k / p_0) ^ temperature for each block (Ginart et al., ISIT 2021, eq. 3).

    p_k is the mean frequency of a row of block k. A block that would hold as many numbers with its projection keeps all
    its dimensions.

    Args:
        sizes: rows of each block
        whole: d, the full dimension
        counts: (rows,) lookups, in the order of the blocks

    Raises:
        ValueError: counts have another length, or are all 0 in the first block.
    """
    rows = sum(sizes)
    if counts.shape != (rows,) or not counts[: sizes[0]].sum() > 0:
        raise ValueError(
            f"Counts are ({rows},) and some ids of the first block are seen, but got {tuple(counts.shape)}."
        )
    means = [float(part.mean()) for part in torch.split(counts.double(), list(sizes))]
    asked = [max(1, min(whole, round(whole * (mean / means[0]) ** temperature))) for mean in means]
    return [d if d * (size + whole) < size * whole else whole for size, d in zip(sizes, asked, strict=True)]


def seen(table: nn.Embedding, counts: Tensor | None) -> bool:
    """Return whether the lookups of rows, (rows,) by id, are known and some row is looked up."""
    return counts is not None and bool(_told(counts, table.padding_idx).sum() > 0)


def evenly_seen(table: nn.Embedding, counts: Tensor) -> bool:
    """Return whether lookups, (rows,) by id and not all 0, are so even that no temperature narrows any block."""
    sizes = block_sizes(table.num_embeddings)
    order = _order(sizes, counts, table.padding_idx)
    counted = _told(counts, table.padding_idx)[order]
    return min(block_dimensions(sizes, table.embedding_dim, 1.0, counted)) == table.embedding_dim


def _order(sizes: Sequence[int], counts: Tensor, padding: int | None) -> Tensor:
    """Return the ids by place, (rows,): by frequency from part to part, in their own order within a part."""
    if counts.shape != (sum(sizes),):
        raise ValueError(f"Counts are ({sum(sizes)},), one for each row, but got {tuple(counts.shape)}.")
    ranked = counts.double().clone()
    ranked[padding or 0] = torch.inf
    by_count = torch.argsort(ranked, descending=True, stable=True)
    return torch.cat([part.sort().values for part in torch.split(by_count, list(sizes))])


def _places(order: Tensor) -> Tensor | None:
    """Return the place of each id, (rows, 1), None where it is the id itself."""
    if torch.equal(order, torch.arange(len(order))):
        return None
    return torch.argsort(order).to(torch.int32).unsqueeze(1)


def _told(counts: Tensor, padding: int | None) -> Tensor:
    """Return the lookups without those of the padding row, which do not count."""
    told = counts.double().clone()
    if padding is not None:
        told[padding] = 0
    return told


def _smaller(
    model: nn.Module, modules: Sequence[str], form: TableForm, counts: Mapping[str, Tensor]
) -> dict[str, CompressedTable]:
    """Return the modules' tables in the form, by name, where they hold fewer numbers."""
    made: dict[str, CompressedTable] = {}
    for name in modules:
        module, counted = model.get_submodule(name), counts.get(name)
        if not isinstance(module, nn.Embedding) or module.num_embeddings < SMALLEST:
            continue
        if counted is None or not seen(module, counted):
            continue
        table = _table(module, form, counted).train(module.training)
        if sum(tensor.numel() for tensor in table.state_dict().values()) < module.weight.numel():
            made[name] = table
    return made


def _table(module: nn.Embedding, form: TableForm, counts: Tensor) -> CompressedTable:
    """Return a table in the form; its parts have sparse gradients, or are frozen, if the table is."""
    weight, padding = module.weight.detach(), module.padding_idx
    table: CompressedTable
    if isinstance(form, QuotientRemainder):
        table = QuotientRemainderTable.of(weight, form.full_rows_share, counts, padding)
    else:
        assert isinstance(form, MixedDimensions)
        table = MixedTable.of(weight, form.temperature, counts, padding)
    if padding is not None:
        table.frequent.padding_idx = padding if table.places is None else int(table.places[padding])
    for part in table.modules():
        if isinstance(part, nn.Embedding):
            part.sparse = module.sparse
    for parameter in table.parameters():
        parameter.requires_grad_(module.weight.requires_grad)
    return table


def _moved(structure: ModelStructure, made: Mapping[str, CompressedTable]) -> ModelStructure:
    """Replace slices of a table's dimensions by slices of those of its parts."""

    def moved(width: PrunableDim) -> PrunableDim:
        axis_slices: list[AxisSlice] = []
        for cut in width.axis_slices:
            name = cut.tensor.removesuffix(".weight")
            tensors = [f"{name}.{part}" for part in made[name].wide()] if name in made else [cut.tensor]
            axis_slices += (replace(cut, tensor=tensor) for tensor in tensors)
        return replace(width, axis_slices=tuple(axis_slices))

    return with_dims(structure, moved)


def _rank_one(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Factorise rows (rows, d) of a table into rows of quotients (q, d) and of remainders (m, d), m = ceil(sqrt(rows)).

    Along each dimension the rows form a grid (q, m), to be approximated by the product of a column and a row. It is the
    nearest one to the complete lines, by the leading singular vectors, which subspace iteration finds without the whole
    decomposition (Halko et al. 2011, algorithm 4.4); the last line may be incomplete, and its quotient is the
    least-squares fit to its rows. A grid of rank one is reproduced exactly.
    """
    count, width = rows.shape
    m = math.ceil(math.sqrt(count))
    complete = count // m
    grid = rows[: complete * m].reshape(complete, m, width)
    quotient, remainder = rows.new_empty(width, complete), rows.new_empty(width, m)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for k in range(width):
            left, values, right = torch.svd_lowrank(
                grid[:, :, k].contiguous(), min(_SKETCH, complete, m), niter=_ITERATIONS
            )
            quotient[k], remainder[k] = left[:, 0] * values[0].sqrt(), right[:, 0] * values[0].sqrt()
    rest = rows[complete * m :].T
    if rest.numel():
        by = remainder[:, : rest.shape[1]]
        norm = by.square().sum(1).clamp(min=torch.finfo(rows.dtype).tiny)
        quotient = torch.cat([quotient, ((rest * by).sum(1) / norm)[:, None]], 1)
    return quotient.T, remainder.T


def _block(rows: Tensor, dimension: int) -> tuple[Tensor, Tensor | None]:
    return (rows, None) if dimension == rows.shape[1] else factors(rows, dimension)


def _embedding(rows: Tensor) -> nn.Embedding:
    """Return a table over the rows, which are not copied."""
    made: nn.Embedding = nn.Embedding.from_pretrained(rows.contiguous(), freeze=False)  # type: ignore[no-untyped-call]
    return made
