"""Groups, and tables by themselves, that are stored alike; against a count by hand and by properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.model_structure import Group, ModelStructure, Table

COLUMNS = {"user": 500, "item": 400, "hour": 100}


def structure(rows: dict[str, int]) -> ModelStructure:
    tables = tuple(f"tables.{name}" for name in rows)
    return ModelStructure(
        (Group("tables", "table", tables, 9, (), "tied"), Group("mlp", "linear", ("mlp.0", "mlp.2"), 9, (), "whole")),
        tuple(Table(f"tables.{name}", count, (name,)) for name, count in rows.items()),
    )


def test_a_table_is_heavy_with_a_fifth_of_the_rows_unless_it_leaves_less_to_the_others() -> None:
    assert structure(COLUMNS).heavy_tables() == ("tables.user", "tables.item")
    assert structure({"item": 900, "position": 50}).heavy_tables() == (), "one alone is its group"
    assert structure({"user": 800, "item": 200}).heavy_tables() == ("tables.user", "tables.item")
    assert structure({"user": 801, "item": 199}).heavy_tables() == ()
    assert structure({f"field{i}": 100 for i in range(26)}).heavy_tables() == ()
    assert ModelStructure(()).heavy_tables() == ()


def test_named_tables_leave_their_group_and_an_empty_group_goes() -> None:
    of = structure(COLUMNS)
    whole = {"tables": ("tables.user", "tables.item", "tables.hour"), "mlp": ("mlp.0", "mlp.2")}
    assert of.stored() == of.stored(("tables", "mlp")) == whole
    assert of.stored(("tables.item", "mlp")) == {
        "tables": ("tables.user", "tables.hour"),
        "mlp": ("mlp.0", "mlp.2"),
        "tables.item": ("tables.item",),
    }
    assert "tables" not in of.stored(f"tables.{name}" for name in COLUMNS)
    groups, tables = r"\['tables', 'mlp'\]", r"\['tables.hour', 'tables.item', 'tables.user'\]"
    for wrong in ("mlp.0", "tables.town"):
        with pytest.raises(ValueError, match=f"{groups} .*{tables}, .*{wrong!r}"):
            of.stored((wrong,))


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 10_000), min_size=1), st.data())
def test_whatever_is_named_each_module_is_stored_once(rows: dict[str, int], data: st.DataObject) -> None:
    of = structure(rows)
    named = data.draw(st.lists(st.sampled_from([table.name for table in of.tables])))
    for names in (named, of.heavy_tables()):
        modules = [module for held in of.stored(names).values() for module in held]
        assert sorted(modules) == sorted(module for group in of.groups for module in group.modules)
        assert all(of.stored(names)[name] == (name,) for name in names)
