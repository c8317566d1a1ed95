"""Embedding tables in fewer numbers: rare ids share rows, or have fewer dimensions.

Both rest on the order of the codes: 0 is unseen, 1 the most frequent id, and so on down to the rarest.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from objectives.compression.low_rank import factors
from objectives.compression.surgery import recounted, replace_module
from spaces.anatomy import Anatomy, Cut, Group
from spaces.tables import SMALLEST, MixedDimensions, SharedRows, TableForm

# Each block is one more lookup for every id.
_BLOCKS = 4


class SharedRowsTable(nn.Module):
    """Ids below the number of own rows have a row each; a rare id is the elementwise product of the row of its
    quotient and the row of its remainder, by the number of remainders (Shi et al., KDD 2020, section 3)."""

    def __init__(self, own: Tensor, quotient: Tensor, remainder: Tensor) -> None:
        super().__init__()
        self.own = _embedding(own)
        self.quotient = _embedding(quotient)
        self.remainder = _embedding(remainder)

    @classmethod
    def of(cls, table: Tensor, share: float) -> SharedRowsTable:
        """Of a whole table (rows, d); the rows that are shared are the nearest in the sense of `_rank_one`.

        Args:
            share: of the rows that stay as they are, in [0, 1); that of unseen ids does, and the rarest one does not
        """
        own = min(len(table) - 1, max(1, math.ceil(share * len(table))))
        return cls(table[:own], *_rank_one(table[own:]))

    @property
    def frequent(self) -> nn.Embedding:
        """Of the first codes, 0 among them, with all their dimensions."""
        return self.own

    def forward(self, ids: Tensor) -> Tensor:
        """(...) -> (..., d)"""
        own, count = self.own.num_embeddings, self.remainder.num_embeddings
        rare = (ids - own).clamp(min=0)
        shared = self.quotient(rare // count) * self.remainder(rare % count)
        return torch.where((ids < own).unsqueeze(-1), self.own(ids.clamp(max=own - 1)), shared)

    def wide(self) -> tuple[str, ...]:
        """Its tensors whose columns are the d dimensions."""
        return ("own.weight", "quotient.weight", "remainder.weight")


class Projection(nn.Module):
    """(..., d_k) -> (..., d) by a weight (d_k, d). Laid out so, the exporter keeps it as it is, and by its name; it
    would transpose that of a Linear into a nameless copy where ids have two axes."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, rows: Tensor) -> Tensor:
        return rows @ self.weight


class MixedTable(nn.Module):
    """Blocks of ids one after the other, each of its own dimension and projected to d where that is smaller (Ginart et
    al., ISIT 2021); a block is its rows (n_k, d_k), and the projection (d_k, d) unless d_k is d."""

    def __init__(self, blocks: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_embedding(rows) for rows, _ in blocks)
        self.projections = nn.ModuleList(nn.Identity() if by is None else Projection(by) for _, by in blocks)

    @classmethod
    def of(cls, table: Tensor, temperature: float, counts: Tensor | None = None) -> MixedTable:
        """Of a whole table (rows, d), each block the nearest of its rank.

        Args:
            counts: (rows,) how often each id is looked up; None for Zipf's law over the codes

        Raises:
            ValueError: counts of another length, or none in the first block.
        """
        sizes = block_sizes(len(table))
        dimensions = block_dimensions(sizes, table.shape[1], temperature, counts)
        return cls([_block(rows, d) for rows, d in zip(torch.split(table, sizes), dimensions, strict=True)])

    @property
    def frequent(self) -> nn.Embedding:
        """Of the first codes, 0 among them, with all their dimensions."""
        return self._block(0)

    def forward(self, ids: Tensor) -> Tensor:
        """(...) -> (..., d)"""
        values, start = self._rows(0, ids), self._block(0).num_embeddings
        for k in range(1, len(self.blocks)):
            values = torch.where((ids >= start).unsqueeze(-1), self._rows(k, ids - start), values)
            start += self._block(k).num_embeddings
        return values

    def _block(self, k: int) -> nn.Embedding:
        block = self.blocks[k]
        assert isinstance(block, nn.Embedding)
        return block

    def _rows(self, k: int, ids: Tensor) -> Tensor:
        """Those of a block; for ids outside it, of its first or last."""
        block = self._block(k)
        rows: Tensor = self.projections[k](block(ids.clamp(0, block.num_embeddings - 1)))
        return rows

    def wide(self) -> tuple[str, ...]:
        """Its tensors whose columns are the d dimensions."""
        whole = (isinstance(projection, nn.Identity) for projection in self.projections)
        return tuple(f"{'blocks' if w else 'projections'}.{k}.weight" for k, w in enumerate(whole))


CompressedTable = SharedRowsTable | MixedTable


def whole_forms(table: nn.Embedding) -> Iterator[CompressedTable]:
    """The table in each form, such that no row loses anything."""
    weight = table.weight.detach()
    yield SharedRowsTable.of(weight, 1.0)  # the rarest id alone is a product, of one row and one
    yield MixedTable.of(weight, 0.0)


def compress_tables(
    model: nn.Module,
    forms: Sequence[TableForm],
    anatomy: Anatomy,
    counts: Mapping[str, Tensor] | None = None,
) -> tuple[nn.Module, Anatomy]:
    """A copy of the model with tables in the forms of their groups; and the anatomy of the copy, whose widths cut what
    the tables hold now. A heavy table is by itself, and so is each that a form names: its group's form is not its own.

    A table of fewer than `SMALLEST` rows stays as it is, and so does one that would not hold fewer numbers, or that the
    anatomy says can have no other form.

    Args:
        counts: (rows,) how often each id is looked up, by the table's dotted name, for mixed dimensions

    Raises:
        ValueError: a group or a table that there is not, a group that holds no tables, or one in which none becomes
            smaller.
    """
    compressed, stored = copy.deepcopy(model), anatomy.stored((*anatomy.heavy_tables(), *(f.group for f in forms)))
    fixed = {table.name for table in anatomy.tables if table.form_refused is not None}
    others = {group.name: group.kind for group in anatomy.groups if group.kind != "table"}
    for form in forms:
        if form.group in others:
            raise ValueError(f"Groups of kind table hold tables, but {form.group!r} is of kind {others[form.group]}.")
        free = [module for module in stored.get(form.group, ()) if module not in fixed]
        made = _smaller(compressed, free, form, counts or {})
        if not made:
            raise ValueError(f"Tables have nothing to gain by {form}: none of {SMALLEST} rows or more is smaller so.")
        for name, table in made.items():
            replace_module(compressed, name, table)
        anatomy = _moved(anatomy, made)
    return compressed, recounted(anatomy, compressed)


def block_sizes(rows: int) -> list[int]:
    """Of 8 rows or more: those of the blocks, each twice those of the one before; the last has what is left."""
    first = math.ceil(rows / (2**_BLOCKS - 1))
    sizes = [first * 2**k for k in range(_BLOCKS - 1)]
    return [*sizes, rows - sum(sizes)]


def block_dimensions(sizes: Sequence[int], whole: int, temperature: float, counts: Tensor | None = None) -> list[int]:
    """d (p_k / p_0) ^ temperature, p_k the mean frequency of a row of block k (Ginart et al., ISIT 2021, eq. 3).

    A block that would hold as many numbers with its projection keeps all its dimensions.
    """
    rows = sum(sizes)
    seen = 1 / torch.arange(rows).clamp(min=1).double() if counts is None else counts.double()
    if seen.shape != (rows,) or not seen[: sizes[0]].sum() > 0:
        raise ValueError(f"Counts are ({rows},) and some ids of the first block are seen, but got {tuple(seen.shape)}.")
    means = [float(part.mean()) for part in torch.split(seen, list(sizes))]
    asked = [max(1, min(whole, round(whole * (mean / means[0]) ** temperature))) for mean in means]
    return [d if d * (size + whole) < size * whole else whole for size, d in zip(sizes, asked, strict=True)]


def evenly_seen(table: nn.Embedding, counts: Tensor | None) -> bool:
    """Whether its rows are looked up about as often as each other, so that no temperature narrows any block.

    Args:
        counts: (rows,) how often each id is looked up; None for Zipf's law over the codes
    """
    sizes = block_sizes(table.num_embeddings)
    if counts is not None and not counts[: sizes[0]].sum() > 0:
        return True
    return min(block_dimensions(sizes, table.embedding_dim, 1.0, counts)) == table.embedding_dim


def _smaller(
    model: nn.Module, modules: Sequence[str], form: TableForm, counts: Mapping[str, Tensor]
) -> dict[str, CompressedTable]:
    """Those of the modules that are tables in the form, by name, where they hold fewer numbers."""
    made: dict[str, CompressedTable] = {}
    for name in modules:
        module = model.get_submodule(name)
        if isinstance(module, nn.Embedding) and module.num_embeddings >= SMALLEST:
            if isinstance(form, MixedDimensions) and evenly_seen(module, counts.get(name)):
                continue
            table = _table(module.weight.detach(), form, counts.get(name)).train(module.training)
            table.frequent.padding_idx = 0 if module.padding_idx == 0 else None
            if sum(p.numel() for p in table.parameters()) < module.weight.numel():
                made[name] = table
    return made


def _table(weight: Tensor, form: TableForm, counts: Tensor | None) -> CompressedTable:
    if isinstance(form, SharedRows):
        return SharedRowsTable.of(weight, form.own)
    return MixedTable.of(weight, form.temperature, counts)


def _moved(anatomy: Anatomy, made: Mapping[str, CompressedTable]) -> Anatomy:
    """Cuts of a table's dimensions become cuts of those of its parts."""

    def moved(cut: Cut) -> tuple[Cut, ...]:
        name = cut.tensor.removesuffix(".weight")
        return tuple(replace(cut, tensor=f"{name}.{part}") for part in made[name].wide()) if name in made else (cut,)

    def of(group: Group) -> Group:
        widths = (replace(w, cuts=tuple(new for cut in w.cuts for new in moved(cut))) for w in group.widths)
        return replace(group, widths=tuple(widths))

    return replace(anatomy, groups=tuple(of(group) for group in anatomy.groups))


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
