"""Embedding tables in fewer numbers: rare ids share rows, or have fewer dimensions.

Which ids are rare is read from lookup counts of the training data, whatever the order of the ids: each id has a place,
and frequent ids have the first places. The padding row, else row 0 (by convention that of unseen ids), has the first.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objectives.compression.low_rank import factors
from objectives.compression.module_edit import recounted, replace_module
from spaces.model_structure import AxisSlice, Group, ModelStructure
from spaces.techniques.embeddings import SMALLEST, MixedDimensions, QuotientRemainder, TableForm

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
        """(...) -> (..., d)"""
        # An index of a vector would be exported as a GatherND, which nothing else here knows as a lookup.
        return self.rows_at(ids if self.places is None else F.embedding(ids, self.places).squeeze(-1))

    @abstractmethod
    def rows_at(self, places: Tensor) -> Tensor:
        """(...) -> (..., d)"""

    @property
    @abstractmethod
    def frequent(self) -> nn.Embedding:
        """Of the first places, with all their dimensions."""

    @abstractmethod
    def wide(self) -> tuple[str, ...]:
        """Its tensors whose columns are the d dimensions."""


class QuotientRemainderTable(CompressedTable):
    """Places below the number of own rows have a row each; a later one is the elementwise product of the row of its
    quotient and the row of its remainder, by the number of remainders (Shi et al., KDD 2020, section 3)."""

    def __init__(self, own: Tensor, quotient: Tensor, remainder: Tensor, places: Tensor | None = None) -> None:
        super().__init__(places)
        self.own = _embedding(own)
        self.quotient = _embedding(quotient)
        self.remainder = _embedding(remainder)

    @classmethod
    def of(cls, table: Tensor, share: float, counts: Tensor, padding: int | None = None) -> QuotientRemainderTable:
        """Of a whole table (rows, d); the rows that are shared are the nearest in the sense of `_rank_one`.

        Args:
            share: of the rows that stay as they are, in [0, 1); the first place does, and the last one does not
            counts: (rows,) how often each id is looked up
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
    """(..., d_k) -> (..., d) by a weight (d_k, d). Laid out so, the exporter keeps it as it is, and by its name; it
    would transpose that of a Linear into a nameless copy where ids have two axes."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, rows: Tensor) -> Tensor:
        return rows @ self.weight


class MixedTable(CompressedTable):
    """Blocks of places one after the other, each of its own dimension and projected to d where that is smaller (Ginart
    et al., ISIT 2021); a block is its rows (n_k, d_k), and the projection (d_k, d) unless d_k is d."""

    def __init__(self, blocks: Sequence[tuple[Tensor, Tensor | None]], places: Tensor | None = None) -> None:
        super().__init__(places)
        self.blocks = nn.ModuleList(_embedding(rows) for rows, _ in blocks)
        self.projections = nn.ModuleList(nn.Identity() if by is None else Projection(by) for _, by in blocks)

    @classmethod
    def of(cls, table: Tensor, temperature: float, counts: Tensor, padding: int | None = None) -> MixedTable:
        """Of a whole table (rows, d), each block the nearest of its rank.

        Args:
            counts: (rows,) how often each id is looked up

        Raises:
            ValueError: counts of another length, or none in the first block.
        """
        sizes = block_sizes(len(table))
        order = _order(sizes, counts, padding)
        dimensions = block_dimensions(sizes, table.shape[1], temperature, _told(counts, padding)[order])
        blocks = zip(torch.split(table[order], sizes), dimensions, strict=True)
        return cls([_block(rows, d) for rows, d in blocks], _places(order))

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
        """Those of a block; for places outside it, of its first or last."""
        block = self._block(k)
        rows: Tensor = self.projections[k](block(places.clamp(0, block.num_embeddings - 1)))
        return rows

    def wide(self) -> tuple[str, ...]:
        whole = (isinstance(projection, nn.Identity) for projection in self.projections)
        return tuple(f"{'blocks' if w else 'projections'}.{k}.weight" for k, w in enumerate(whole))


def whole_forms(table: nn.Embedding) -> Iterator[CompressedTable]:
    """The table in each form, its ids in other places, such that no row loses anything."""
    weight, counts = table.weight.detach(), torch.arange(1, table.num_embeddings + 1)
    yield QuotientRemainderTable.of(weight, 1.0, counts)  # the rarest id alone is a product, of one row and one
    yield MixedTable.of(weight, 0.0, counts)


def compress_tables(
    model: nn.Module,
    forms: Sequence[TableForm],
    structure: ModelStructure,
    counts: Mapping[str, Tensor],
) -> tuple[nn.Module, ModelStructure]:
    """A copy of the model with tables in the forms of their groups; and the anatomy of the copy, whose widths cut what
    the tables hold now. A heavy table is by itself, and so is each that a form names: its group's form is not its own.

    A table of fewer than `SMALLEST` rows stays as it is, and so does one that would not hold fewer numbers, of whose
    ids it is not known which are rare, or that the anatomy says can have no other form.

    Args:
        counts: (rows,) how often each id is looked up, by the table's dotted name

    Raises:
        ValueError: a group or a table that there is not, a group that holds no tables, or one in which none becomes
            smaller; counts of another length than their table.
    """
    compressed, stored = copy.deepcopy(model), structure.stored((*structure.heavy_tables(), *(f.group for f in forms)))
    fixed = {table.name for table in structure.tables if table.form_refused is not None}
    others = {group.name: group.kind for group in structure.groups if group.kind != "table"}
    for form in forms:
        if form.group in others:
            raise ValueError(f"Groups of kind table hold tables, but {form.group!r} is of kind {others[form.group]}.")
        free = [module for module in stored.get(form.group, ()) if module not in fixed]
        made = _smaller(compressed, free, form, counts)
        if not made:
            raise ValueError(
                f"Tables have nothing to gain by {form}: none of {SMALLEST} rows or more, of known counts, is smaller."
            )
        for name, table in made.items():
            replace_module(compressed, name, table)
        structure = _moved(structure, made)
    return compressed, recounted(structure, compressed)


def block_sizes(rows: int) -> list[int]:
    """Of 8 rows or more: those of the blocks, each twice those of the one before; the last has what is left."""
    first = math.ceil(rows / (2**_BLOCKS - 1))
    sizes = [first * 2**k for k in range(_BLOCKS - 1)]
    return [*sizes, rows - sum(sizes)]


def block_dimensions(sizes: Sequence[int], whole: int, temperature: float, counts: Tensor) -> list[int]:
    """d (p_k / p_0) ^ temperature, p_k the mean frequency of a row of block k (Ginart et al., ISIT 2021, eq. 3).

    A block that would hold as many numbers with its projection keeps all its dimensions.

    Args:
        counts: (rows,) in the order of the blocks
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
    """Whether it is known which rows are looked up: of what is never seen nothing is.

    Args:
        counts: (rows,) how often each id is looked up, None where they are not known
    """
    return counts is not None and bool(_told(counts, table.padding_idx).sum() > 0)


def evenly_seen(table: nn.Embedding, counts: Tensor) -> bool:
    """Whether its rows are looked up about as often as each other, so that no temperature narrows any block.

    Args:
        counts: (rows,) how often each id is looked up, some at least
    """
    sizes = block_sizes(table.num_embeddings)
    order = _order(sizes, counts, table.padding_idx)
    counted = _told(counts, table.padding_idx)[order]
    return min(block_dimensions(sizes, table.embedding_dim, 1.0, counted)) == table.embedding_dim


def _order(sizes: Sequence[int], counts: Tensor, padding: int | None) -> Tensor:
    """Ids (rows,) by place: the most frequent belong to the first of some parts of these sizes, and so on.

    Within a part they stay in their own order, so that ids which are sorted by frequency keep it.

    Raises:
        ValueError: counts of another length than the table.
    """
    if counts.shape != (sum(sizes),):
        raise ValueError(f"Counts are ({sum(sizes)},), one for each row, but got {tuple(counts.shape)}.")
    ranked = counts.double().clone()
    ranked[padding or 0] = torch.inf
    by_count = torch.argsort(ranked, descending=True, stable=True)
    return torch.cat([part.sort().values for part in torch.split(by_count, list(sizes))])


def _places(order: Tensor) -> Tensor | None:
    """(rows, 1) the place of each id, None where it is the id itself."""
    if torch.equal(order, torch.arange(len(order))):
        return None
    return torch.argsort(order).to(torch.int32).unsqueeze(1)


def _told(counts: Tensor, padding: int | None) -> Tensor:
    """Lookups that tell how much an id matters: those of padding do not."""
    told = counts.double().clone()
    if padding is not None:
        told[padding] = 0
    return told


def _smaller(
    model: nn.Module, modules: Sequence[str], form: TableForm, counts: Mapping[str, Tensor]
) -> dict[str, CompressedTable]:
    """Those of the modules that are tables in the form, by name, where they hold fewer numbers."""
    made: dict[str, CompressedTable] = {}
    for name in modules:
        module, counted = model.get_submodule(name), counts.get(name)
        if not isinstance(module, nn.Embedding) or module.num_embeddings < SMALLEST:
            continue
        if counted is None or not seen(module, counted):
            continue
        if isinstance(form, MixedDimensions) and evenly_seen(module, counted):
            continue
        table = _table(module, form, counted).train(module.training)
        if sum(tensor.numel() for tensor in table.state_dict().values()) < module.weight.numel():
            made[name] = table
    return made


def _table(module: nn.Embedding, form: TableForm, counts: Tensor) -> CompressedTable:
    weight, padding = module.weight.detach(), module.padding_idx
    table: CompressedTable
    if isinstance(form, QuotientRemainder):
        table = QuotientRemainderTable.of(weight, form.full_rows_share, counts, padding)
    else:
        table = MixedTable.of(weight, form.temperature, counts, padding)
    if padding is not None:
        table.frequent.padding_idx = padding if table.places is None else int(table.places[padding])
    return table


def _moved(structure: ModelStructure, made: Mapping[str, CompressedTable]) -> ModelStructure:
    """Cuts of a table's dimensions become cuts of those of its parts."""

    def moved(cut: AxisSlice) -> tuple[AxisSlice, ...]:
        name = cut.tensor.removesuffix(".weight")
        return tuple(replace(cut, tensor=f"{name}.{part}") for part in made[name].wide()) if name in made else (cut,)

    def of(group: Group) -> Group:
        widths = (
            replace(w, axis_slices=tuple(new for cut in w.axis_slices for new in moved(cut))) for w in group.widths
        )
        return replace(group, widths=tuple(widths))

    return replace(structure, groups=tuple(of(group) for group in structure.groups))


def _rank_one(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of quotients (q, d) and of remainders (m, d), m = ceil(sqrt(rows)), for rows (rows, d) of a table.

    Along each dimension the rows lie on a grid (q, m), which is to be a product of a column and a row. Of the lines
    that are complete it is the nearest one, by the singular value decomposition; the last one may not be, and its
    quotient is then the least squares to what it has. So a grid of rank one is met exactly.
    """
    count, width = rows.shape
    m = math.ceil(math.sqrt(count))
    complete = count // m
    grid = rows[: complete * m].reshape(complete, m, width).permute(2, 0, 1)
    left, values, right = torch.linalg.svd(grid, full_matrices=False)
    root = values[:, :1].sqrt()
    quotient, remainder = left[:, :, 0] * root, right[:, 0] * root
    rest = rows[complete * m :].T
    if rest.numel():
        by = remainder[:, : rest.shape[1]]
        norm = by.square().sum(1).clamp(min=torch.finfo(rows.dtype).tiny)
        quotient = torch.cat([quotient, ((rest * by).sum(1) / norm)[:, None]], 1)
    return quotient.T, remainder.T


def _block(rows: Tensor, dimension: int) -> tuple[Tensor, Tensor | None]:
    return (rows, None) if dimension == rows.shape[1] else factors(rows, dimension)


def _embedding(rows: Tensor) -> nn.Embedding:
    made: nn.Embedding = nn.Embedding.from_pretrained(rows.clone().contiguous(), freeze=False)  # type: ignore[no-untyped-call]
    return made
