"""Compressed tables against lookups one id at a time in numpy, exact cases, and the exported graph."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from objectives.compression.embeddings import (
    MixedTable,
    QuotientRemainderTable,
    block_dimensions,
    block_sizes,
    compress_tables,
    evenly_seen,
    seen,
)
from objectives.compression.importance import Evidence, importances
from objectives.compression.pruning import prune
from spaces.model_structure import AxisSlice, Group, ModelStructure, PrunableDim, Table
from spaces.techniques.embeddings import SMALLEST, MixedDimensions, QuotientRemainder, TableForm
from spaces.techniques.pruning import IMPORTANCES, Importance, Pruning
from tests.protos import check_parity, compute_once, once_inputs, run_onnx, split_embeddings, to_onnx

ROWS = {"user": 300, "item": 1000, "hour": 24}
D = 16
LARGE = ("tables.user", "tables.item")
FORMS: list[list[TableForm]] = [
    [QuotientRemainder(table, 0.1) for table in LARGE],
    [MixedDimensions(table, 0.5) for table in LARGE],
]


def zipf(rows: int) -> Tensor:
    """Lookups of codes that are sorted by frequency: 0 is unseen, 1 the most frequent."""
    return 1 / torch.arange(rows).clamp(min=1).double()


COUNTS = {table: zipf(ROWS[table.removeprefix("tables.")]) for table in LARGE}


class Model(nn.Module):
    """The item's several tags share its table: the sum of those that are not padding."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(rows, D) for name, rows in ROWS.items()})
        self.layer = nn.Linear(3 * D, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, user: Tensor, item: Tensor, hour: Tensor) -> Tensor:
        items = (self.tables["item"](item) * (item != 0).unsqueeze(-1)).sum(1)
        x = torch.cat([self.tables["user"](user), items, self.tables["hour"](hour)], 1)
        return self.head(torch.relu(self.layer(x))).squeeze(1)  # type: ignore[no-any-return]


def structure() -> ModelStructure:
    tables = tuple(f"tables.{name}" for name in ROWS)
    axis_slices = (
        *(AxisSlice(f"{table}.weight", 1) for table in tables),
        AxisSlice("layer.weight", 1, repeats=3, period=D),
    )
    units = PrunableDim(
        "layer", 8, (AxisSlice("layer.weight", 0), AxisSlice("layer.bias", 0), AxisSlice("head.weight", 1))
    )
    return ModelStructure(
        (
            Group("tables", "table", tables, D * sum(ROWS.values()), (PrunableDim("embedding_dim", D, axis_slices),)),
            Group("layer", "linear", ("layer",), 8 * (3 * D + 1), (units,)),
        ),
        tuple(Table(f"tables.{name}", rows, (name,)) for name, rows in ROWS.items()),
    )


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture
def rows() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"user": (300,), "item": (300, 4), "hour": (300,)}
    return {name: torch.randint(0, ROWS[name], shape, generator=generator) for name, shape in shapes.items()}


def scores(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return model(**inputs)  # type: ignore[no-any-return]


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def whole(table: nn.Module, count: int) -> Tensor:
    """Return every row that a table gives, (count, d)."""
    with torch.inference_mode():
        return table(torch.arange(count))  # type: ignore[no-any-return]


# -- rows that are shared


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37])
@pytest.mark.parametrize("count", [256, 300, 1001])
def test_rare_ids_are_products_of_quotient_and_remainder(count: int, share: float) -> None:
    """Products are computed one id at a time in numpy, by the rule of the paper."""
    table = drawn(0, count, D)
    made = QuotientRemainderTable.of(table, share, zipf(count))
    held, own = arrays(made), max(1, math.ceil(share * count))
    m = math.ceil(math.sqrt(count - own))
    assert {name: len(array) for name, array in held.items()} == {
        "own.weight": own, "quotient.weight": math.ceil((count - own) / m), "remainder.weight": m
    }  # fmt: skip
    for i, got in enumerate(whole(made, count).numpy()):
        q, r = divmod(i - own, m)
        expected = table[i] if i < own else held["quotient.weight"][q] * held["remainder.weight"][r]
        assert np.array_equal(got, expected), i


@settings(max_examples=25)
@given(st.integers(2, 60), st.integers(1, 200), st.integers(0, 2**31))
def test_rows_that_are_products_are_met_exactly(own: int, rare: int, seed: int) -> None:
    """Rows are met exactly whatever the last line of the grid has, and where a factor is zero."""
    m = math.ceil(math.sqrt(rare))
    quotient, remainder = drawn(seed, math.ceil(rare / m), D), drawn(seed + 1, m, D)
    quotient[:, 0], remainder[0, 1] = 0, 0
    products = (quotient[:, None] * remainder).reshape(-1, D)[:rare]
    table = torch.cat([drawn(seed + 2, own, D), products])
    made = QuotientRemainderTable.of(table, (own - 0.5) / len(table), zipf(len(table)))
    assert torch.allclose(whole(made, len(table)), table, atol=1e-4)


@pytest.mark.parametrize("side", [20, 150])
def test_a_complete_grid_is_the_nearest_of_rank_one_along_each_dimension(side: int) -> None:
    """Values without any structure have the singular values that are the hardest to tell apart."""
    table = drawn(3, 1 + side * side, 3)
    got = whole(QuotientRemainderTable.of(table, 0.0, zipf(len(table))), len(table))[1:].reshape(side, side, 3)
    for dimension in range(3):
        grid = table[1:].reshape(side, side, 3)[:, :, dimension].numpy()
        gone = np.linalg.svd(grid, compute_uv=False)[1:]
        distance = np.linalg.norm(grid - got[:, :, dimension].numpy())
        assert distance == pytest.approx(np.sqrt((gone**2).sum()), rel=1e-3)


PEAK = """
from pathlib import Path
import torch
from objectives.compression.embeddings import QuotientRemainderTable

def most():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

torch.set_num_threads(1)
QuotientRemainderTable.of(torch.randn(300, 64), 0.2, torch.arange(300))  # what is loaded once
table, counts = torch.randn(100_000, 64), torch.arange(100_000)
before = most()
QuotientRemainderTable.of(table, 0.2, counts)
print((most() - before) / table.nbytes)
"""


def test_rows_are_shared_in_little_more_memory_than_the_table_has() -> None:
    """Memory holds the rows in another order, and what stays; not the singular vectors of all dimensions as well."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not tell a process's own memory")
    done = subprocess.run(
        [sys.executable, "-c", PEAK], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 2.5


# -- dimensions by frequency


def test_blocks_double_and_hold_every_row() -> None:
    assert block_sizes(1500) == [100, 200, 400, 800]
    assert block_sizes(1000) == [67, 134, 268, 531]
    assert all(sum(block_sizes(rows)) == rows and min(block_sizes(rows)) > 0 for rows in range(SMALLEST, 3000))


def test_dimensions_are_the_papers_of_zipfs_law() -> None:
    """Dimensions are d (p_k / p_0)^temperature with the mean of 1 / code over each block, summed here term by term."""
    sizes, edges = [100, 200, 400, 800], [0, 100, 300, 700, 1500]
    means = [sum(1 / max(1, c) for c in range(a, b)) / (b - a) for a, b in pairwise(edges)]
    for temperature in (0.1, 0.5, 1.0):
        expected = [max(1, round(32 * (mean / means[0]) ** temperature)) for mean in means]
        assert block_dimensions(sizes, 32, temperature, zipf(1500)) == expected


def test_dimensions_follow_counts_and_never_exceed_the_whole() -> None:
    counts = torch.cat([torch.full((n,), c) for n, c in ((100, 16.0), (200, 4.0), (400, 32.0), (800, 0.0))])
    assert block_dimensions([100, 200, 400, 800], 32, 0.5, counts) == [32, 16, 32, 1]
    assert block_dimensions([100, 200, 400, 800], 32, 1.0, counts) == [32, 8, 32, 1]


def test_a_block_that_its_projection_would_not_make_smaller_keeps_all_dimensions() -> None:
    """20 rows of 64: 16 dimensions and their projection hold 16 (20 + 64) = 1344 for 1280; 15 hold 1260."""
    assert block_dimensions([20, 20], 64, 1.0, torch.tensor([16.0] * 20 + [4.0] * 20)) == [64, 64]
    assert block_dimensions([20, 20], 64, 1.0, torch.tensor([64.0] * 20 + [15.0] * 20)) == [64, 15]


@pytest.mark.parametrize("temperature", [0.1, 0.6, 1.0])
def test_rows_that_are_seen_as_often_have_no_dimensions_to_mix(temperature: float) -> None:
    model, form = Model(), MixedDimensions("tables.item", temperature)
    item = model.tables["item"]
    assert isinstance(item, nn.Embedding)
    even = torch.full((1000,), 10)
    rare = torch.arange(1000, 0, -1)
    assert evenly_seen(item, even) and not evenly_seen(item, rare)
    assert not seen(item, None) and not seen(item, torch.zeros(1000)) and seen(item, rare)
    with pytest.raises(ValueError, match=r"MixedDimensions\(.*'tables.item'"):
        compress_tables(model, [form], structure(), {"tables.item": even})
    compress_tables(model, [form], structure(), {"tables.item": rare})


def test_ids_are_rows_of_their_block_times_its_projection() -> None:
    """Each id is computed alone in numpy, each block the nearest of its rank."""
    table = drawn(5, 1000, D)
    got, sizes = whole(MixedTable.of(table, 0.5, zipf(1000)), 1000).numpy(), block_sizes(1000)
    dimensions = block_dimensions(sizes, D, 0.5, zipf(1000))
    assert dimensions[0] == D and sorted(dimensions, reverse=True) == dimensions and dimensions[-1] < D / 2
    start = 0
    for size, rank in zip(sizes, dimensions, strict=True):
        left, values, right = np.linalg.svd(table[start : start + size].numpy(), full_matrices=False)
        nearest = (left[:, :rank] * values[:rank]) @ right[:rank]
        assert np.allclose(got[start : start + size], nearest, atol=1e-5)
        start += size


def test_a_table_of_low_rank_is_met_exactly() -> None:
    table = drawn(6, 1000, 2) @ drawn(7, 2, D)
    assert torch.allclose(whole(MixedTable.of(table, 0.5, zipf(1000)), 1000), table, atol=1e-4)


# -- whole models


@pytest.mark.parametrize("forms", FORMS, ids=["shared", "mixed"])
def test_tables_with_rows_enough_are_compressed_and_nothing_else(model: nn.Module, forms: list[TableForm]) -> None:
    before = copy.deepcopy(model.state_dict())
    compressed, smaller = compress_tables(model, forms, structure(), COUNTS)
    after = compressed.state_dict()
    for name in ("user", "item"):
        assert isinstance(compressed.get_submodule(f"tables.{name}"), (QuotientRemainderTable, MixedTable))
        assert f"tables.{name}.weight" not in after
    assert all(
        torch.equal(after[name], tensor)
        for name, tensor in before.items()
        if name not in ("tables.user.weight", "tables.item.weight")
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "a copy was changed"
    held = sum(t.numel() for name, t in after.items() if name.startswith("tables."))
    assert smaller.group("tables").parameters == held < 0.7 * structure().group("tables").parameters


def test_a_table_by_itself_leaves_the_others_as_they_are(model: nn.Module, rows: dict[str, Tensor]) -> None:
    forms = [QuotientRemainder("tables.item", 0.1), MixedDimensions("tables.user", 0.5)]
    compressed, _ = compress_tables(model, forms, structure(), COUNTS)
    tables = {name: compressed.get_submodule(f"tables.{name}") for name in ROWS}
    assert isinstance(tables["item"], QuotientRemainderTable) and isinstance(tables["user"], MixedTable)
    assert torch.equal(tables["hour"].get_parameter("weight"), model.get_parameter("tables.hour.weight"))
    one, _ = compress_tables(model, forms[:1], structure(), COUNTS)
    assert torch.equal(one.get_parameter("tables.user.weight"), model.get_parameter("tables.user.weight"))
    whole = copy.deepcopy(model)
    every = torch.arange(ROWS["item"])
    whole.get_submodule("tables.item").get_parameter("weight").data = one.get_submodule("tables.item")(every).detach()
    assert torch.allclose(one(**rows), whole(**rows), atol=1e-5)


def test_a_groups_form_is_not_that_of_a_heavy_table() -> None:
    """A group's form is neither that of a heavier group nor one that another form names, whichever is asked for."""
    rows = {"user": 2000, "item": 3000, "zip": 600, "city": 700, "hour": 24}
    model = nn.Module()
    model.tables = nn.ModuleDict({name: nn.Embedding(count, D) for name, count in rows.items()})
    names = tuple(f"tables.{name}" for name in rows)
    group = Group("tables", "table", names, D * sum(rows.values()), (), "left alone")
    whole = ModelStructure((group,), tuple(Table(f"tables.{name}", count, (name,)) for name, count in rows.items()))

    counts = {f"tables.{name}": zipf(count) for name, count in rows.items()}

    def made(*forms: TableForm) -> dict[str, type[nn.Module]]:
        compressed, _ = compress_tables(model, forms, whole, counts)
        return {name: type(compressed.get_submodule(f"tables.{name}")) for name in rows}

    plain = dict.fromkeys(rows, nn.Embedding)
    shared = made(QuotientRemainder("tables", 0.1))
    assert shared == {**plain, "zip": QuotientRemainderTable, "city": QuotientRemainderTable}
    assert made(QuotientRemainder("tables.item", 0.1)) == {**plain, "item": QuotientRemainderTable}
    both = made(
        QuotientRemainder("tables", 0.1), MixedDimensions("tables.item", 0.5), MixedDimensions("tables.zip", 0.5)
    )
    assert both == {**plain, "city": QuotientRemainderTable, "item": MixedTable, "zip": MixedTable}


def test_parameters_are_as_many_as_the_papers(model: nn.Module) -> None:
    shared, _ = compress_tables(model, FORMS[0], structure(), COUNTS)
    sizes = {name: sum(p.numel() for p in shared.get_submodule(f"tables.{name}").parameters()) for name in ROWS}
    assert sizes == {"user": D * (30 + 17 + 16), "item": D * (100 + 30 + 30), "hour": D * 24}
    mixed, _ = compress_tables(model, FORMS[1], structure(), COUNTS)
    numbers = zip(block_sizes(1000), block_dimensions(block_sizes(1000), D, 0.5, zipf(1000)), strict=True)
    expected = sum(d * n + (d * D if d < D else 0) for n, d in numbers)
    assert sum(p.numel() for p in mixed.get_submodule("tables.item").parameters()) == expected


@pytest.mark.parametrize("forms", FORMS, ids=["shared", "mixed"])
def test_a_compressed_model_is_the_one_with_the_rows_that_its_tables_give(
    model: nn.Module, rows: dict[str, Tensor], forms: list[TableForm]
) -> None:
    compressed, _ = compress_tables(model, forms, structure(), COUNTS)
    filled = copy.deepcopy(model)
    for name in ("user", "item"):
        filled.get_parameter(f"tables.{name}.weight").data = whole(
            compressed.get_submodule(f"tables.{name}"), ROWS[name]
        )
    assert torch.allclose(scores(compressed, rows), scores(filled, rows), atol=1e-5)
    assert not torch.allclose(scores(compressed, rows), scores(model, rows), atol=1e-2)


@pytest.mark.parametrize("forms", FORMS, ids=["shared", "mixed"])
def test_ids_of_any_shape_give_embeddings(model: nn.Module, forms: list[TableForm]) -> None:
    table = compress_tables(model, forms, structure(), COUNTS)[0].get_submodule("tables.item")
    ids = torch.randint(0, 1000, (2, 3, 4))
    for shape in ((), (24,), (2, 3, 4)):
        given_ids = ids.flatten()[0] if not shape else ids.reshape(shape)
        got = table(given_ids)
        assert got.shape == (*shape, D)
        assert torch.allclose(got.reshape(-1, D)[0], table(ids[0, 0, 0]), atol=1e-6)


@pytest.mark.parametrize("forms", FORMS, ids=["shared", "mixed"])
def test_every_part_is_trained(model: nn.Module, forms: list[TableForm]) -> None:
    table = compress_tables(model, forms, structure(), COUNTS)[0].get_submodule("tables.item")
    table(torch.arange(1000)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in table.parameters())


@pytest.mark.parametrize("forms", FORMS, ids=["shared", "mixed"])
def test_parts_of_a_sparse_table_are_sparse_and_those_of_a_frozen_one_frozen(
    model: nn.Module, forms: list[TableForm]
) -> None:
    model.tables["item"] = nn.Embedding(1000, D, sparse=True)  # type: ignore[index,operator]
    model.get_parameter("tables.user.weight").requires_grad_(False)
    compressed, _ = compress_tables(model, forms, structure(), COUNTS)
    item, user = compressed.get_submodule("tables.item"), compressed.get_submodule("tables.user")
    item(torch.tensor([1, 999])).sum().backward()
    parts = [part.weight.grad for part in item.modules() if isinstance(part, nn.Embedding)]
    assert all(gradient is not None and gradient.is_sparse for gradient in parts)
    assert not any(parameter.requires_grad for parameter in user.parameters())


@pytest.mark.parametrize("forms", FORMS, ids=["shared", "mixed"])
def test_padding_stays_padding(model: nn.Module, forms: list[TableForm]) -> None:
    """Code 0 of a table with padding_idx 0 gets no gradient."""
    model.tables["item"] = nn.Embedding(1000, D, padding_idx=0)  # type: ignore[index,operator]
    table = compress_tables(model, forms, structure(), COUNTS)[0].get_submodule("tables.item")
    table(torch.tensor([0, 1, 2])).sum().backward()
    grads = table.frequent.weight.grad
    assert grads is not None and grads[0].abs().sum() == 0 and (grads[1:3] == 1).all()
    assert (table(torch.tensor(0)) == 0).all()


# -- ids in any order


def shuffled(counts: Tensor, seed: int) -> Tensor:
    return counts[torch.randperm(len(counts), generator=torch.Generator().manual_seed(seed))]


@settings(max_examples=25)
@given(st.integers(256, 400), st.sampled_from([0.0, 0.1, 0.4]), st.integers(0, 2**31), st.data())
def test_frequent_ids_keep_their_rows_whatever_their_order(
    rows: int, share: float, seed: int, data: st.DataObject
) -> None:
    """Frequent ids by brute force: the padding row, or row 0, and the most frequent ids have rows of their own."""
    padding = data.draw(st.sampled_from([None, 0, rows // 3, rows - 1]))
    counts, table = shuffled(torch.arange(rows) ** 2, seed), drawn(seed, rows, D)
    own = max(1, math.ceil(share * rows))
    first = padding or 0
    rest = sorted((i for i in range(rows) if i != first), key=lambda i: -int(counts[i]))
    frequent = [first, *rest[: own - 1]]
    made = QuotientRemainderTable.of(table, share, counts, padding)
    got = whole(made, rows)
    assert made.frequent.num_embeddings == own
    assert torch.equal(got[frequent], table[frequent])
    # The last line of the grid may hold one row alone, which is met exactly.
    assert torch.isclose(got[rest[own - 1 :]], table[rest[own - 1 :]], atol=1e-6).all(1).sum() <= 1


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([None, 0, 400, 999]))
def test_blocks_are_of_ids_by_their_counts_whatever_their_order(seed: int, padding: int | None) -> None:
    """Blocks equal those of the same ids renamed so that they are sorted, with the same rows."""
    counts, table = shuffled(2 ** torch.linspace(20, 0, 1000, dtype=torch.float64), seed), drawn(seed, 1000, D)
    first = padding or 0
    rest = sorted((i for i in range(1000) if i != first), key=lambda i: -float(counts[i]))
    by_rank = [first, *rest]
    told = counts.clone()
    told[first] = 0 if padding is not None else counts[first]
    edges = np.cumsum([0, *block_sizes(1000)])
    blocks = [sorted(by_rank[a:b]) for a, b in pairwise(edges)]
    means = [float(told[block].mean()) for block in blocks]
    got = whole(MixedTable.of(table, 0.2, counts, padding), 1000).numpy()
    for block, mean in zip(blocks, means, strict=True):
        rank = max(1, min(D, round(D * (mean / means[0]) ** 0.2)))
        rank = rank if rank * (len(block) + D) < len(block) * D else D
        left, values, right = np.linalg.svd(table[block].numpy(), full_matrices=False)
        assert np.allclose(got[block], (left[:, :rank] * values[:rank]) @ right[:rank], atol=1e-5)


@pytest.mark.parametrize("forms", FORMS, ids=["shared", "mixed"])
def test_a_models_frequent_ids_keep_their_rows(model: nn.Module, forms: list[TableForm]) -> None:
    """The 66 most frequent of 1000 have a row of their own in either form, whichever ids they are."""
    counts = shuffled(zipf(1000), 3)
    compressed, _ = compress_tables(model, forms, structure(), COUNTS | {"tables.item": counts})
    frequent = counts.argsort(descending=True)[:66]
    got = whole(compressed.get_submodule("tables.item"), 1000)
    assert torch.equal(got[frequent], model.get_parameter("tables.item.weight")[frequent])


@pytest.mark.parametrize("forms", FORMS, ids=["shared", "mixed"])
def test_ids_that_are_sorted_need_no_places(model: nn.Module, forms: list[TableForm]) -> None:
    """Sorted ids need none also where counts fall within a part alone; other tables hold one more number a row."""

    def made(counts: Tensor) -> nn.Module:
        of = COUNTS | {"tables.item": counts}
        return compress_tables(model, forms, structure(), of)[0].get_submodule("tables.item")

    swapped = zipf(1000)
    swapped[[3, 4]] = swapped[[4, 3]]
    assert {type(made(counts).places) for counts in (zipf(1000), swapped)} == {type(None)}
    places = made(shuffled(zipf(1000), 0)).places
    assert isinstance(places, Tensor) and places.dtype == torch.int32
    assert sorted(places.flatten().tolist()) == list(range(1000))


@pytest.mark.parametrize("padding", [0, 5, 999])
@pytest.mark.parametrize("forms", FORMS, ids=["shared", "mixed"])
def test_padding_keeps_its_zero_row_wherever_it_is(model: nn.Module, forms: list[TableForm], padding: int) -> None:
    """A padding row is exactly zero, also after optimizer steps, however often it is looked up, and if it never is."""
    model.tables["item"] = nn.Embedding(1000, D, padding_idx=padding)  # type: ignore[index,operator]
    for often in (0.0, 1e9):
        counts = zipf(1000)
        counts[padding] = often
        compressed, _ = compress_tables(model, forms, structure(), COUNTS | {"tables.item": counts})
        table = compressed.get_submodule("tables.item")
        optimizer = torch.optim.AdamW(table.parameters(), lr=0.1, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (table(torch.arange(1000)) - 1).square().sum().backward()
            optimizer.step()
        got = whole(table, 1000)
        assert (got[padding] == 0).all()
        assert (got.abs().sum(1) > 0).sum() == 999


@pytest.mark.parametrize("padding", [5, 999])
def test_lookups_of_padding_do_not_tell_how_many_dimensions_matter(model: nn.Module, padding: int) -> None:
    model.tables["item"] = nn.Embedding(1000, D, padding_idx=padding)  # type: ignore[index,operator]

    def dimensions(often: float) -> list[int]:
        counts = shuffled(zipf(1000), 1)
        counts[padding] = often
        of = COUNTS | {"tables.item": counts}
        compressed, _ = compress_tables(model, [MixedDimensions("tables.item", 0.5)], structure(), of)
        table = compressed.get_submodule("tables.item")
        assert isinstance(table, MixedTable)
        return [block.weight.shape[1] for block in table.blocks]  # type: ignore[union-attr,misc]

    assert dimensions(1e9) == dimensions(0.0)


def test_a_table_of_unknown_counts_stays_as_it_is(model: nn.Module) -> None:
    known = {"tables.user": COUNTS["tables.user"]}
    compressed, _ = compress_tables(model, FORMS[0][:1], structure(), known)
    assert isinstance(compressed.get_submodule("tables.item"), nn.Embedding)
    with pytest.raises(ValueError, match=r"group='tables.item'.*256 rows"):
        compress_tables(model, FORMS[0], structure(), known)


# -- the exported graph


@pytest.mark.slow
@pytest.mark.parametrize("sorted_ids", [True, False], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("forms", FORMS, ids=["shared", "mixed"])
def test_compressed_tables_are_exported_for_any_number_of_rows(
    model: nn.Module, rows: dict[str, Tensor], forms: list[TableForm], sorted_ids: bool
) -> None:
    """The exported graph also allows the user's side once, and a cut at the lookups."""
    counts = COUNTS if sorted_ids else {name: shuffled(of, 0) for name, of in COUNTS.items()}
    compressed, _ = compress_tables(model, forms, structure(), counts)
    graph = to_onnx(compressed, rows)
    assert check_parity(compressed, graph, rows) < 1e-5
    held = {tensor.name for tensor in graph.graph.initializer}
    parts = {name for name, _ in compressed.named_parameters() if name.startswith("tables.item.")}
    assert {f"model.{name}" for name in parts} <= held, "parts keep their names"
    ops = {node.op_type for node in graph.graph.node}
    assert not ops & {"Loop", "If", "Scan", "GatherND", "ScatterND", "NonZero", "Reshape"}

    once = compute_once(graph, frozenset({"user", "hour"}))
    assert once_inputs(once) == {"user", "hour"}
    of_one = {n: v[:1].expand(len(v)).numpy() if n != "item" else v.numpy() for n, v in rows.items()}
    assert np.allclose(run_onnx(once, of_one), run_onnx(graph, of_one), atol=1e-5)

    tables, dense = split_embeddings(graph)
    assert {t.name for t in dense.graph.initializer}.isdisjoint({"model.tables.item.full_rows_share.weight"})
    assert len(tables.graph.output) >= 3


# -- pruned afterwards


def evidence(rows: dict[str, Tensor]) -> Evidence:
    labels = torch.rand(300, generator=torch.Generator().manual_seed(2)).round()
    loss = nn.functional.binary_cross_entropy_with_logits
    return Evidence([(rows, labels)], lambda model, inputs: model(**inputs), loss)


@pytest.mark.parametrize("forms", FORMS, ids=["shared", "mixed"])
@pytest.mark.parametrize("importance", IMPORTANCES)
def test_dimensions_of_compressed_tables_can_be_pruned(
    model: nn.Module, rows: dict[str, Tensor], forms: list[TableForm], importance: Importance
) -> None:
    """Pruned tables equal the compressed model with those dimensions at zero where they are read."""
    compressed, small = compress_tables(model, forms, structure(), COUNTS)
    width = small.group("tables").dims[0]
    (found,) = importances(compressed, [width], importance, evidence(rows))
    gone = np.argsort(found.numpy(), kind="stable")[: D // 2]
    asked = Pruning((("tables", 0.5),), importance, multiple=1)
    pruned, _ = prune(compressed, asked, small, evidence(rows))
    with torch.no_grad():
        for repeat in range(3):
            compressed.get_parameter("layer.weight")[:, gone + repeat * D] = 0
    assert torch.allclose(scores(pruned, rows), scores(compressed, rows), atol=1e-5)
    assert whole(pruned.get_submodule("tables.item"), 10).shape == (10, D // 2)


@pytest.mark.parametrize("forms", FORMS, ids=["shared", "mixed"])
def test_activation_sees_what_the_whole_table_gives(
    model: nn.Module, rows: dict[str, Tensor], forms: list[TableForm]
) -> None:
    compressed, small = compress_tables(model, forms, structure(), COUNTS)
    expected = np.zeros(D)
    for name in ROWS:
        expected += (
            whole(compressed.get_submodule(f"tables.{name}"), ROWS[name])[rows[name].flatten()].abs().mean(0).numpy()
        )
    (got,) = importances(compressed, small.group("tables").dims, "activation", evidence(rows))
    assert np.allclose(got, expected / expected.sum(), rtol=1e-4)


# -- refusals


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (QuotientRemainder("layer", 0.1), "'layer' .*linear"),
        (
            QuotientRemainder("tables.item", 0.999),
            r"QuotientRemainder\(.*256 rows",
        ),
        (MixedDimensions("tables.item", 1e-6), r"MixedDimensions\("),
        (QuotientRemainder("tables", 0.1), r"QuotientRemainder\("),  # but for what is heavy
        (QuotientRemainder("nowhere", 0.1), r"groups .*'nowhere'"),
    ],
)
def test_what_makes_no_table_smaller_is_refused(model: nn.Module, form: TableForm, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress_tables(model, [form], structure(), COUNTS)


def test_small_tables_alone_are_refused(model: nn.Module) -> None:
    only = ModelStructure((Group("tables", "table", ("tables.hour",), 24 * D, (), "left alone"),))
    with pytest.raises(ValueError, match=r"QuotientRemainder\(.*256 rows"):
        compress_tables(model, [QuotientRemainder("tables", 0.1)], only, {"tables.hour": zipf(24)})


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (torch.ones(999), r"Counts .*\(1000,\).*\(999,\)"),
        (torch.cat([torch.zeros(67), torch.ones(933)]), r"MixedDimensions\("),
        (torch.zeros(1000), r"MixedDimensions\("),
    ],
)
def test_counts_that_tell_nothing_are_refused(model: nn.Module, counts: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress_tables(model, [MixedDimensions("tables.item", 0.5)], structure(), {"tables.item": counts})


def test_counts_of_a_table_set_its_dimensions(model: nn.Module) -> None:
    counts = torch.cat([torch.full((n,), c) for n, c in zip(block_sizes(1000), (16.0, 4.0, 1.0, 1.0), strict=True)])
    compressed, _ = compress_tables(model, [MixedDimensions("tables.item", 0.5)], structure(), {"tables.item": counts})
    table = compressed.get_submodule("tables.item")
    assert isinstance(table, MixedTable)
    assert [block.weight.shape[1] for block in table.blocks] == [D, D // 2, D // 4, D // 4]  # type: ignore[union-attr]
