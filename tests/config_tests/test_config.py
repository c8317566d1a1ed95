"""The study file: every wrong input is one line that names its field; every right one survives YAML and JSON."""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import stat
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from objectives.recommenders.datasets.table import Schema
from search.config import sections as module
from search.config import space_sections
from search.config.data_sections import ColumnsConfig, CriteoData, MovieLensData, SyntheticData, TableData
from search.config.sections import BudgetConfig, StudyConfig, WorkersConfig
from search.config.study_file import FREE_SECTIONS, difference, load, parse, preset_names, write_template
from search.config.yaml_reader import plain as plain_data
from search.errors import ConfigError
from spaces.domains import Choice, Float, Integer
from spaces.serialization import from_plain
from spaces.techniques.distillation import Distillation
from spaces.techniques.embeddings import MixedDimensions, QuotientRemainder
from spaces.techniques.low_rank import LowRank
from spaces.techniques.placement import parse_layout
from spaces.techniques.pruning import IMPORTANCES, Pruning
from spaces.techniques.quantization import CALIBRATIONS
from spaces.weights import FULL, MIXED, SHARED

SMALLEST = {"name": "a-study", "data": {"source": "ml-100k"}}
SOURCES = "ml-100k, movielens:DIR, table:FILE, criteo:FILE or synthetic"
COLUMNS = {"label": "clicked", "timestamp": "time", "user": "user_id", "item": "item_id"}
TEMPLATE = resources.files("search.config").joinpath("presets", "template.yaml").read_text(encoding="utf-8")


def as_yaml(data: object) -> str:
    """A YAML 1.2 document that another library's reader would read to the same data."""
    stream, yaml = io.StringIO(), YAML(typ="safe", pure=True)
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(data, stream)
    return stream.getvalue()


def written(folder: Path, text: str) -> str:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refused(call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **named)
    line = str(caught.value)
    assert len(line.splitlines()) == 1 and line.isprintable()
    return line


def study(**sections: Any) -> StudyConfig:
    return parse({**SMALLEST, **sections})


def table(**columns: Any) -> dict[str, Any]:
    """A section of data in a table."""
    return {"data": {"source": "table:clicks.csv", "columns": {**COLUMNS, **columns}}}


# --- what is read ---


def test_only_name_and_source_are_needed() -> None:
    config = parse(SMALLEST)
    assert config == StudyConfig(name="a-study", data=MovieLensData(source="ml-100k"))
    assert config.objectives == ("latency_p95", "throughput", "quality")
    assert (config.quality.max_loss, config.traffic.load, config.slo.percentile) == (0.01, 0.4, 95)
    assert (config.traffic.rows.median, config.traffic.rows.sigma, config.traffic.rows.max) == (200, 0.6, 1000)
    assert config.budget == BudgetConfig(minutes=10.0, trials=None)
    assert config.workers == WorkersConfig(builders=None, fit_seconds=600.0, job_seconds=120.0)
    assert config.space.pruning is None and config.space.placement.engines is None


def test_synthetic_data_have_sizes_and_others_do_not() -> None:
    data = study(data={"source": "synthetic", "rows": 500, "users": 50, "order": 0.8}).data
    assert data == SyntheticData(rows=500, users=50, items=2000, fields=8, user_turnover=0.0, order=0.8)
    for source in ("ml-100k", "movielens:d", "criteo:day_0"):
        assert refused(study, data={"source": source, "rows": 500}) == (
            "data.rows: unknown key; only data of source synthetic have it (got 500)"
        )
    line = "data.rows: unknown key; only data of source synthetic have it (got 500)"
    assert refused(study, data={**table()["data"], "rows": 500}) == line


def test_a_table_has_columns_and_others_do_not() -> None:
    written_as = {
        "categorical": ["country", "category"],
        "numeric": "price",
        "multi": ["tags"],
        "separator": ";",
        "of_user": "country",
        "of_item": ["category", "tags"],
        "positive_from": 4,
    }
    data = study(**table(**written_as)).data
    assert isinstance(data, TableData) and data.source == "table:clicks.csv"
    columns = data.columns
    assert columns.features == ("country", "category", "price", "tags")
    assert (columns.label, columns.timestamp, columns.user, columns.item) == ("clicked", "time", "user_id", "item_id")
    assert (columns.of_user, columns.of_item, columns.separator) == (("country",), ("category", "tags"), ";")
    assert repr(columns.positive_from) == "4.0"
    smallest = ColumnsConfig(label="y", timestamp="t", user="user")
    assert (smallest.item, smallest.features, smallest.separator, smallest.positive_from) == (None, (), "|", None)
    for source in ("ml-100k", "movielens:d", "criteo:day_0", "synthetic"):
        assert refused(study, data={"source": source, "columns": {}}) == (
            "data.columns: unknown key; only data of source table have it (got {})"
        )


@pytest.mark.parametrize("columns", [{}, {"categorical": ["c"], "of_user": ["c"]}, {"user": None, "numeric": ["n"]}])
def test_columns_become_the_schema_that_reads_the_table(columns: dict[str, Any]) -> None:
    data = study(**table(**columns)).data
    assert isinstance(data, TableData)
    schema = from_plain(Schema, data.columns.model_dump(mode="json"))
    assert (schema.label, schema.user, schema.item) == ("clicked", data.columns.user, "item_id")
    assert tuple(schema.kinds) == data.columns.features


def test_criteos_form_needs_no_more_than_its_file() -> None:
    assert study(data={"source": "criteo:train.txt"}).data == CriteoData(source="criteo:train.txt")


@pytest.mark.parametrize(
    ("recommender", "given", "metric"),
    [
        ("dcn-v2", None, "auc"),
        ("dlrm", None, "auc"),
        ("dlrm", "gauc", "gauc"),
        ("sasrec", None, "ndcg@10"),
        ("sasrec", "hr@5", "hr@5"),
        ("sasrec", "ndcg@100", "ndcg@100"),
    ],
)
def test_the_metric_is_the_studys_or_the_familys_own(recommender: str, given: str | None, metric: str) -> None:
    config = study(recommender=recommender, quality={"metric": given})
    assert (config.quality.metric, config.metric) == (given, metric)


def test_sizes_are_whole_numbers_or_widths() -> None:
    sizes = {"embedding_dim": 16, "crosses": 0, "mlp": "256-128", "top": "64"}
    assert study(sizes=sizes).sizes == sizes
    assert study().sizes == {}


def test_frozen() -> None:
    config = parse(SMALLEST)
    with pytest.raises(ValidationError):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.quality.max_loss = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("written_as", "domain"),
    [
        ([1, 2], Choice((1, 2))),
        ("wide", Choice(("wide",))),
        ([True, "x", 0.5], Choice((True, "x", 0.5))),
        ({"low": 1, "high": 7, "step": 2}, Integer(1, 7, 2)),
        ({"low": 1, "high": 64, "log": True}, Integer(1, 64, log=True)),
        ({"low": 1, "high": 2.0}, Float(1.0, 2.0)),
        ({"low": 1, "high": 2, "step": 0.5}, Float(1.0, 2.0, 0.5)),
        ({"low": 1e-3, "high": 1, "log": True}, Float(1e-3, 1.0, log=True)),
    ],
)
def test_domains(written_as: Any, domain: Any) -> None:
    space = study(space={"architecture": {"size": written_as}}).space
    assert space.architecture == {"size": domain}
    assert repr(space.architecture["size"]) == repr(domain)


def test_real_knobs_are_floats_however_they_are_written() -> None:
    space = study(
        space={"distillation": {"temperature": {"low": 1, "high": 4}, "teacher_weight": [0, 1]}, "pruning": {"m": 0.5}}
    ).space
    assert repr(space.distillation.temperature) == repr(Float(1.0, 4.0))
    assert repr(space.distillation.teacher_weight) == repr(Choice((0.0, 1.0)))
    assert space.pruning == {"m": Choice((0.5,))}
    space = study(
        space={
            "low_rank": {"m": [1, 0.25]},
            "tables": {"full_rows_share": 0, "temperature": {"low": 0.1, "high": 1}},
            "distillation": {"feature_weight": [0, 1]},
        }
    ).space
    assert space.low_rank is not None and repr(space.low_rank["m"]) == repr(Choice((1.0, 0.25)))
    assert repr(space.tables.full_rows_share) == repr(Choice((0.0,)))
    assert repr(space.tables.temperature) == repr(Float(0.1, 1.0))
    assert repr(space.distillation.feature_weight) == repr(Choice((0.0, 1.0)))


def test_an_empty_mapping_switches_off_and_null_does_not() -> None:
    space = study(space={"architecture": {}, "low_rank": {}, "pruning": None}).space
    assert space.architecture == {} and space.low_rank == {} and space.pruning is None


def test_a_domain_may_be_given_as_itself() -> None:
    space = space_sections.SpaceConfig(pruning={"mlp": Float(0.1, 0.9)}, architecture={"size": Choice((1, 2))})
    assert space == study(space={"pruning": {"mlp": {"low": 0.1, "high": 0.9}}, "architecture": {"size": [1, 2]}}).space


def test_a_single_width_or_engine_is_a_list_of_one() -> None:
    space = study(space={"precision": {"mlp": "fp32"}, "placement": {"engines": "onnxruntime"}}).space
    assert space.precision == {"mlp": ("fp32",)} and space.placement.engines == ("onnxruntime",)
    words = {"pruning_importance": "taylor", "tables": {"form": "full"}, "precision": {"calibration": "entropy"}}
    space = study(space=words).space
    assert (space.pruning_importance, space.tables.form) == (("taylor",), ("full",))
    assert space.precision == {"calibration": ("entropy",)}


@pytest.mark.parametrize("section", ["quality", "traffic", "slo", "space", "budget", "workers"])
def test_a_section_with_nothing_in_it_is_its_default(tmp_path: Path, section: str) -> None:
    assert load(written(tmp_path, f"name: a-study\ndata: {{source: ml-100k}}\n{section}:\n")) == parse(SMALLEST)


# How a knob's value is written, and the record that it becomes; 0 of a group's units and all of its rank become none.
BOUNDS: dict[str, tuple[Callable[[float], dict[str, Any]], Callable[[float], object]]] = {
    "ratio": (lambda v: {"pruning": {"mlp": v}}, lambda v: v == 0 or Pruning((("mlp", v),))),
    "share": (
        lambda v: {"low_rank": {"mlp": list(dict.fromkeys([1.0, v]))}},
        lambda v: v == 1 or LowRank((("mlp", v),)),
    ),
    "full_rows_share": (lambda v: {"tables": {"full_rows_share": v}}, lambda v: QuotientRemainder("tables", v)),
    "dimensions": (lambda v: {"tables": {"temperature": v}}, lambda v: MixedDimensions("tables", v)),
    "temperature": (lambda v: {"distillation": {"temperature": v}}, lambda v: Distillation(v, 0.5, 1)),
    "teacher_weight": (lambda v: {"distillation": {"teacher_weight": v}}, lambda v: Distillation(1.0, v, 1)),
    "feature_weight": (lambda v: {"distillation": {"feature_weight": v}}, lambda v: Distillation(1.0, 0.5, 1, v)),
}


@pytest.mark.parametrize("knob", BOUNDS)
@pytest.mark.parametrize("value", [-0.5, 0.0, 1e-9, 0.5, 0.999, 1.0, 1.5, 50.0])
def test_bounds_are_those_of_the_records_that_the_knobs_become(knob: str, value: float) -> None:
    def accepted(make: Callable[[], object]) -> bool:
        try:
            make()
        except ValueError:
            return False
        return True

    written_as, record = BOUNDS[knob]
    assert accepted(lambda: study(space=written_as(value))) == accepted(lambda: record(value))


# --- YAML ---


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-2", 0.01),
        ("1.0e-2", 0.01),
        ("1E-2", 0.01),
        (".01", 0.01),
        ("+0.5", 0.5),
        ("5e-324", 5e-324),
    ],
)
def test_numbers(tmp_path: Path, text: str, value: float | None) -> None:
    source = written(tmp_path, f"name: a\ndata: {{source: ml-100k}}\nquality: {{max_loss: {text}}}\n")
    if value is None:
        assert "quality.max_loss: must be a number" in refused(load, source)
    else:
        assert load(source).quality.max_loss == value


def test_underscores_in_whole_numbers(tmp_path: Path) -> None:
    assert load(written(tmp_path, "name: a\ndata: {source: ml-100k}\nseed: 1_000\n")).seed == 1000


def test_text_that_yaml_1_1_takes_for_something_else(tmp_path: Path) -> None:
    config = load(written(tmp_path, "name: on\ndata: {source: ml-100k}\nstorage: 1:30\n"))
    assert (config.name, config.storage) == ("on", "1:30")


def test_aliases_are_read_and_an_override_changes_one_place_only(tmp_path: Path) -> None:
    text = "name: a\ndata: {source: ml-100k}\nspace: {pruning: {mlp: &r {low: 0.1, high: 0.5}, cross: *r}}\n"
    space = load(written(tmp_path, text), ["space.pruning.mlp.high=0.9"]).space
    assert space.pruning == {"mlp": Float(0.1, 0.9), "cross": Float(0.1, 0.5)}


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: a\ndata: {source: ml-100k}\n")
    assert load(str(path)).name == "a"


BAD_FILES = [
    ("", "study.yaml: is empty"),
    ("# nothing\n", "study.yaml: is empty"),
    ("- a\n- b\n", "study.yaml: must hold a mapping with the keys name, recommender, sizes, data, quality"),
    ("just text\n", "study.yaml: must hold a mapping"),
    ("name: a\nquality: {max_loss: 0.01\nslo: {}\n", "study.yaml, line 3: not valid YAML: "),
    ("name: a\n\tseed: 1\n", "study.yaml, line 2: not valid YAML: "),
    ("name: a: b\n", "study.yaml, line 1: not valid YAML: mapping values are not allowed here"),
    ("name: a\n---\nname: b\n", "study.yaml, line 2: not valid YAML: but found another document"),
    ("name: a\nseed: \x07\n", "study.yaml, line 2: not valid YAML: a character that may not be printed"),
    ("name: a\nname: b\n", "name: must be given once, but got it twice (study.yaml, line 2)"),
    (
        "name: a\nquality:\n  max_loss: 1\n  'max_loss': 2\n",
        "max_loss: must be given once, but got it twice (study.yaml",
    ),
    (
        "space: {pruning: {mlp: 0.5, mlp: 0.6}}\n",
        "mlp: must be given once, but got it twice (study.yaml, line 1)",
    ),
    (
        "name: !!python/object:os.system x\n",
        "study.yaml, line 1: not valid YAML: could not determine a constructor for the tag",
    ),
    ("slo: !!set {a}\n", "slo: must be a mapping"),
    ("seed: !!int abc\n", "study.yaml: not valid YAML: "),
    ("seed: " + "9" * 5000 + "\n", "study.yaml: not valid YAML: "),
    ("seed: 1" + "0" * 40 + "\n", "seed: must be a whole number from 0 to 4294967295, but got 10000000000000"),
    ("quality: {max_loss: 1" + "0" * 400 + "}\n", "quality.max_loss: must be a number above 0 and below 1"),
    ("space: &a {pruning: *a}\n", "space.pruning.pruning"),
    ("name: " + "[" * 5000 + "\n", "study.yaml: nested too deeply"),
    ("? [a, b]\n: 1\n", "name: missing"),
    ("1: 2\n", "1: unknown key"),
]


@pytest.mark.parametrize(("text", "start"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, start: str) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, text)
    assert refused(load, "study.yaml").startswith(start)


def test_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(b"name: \xff\n")
    assert refused(load, str(path)) == f"{path}: must be UTF-8 text, but byte 6 is not"


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    assert refused(load, "ml-10k") == (
        "ml-10k: no such file, nor a preset; the presets are ml-100k, synthetic-small; did you mean 'ml-100k'?"
    )
    assert refused(load, "qqq").endswith("the presets are ml-100k, synthetic-small")
    assert refused(load, str(tmp_path)).startswith(f"{tmp_path}: must be a preset or a YAML file, but cannot be read: ")
    assert "cannot be read" in refused(load, "a\0b")
    assert refused(load, "").startswith("'': must be a preset or a YAML file, but cannot be read: ")
    assert "template" not in preset_names()


# --- fields ---

METRICS = "auc, gauc, ndcg@K, hr@K, or null for the model family's own"
BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    (
        {"name": "My study"},
        "name: must be at most 100 lower-case letters, digits, '.', '_' and '-', a letter or digit fi",
    ),
    ({"name": "-a"}, "name: must be at most 100 lower-case"),
    ({"name": "a\n"}, "name: must be at most 100 lower-case"),
    ({"name": ""}, "name: must be at most 100 lower-case"),
    ({"name": "a" * 101}, "name: must be at most 100 lower-case"),
    (
        {"name": 2024},
        "name: must be at most 100 lower-case letters, digits, '.', '_' and '-', a letter or digit first, b",
    ),
    ({"name": None}, "name: must be at most 100 lower-case"),
    (
        {"recommender": "gru4rec"},
        "recommender: must be one of dcn-v2, dlrm, sasrec, or package.module:factory, but got 'gru4rec'",
    ),
    (
        {"recommender": "dcn_v2"},
        "recommender: must be one of dcn-v2, dlrm, sasrec, or package.module:factory, but got 'dcn_v2'; did you mean "
        "'dcn-v2'?",
    ),
    ({"sizes": None}, "sizes: must be a mapping of those of the baseline's sizes that differ, but got null"),
    (
        {"sizes": {"mlp": [64, 32]}},
        "sizes.mlp: must be a whole number, at least 0, or widths such as 64-32, but got [6",
    ),
    ({"sizes": {"mlp": "64x32"}}, "sizes.mlp: must be a whole number, at least 0, or widths such as 64-32, but got '6"),
    ({"sizes": {"mlp": "64-"}}, "sizes.mlp: must be a whole number, at least 0, or widths such as 64-32, but got '64-"),
    ({"sizes": {"crosses": 2.0}}, "sizes.crosses: must be a whole number, at least 0, or widths such as 64-32, but go"),
    ({"sizes": {"crosses": -1}}, "sizes.crosses: must be a whole number, at least 0, or widths such as 64-32, but got"),
    ({"sizes": {"crosses": True}}, "sizes.crosses: must be a whole number, at least 0, or widths such as 64-32, but g"),
    ({"sizes": {1: 2}}, "sizes.1: must have text as its key (put it in quotes), but got 1"),
    ({"data": {"source": "ml-1m"}}, f"data.source: must be {SOURCES}, but got 'ml-1m'"),
    ({"data": {"source": "movielens:"}}, f"data.source: must be {SOURCES}, but got 'movielens:'"),
    ({"data": {"source": "tables:x.csv"}}, f"data.source: must be {SOURCES}, but got 'tables:x.csv'"),
    ({"data": {"source": 3}}, f"data.source: must be {SOURCES}, but got 3"),
    ({"data": {}}, f"data.source: missing; must be {SOURCES}"),
    ({"data": None}, f"data: missing; must be a mapping with a source: {SOURCES}"),
    (
        {"recommender": "shop:factory"},
        "data: must be left out for one's own recommender, whose factory gives it, but got 'ml-100k'",
    ),
    (
        {"recommender": "shop:factory", "data": None, "sizes": {"mlp": 3}},
        "sizes: must be left out for one's own recommender, whose factory gives it, but got {mlp: 3}",
    ),
    ({"recommender": "shop factory"}, "recommender: must be one of dcn-v2"),
    (
        {"quality": {"slices": {"rare items": 2}}},
        "quality.slices.'rare items': must be a mapping of slice to a number",
    ),
    ({"data": "ml-100k"}, f"data: must be a mapping with a source: {SOURCES}, but got 'ml-100k'"),
    ({"data": {"source": "criteo:"}}, "data.source: must be criteo:FILE, but got 'criteo:'"),
    ({"data": {"source": "table:", "columns": COLUMNS}}, "data.source: must be table:FILE, but got 'table:'"),
    ({"data": {"source": "synthetic:x"}}, "data.source: must be synthetic, but got 'synthetic:x'; did you mean 'synt"),
    ({"data": {"source": "table:x.csv"}}, "data.columns: missing; must be a mapping that says what the columns hold"),
    (
        {"data": {"source": "table:x.csv", "columns": ["label"]}},
        "data.columns: must be a mapping that says what the columns hold, but got ['label']",
    ),
    (
        {"data": {"source": "table:x.csv", "columns": None}},
        "data.columns.label: missing; must be the name of a column (and 1 more)",
    ),
    (table(label=None), "data.columns.label: must be the name of a column, but got null"),
    (table(label=""), "data.columns.label: must be the name of a column, but got ''"),
    (table(timestamp=3), "data.columns.timestamp: must be the name of a column, but got 3 (put it in quotes)"),
    (table(user=["u"]), "data.columns.user: must be the name of a column, or null, but got ['u']"),
    (table(categorical=None), "data.columns.categorical: must be a list of columns, but got null"),
    (table(numeric={"a": 1}), "data.columns.numeric: must be a list of columns, but got {a: 1}"),
    (table(numeric=["a", 1]), "data.columns.numeric.1: must be text, but got 1 (put it in quotes)"),
    (table(multi=["a", ""]), "data.columns.multi.1: must be text that is not empty, but got ''"),
    (table(separator=""), "data.columns.separator: must be text that stands between several values in CSV, but got ''"),
    (table(positive_from="4"), "data.columns.positive_from: must be a number, or null, but got '4'"),
    (table(positive_from=math.nan), "data.columns.positive_from: must be a number, or null, but got .nan"),
    (table(user="clicked"), "data.columns.user: must be another column than label, but got 'clicked'"),
    (table(item="user_id"), "data.columns.item: must be another column than user, but got 'user_id'"),
    (table(numeric=["a", "time"]), "data.columns.numeric.1: must be another column than timestamp, but got 'time'"),
    (
        table(categorical=["a", "b"], numeric=["b"]),
        "data.columns.numeric.0: must be another column than categorical.1, but got 'b'",
    ),
    (table(multi=["a", "a"]), "data.columns.multi.1: must be another column than multi.0, but got 'a'"),
    (
        table(categorical=["a", "user"]),
        "data.columns.categorical.1: must not be called user or item, which are keys here, but got 'user'",
    ),
    (table(multi="item"), "data.columns.multi.0: must not be called user or item, which are keys here, but got 'item'"),
    (
        table(categorical=["country"], of_user=["contry"]),
        "data.columns.of_user.0: must be one of the features country, but got 'contry'; did you mean 'country'?",
    ),
    (table(of_item="a"), "data.columns.of_item.0: must be one of the features (there are none), but got 'a'"),
    (
        table(categorical=["a", "b"], of_user=["a", "b"], of_item=["b"]),
        "data.columns.of_item.0: must be another column than of_user.1, but got 'b'",
    ),
    (
        table(categorical=["a"], of_user=["a", "a"]),
        "data.columns.of_user.1: must be another column than of_user.0, but got 'a'",
    ),
    (table(user=None, item=None), "data.columns: must name a user, an item or a feature, but got none"),
    ({"data": {"source": "synthetic", "rows": 0}}, "data.rows: must be a whole number, at least 2, but got 0"),
    ({"data": {"source": "synthetic", "rows": 2.5}}, "data.rows: must be a whole number, at least 2, but got 2.5"),
    (
        {"data": {"source": "synthetic", "rows": 100}},
        "data.users: must be a whole number, at most the rows (100), but got",
    ),
    ({"data": {"source": "synthetic", "items": True}}, "data.items: must be a whole number, at least 1, but got true"),
    (
        {"data": {"source": "synthetic", "fields": 1}},
        "data.fields: must be a whole number, at least 2 (the user and the",
    ),
    (
        {"data": {"source": "synthetic", "user_turnover": 2}},
        "data.user_turnover: must be a number from 0 to 1, but got 2",
    ),
    ({"data": {"source": "synthetic", "order": -0.1}}, "data.order: must be a number from 0 to 1, but got -0.1"),
    ({"quality": 3}, "quality: must be a mapping with the keys metric, max_loss, slices, slice_by, but got 3"),
    ({"quality": []}, "quality: must be a mapping with the keys metric, max_loss, slices, slice_by, but got []"),
    ({"quality": {"metric": "ndcg"}}, f"quality.metric: must be {METRICS}, but got 'ndcg'"),
    ({"quality": {"metric": "ndcg@0"}}, f"quality.metric: must be {METRICS}, but got 'ndcg@0'"),
    ({"quality": {"metric": "auc\n"}}, f"quality.metric: must be {METRICS}, but got 'auc\\n'"),
    ({"quality": {"metric": ["auc"]}}, f"quality.metric: must be {METRICS}, but got ['auc']"),
    ({"quality": {"metric": "ndcg@10"}}, "quality.metric: must be auc or gauc for dcn-v2, but got 'ndcg@10'"),
    (
        {"recommender": "dlrm", "quality": {"metric": "hr@10"}},
        "quality.metric: must be auc or gauc for dlrm, but got 'hr@10'",
    ),
    (
        {"recommender": "sasrec", "quality": {"metric": "auc"}},
        "quality.metric: must be ndcg@K or hr@K for sasrec, but got 'auc'",
    ),
    (
        {"recommender": "sasrec", "quality": {"metric": "gauc"}},
        "quality.metric: must be ndcg@K or hr@K for sasrec, but got 'gauc'",
    ),
    (
        {"recommender": "sasrec", "data": {"source": "criteo:/x"}},
        "data.source: must be ml-100k, movielens:DIR, table:FILE or synthetic for sasrec, but got 'criteo:/x'",
    ),
    (
        {"quality": {"metric": "gauc"}, "data": {"source": "criteo:/x"}},
        "data.source: must be ml-100k, movielens:DIR, table:FILE or synthetic for gauc, but got 'criteo:/x'",
    ),
    (
        {"recommender": "sasrec", **table(user=None)},
        "data.columns.user: must be the name of a column for sasrec, but got null",
    ),
    (
        {"recommender": "sasrec", **table(item=None)},
        "data.columns.item: must be the name of a column for sasrec, but got null",
    ),
    (
        {"quality": {"metric": "gauc"}, **table(user=None)},
        "data.columns.user: must be the name of a column for gauc, but got null",
    ),
    (
        {"quality": {"max_loss": 0}},
        "quality.max_loss: must be a number above 0 and below 1, such as 0.01 for 1%, but got 0",
    ),
    ({"quality": {"max_loss": 1}}, "quality.max_loss: must be a number above 0 and below 1"),
    (
        {"quality": {"max_loss": math.nan}},
        "quality.max_loss: must be a number above 0 and below 1, such as 0.01 for 1%, b",
    ),
    ({"quality": {"max_loss": math.inf}}, "quality.max_loss: must be a number above 0 and below 1"),
    (
        {"quality": {"max_loss": "1%"}},
        "quality.max_loss: must be a number above 0 and below 1, such as 0.01 for 1%, but g",
    ),
    (
        {"quality": {"max_loss": True}},
        "quality.max_loss: must be a number above 0 and below 1, such as 0.01 for 1%, but g",
    ),
    (
        {"quality": {"max_loss": None}},
        "quality.max_loss: must be a number above 0 and below 1, such as 0.01 for 1%, but g",
    ),
    (
        {"traffic": {"pattern": "burst"}},
        "traffic.pattern: must be poisson, deterministic, bursts, diurnal or log:FILE, a request log in CSV or "
        "Parquet, but got 'burst'",
    ),
    ({"traffic": {"pattern": "log:"}}, "traffic.pattern: must be poisson, deterministic, bursts, diurnal or log:FILE"),
    ({"traffic": {"quiet": 2}}, "traffic.quiet: must be a number from 0 to 1, but got 2"),
    ({"traffic": {"on_seconds": 0}}, "traffic.on_seconds: must be seconds, at least 0.001, but got 0"),
    (
        {"traffic": {"load": 1.0}},
        "traffic.load: must be a number above 0 and below 1, a share of what the baseline answers one by one, "
        "but got 1.0",
    ),
    ({"traffic": {"rows": 200}}, "traffic.rows: must be a mapping with the keys median, sigma, max, file, but got 200"),
    ({"traffic": {"rows": {"median": 0}}}, "traffic.rows.median: must be a whole number, at least 1, but got 0"),
    ({"traffic": {"rows": {"sigma": -1}}}, "traffic.rows.sigma: must be a number, at least 0, but got -1"),
    (
        {"traffic": {"rows": {"max": 100}}},
        "traffic.rows.max: must be a whole number, at least the median (200), but got 10",
    ),
    (
        {"traffic": {"rows": {"median": 5000}}},
        "traffic.rows.max: must be a whole number, at least the median (5000), but g",
    ),
    ({"slo": {"percentile": 90}}, "slo.percentile: must be one of 50, 95, 99, but got 90"),
    ({"slo": {"percentile": "95"}}, "slo.percentile: must be one of 50, 95, 99, but got '95'"),
    ({"slo": {"ms": 0}}, "slo.ms: must be milliseconds above 0, or null, but got 0"),
    ({"objectives": []}, "objectives: must be a list of one or more different ones of latency_p50, latency_p95"),
    ({"objectives": ["quality", "quality"]}, "objectives: must be a list of one or more different ones of latency_p50"),
    (
        {"objectives": ["quality", "latency"]},
        "objectives.1: must be one of latency_p50, latency_p95, latency_p99, throughp",
    ),
    ({"objectives": {"a": 1}}, "objectives: must be a list of one or more different ones of latency_p50"),
    ({"objectives": None}, "objectives: must be a list of one or more different ones of latency_p50"),
    (
        {"space": []},
        "space: must be a mapping with the keys focus, architecture, pruning, pruning_importance, pruning_steps, "
        "low_rank, tables, attention, quantization_aware, distillation, precision, placement, but got []",
    ),
    (
        {"space": {"architecture": [1]}},
        "space.architecture: must be a mapping of size to domain, {} for no smaller sibling",
    ),
    (
        {"space": {"architecture": {"size": []}}},
        "space.architecture.size: a choice needs at least one value, but got none",
    ),
    (
        {"space": {"architecture": {"size": [1, 1]}}},
        "space.architecture.size: a choice needs different values, but got [1",
    ),
    (
        {"space": {"architecture": {"size": [1, None]}}},
        "space.architecture.size.1: must be text, true, false or a number,",
    ),
    (
        {"space": {"architecture": {"size": [[1]]}}},
        "space.architecture.size.0: must be text, true, false or a number, but",
    ),
    (
        {"space": {"architecture": {"size": [math.inf]}}},
        "space.architecture.size.0: must be text, true, false or a number",
    ),
    (
        {"space": {"architecture": {"size": None}}},
        "space.architecture.size: must be a value, a list of values, or {low, h",
    ),
    (
        {"space": {"architecture": {"size": {"low": 2, "high": 1}}}},
        "space.architecture.size: low must be at most high, but",
    ),
    ({"space": {"architecture": {"size": {"low": 1}}}}, "space.architecture.size.high: missing; must be a number"),
    (
        {"space": {"architecture": {"size": {"low": "a", "high": 1}}}},
        "space.architecture.size.low: must be a number, but g",
    ),
    (
        {"space": {"architecture": {"size": {"low": True, "high": 1}}}},
        "space.architecture.size.low: must be a number, but",
    ),
    (
        {"space": {"architecture": {"size": {"low": 1, "high": 4, "step": 2}}}},
        "space.architecture.size: step must be posit",
    ),
    (
        {"space": {"architecture": {"size": {"low": 1, "high": 4, "step": 0}}}},
        "space.architecture.size: step must be posit",
    ),
    (
        {"space": {"architecture": {"size": {"low": 0, "high": 4, "log": True}}}},
        "space.architecture.size: a log scale need",
    ),
    (
        {"space": {"architecture": {"size": {"low": 1, "high": 4, "log": "yes"}}}},
        "space.architecture.size.log: must be tru",
    ),
    (
        {"space": {"architecture": {"size": {"low": 1, "high": math.nan}}}},
        "space.architecture.size.high: must be a number",
    ),
    (
        {"space": {"architecture": {1: 2}}},
        "space.architecture.1: must have text as its key (put it in quotes), but got 1",
    ),
    (
        {"space": {"pruning": 0.5}},
        "space.pruning: must be a mapping of layer group to ratios, {} for no pruning, or null, b",
    ),
    ({"space": {"pruning": {"mlp": [0.5, 1.0]}}}, "space.pruning.mlp: must be numbers from 0 to below 1"),
    (
        {"space": {"pruning": {"mlp": {"low": -0.1, "high": 0.5}}}},
        "space.pruning.mlp: must be numbers from 0 to below 1",
    ),
    ({"space": {"pruning": {"mlp": {"low": 0.5, "high": 1}}}}, "space.pruning.mlp: must be numbers from 0 to below 1"),
    ({"space": {"pruning": {"mlp": "half"}}}, "space.pruning.mlp: must be numbers from 0 to below 1"),
    ({"space": {"pruning": {"mlp": True}}}, "space.pruning.mlp: must be numbers from 0 to below 1"),
    ({"space": {"pruning": {"a b\n": 2}}}, "space.pruning.'a b\\n': must be numbers from 0 to below 1"),
    ({"space": {"pruning_importance": []}}, "space.pruning_importance: must be different values, but got []"),
    (
        {"space": {"pruning_importance": ["tailor"]}},
        "space.pruning_importance.0: must be one of magnitude, taylor, activation, but got 'tailor'; did you mean 'tay",
    ),
    (
        {"space": {"pruning_importance": ["taylor", "taylor"]}},
        "space.pruning_importance: must be different values, but got ['taylor', 'taylor']",
    ),
    ({"space": {"pruning_steps": []}}, "space.pruning_steps: must be different values, but got []"),
    ({"space": {"pruning_steps": [1, 0]}}, "space.pruning_steps.1: must be at least 1, but got 0"),
    ({"space": {"pruning_steps": [3, 3]}}, "space.pruning_steps: must be different values, but got [3, 3]"),
    ({"space": {"pruning_steps": [1.5]}}, "space.pruning_steps.0: must be a whole number, but got 1.5"),
    ({"space": {"pruning_steps": 3}}, "space.pruning_steps: must be a list of whole numbers, at least 1, or null, but"),
    (
        {"space": {"low_rank": 0.5}},
        "space.low_rank: must be a mapping of layer group to shares of the rank, {} for none, or null, but got 0.5",
    ),
    (
        {"space": {"low_rank": {"mlp": [0.5]}}},
        "space.low_rank.mlp: must be a list of shares, 1.0 (the whole rank) among them, but got [0.5]",
    ),
    (
        {"space": {"low_rank": {"mlp": {"low": 0.5, "high": 1}}}},
        "space.low_rank.mlp: must be a list of shares, 1.0 (the whole rank) among them, but got {low: 0.5, high: 1.0",
    ),
    (
        {"space": {"low_rank": {"mlp": [1, 0]}}},
        "space.low_rank.mlp: must be numbers above 0 and at most 1, but got 0.0",
    ),
    (
        {"space": {"low_rank": {"mlp": [1, 2]}}},
        "space.low_rank.mlp: must be numbers above 0 and at most 1, but got 2.0",
    ),
    (
        {"space": {"tables": 3}},
        "space.tables: must be a mapping with the keys form, full_rows_share, temperature, but got 3",
    ),
    (
        {"space": {"tables": {"form": ["quotient-remainder"]}}},
        "space.tables.form: must be different values, the baseline's full among them, but got ['quotient-remainder']",
    ),
    (
        {"space": {"tables": {"form": []}}},
        "space.tables.form: must be different values, the baseline's full among them, but got []",
    ),
    (
        {"space": {"tables": {"form": ["full", "shared"]}}},
        "space.tables.form.1: must be one of full, quotient-remainder, mixed-dimensions, but got 'shared'",
    ),
    (
        {"space": {"tables": {"full_rows_share": 1}}},
        "space.tables.full_rows_share: must be numbers from 0 to below 1, but got 1.0",
    ),
    (
        {"space": {"tables": {"temperature": [0, 0.5]}}},
        "space.tables.temperature: must be numbers above 0 and at most 1, but got 0.0",
    ),
    (
        {"space": {"attention": {"window": [8]}}},
        "space.attention.window: must be different values, 0 among them, but got [8]",
    ),
    (
        {"space": {"attention": {"window": 8}}},
        "space.attention.window: must be a list of positions, 0 (all) among them, or null, but got 8",
    ),
    ({"space": {"attention": {"window": [0, -1]}}}, "space.attention.window.1: must be at least 0, but got -1"),
    ({"space": {"attention": {"history": [0, 2.5]}}}, "space.attention.history.1: must be a whole number, but got 2.5"),
    (
        {"space": {"attention": {"history": [0, 5, 5]}}},
        "space.attention.history: must be different values, 0 among them, but got [0, 5, 5]",
    ),
    (
        {"space": {"quantization_aware": [True]}},
        "space.quantization_aware: must be different values, false among them, but got [true]",
    ),
    (
        {"space": {"quantization_aware": True}},
        "space.quantization_aware: must be a list of false and true, false among them, or null, but got true",
    ),
    ({"space": {"quantization_aware": [0, 1]}}, "space.quantization_aware.0: must be true or false, but got 0 (and 1"),
    (
        {"space": {"distillation": {"feature_weight": [0, -1]}}},
        "space.distillation.feature_weight: must be numbers of at least 0, but got -1.0",
    ),
    (
        {"space": {"distillation": {"temperature": 0.5}}},
        "space.distillation.temperature: must be numbers of at least 1, bu",
    ),
    (
        {"space": {"distillation": {"temperature": {"low": 1, "high": "x"}}}},
        "space.distillation.temperature.high: must be",
    ),
    (
        {"space": {"distillation": {"teacher_weight": [0.5, 1.5]}}},
        "space.distillation.teacher_weight: must be numbers fro",
    ),
    (
        {"space": {"distillation": {"epochs": 0}}},
        "space.distillation.epochs: must be a whole number, at least 1, or null",
    ),
    (
        {"space": {"distillation": {"epochs": [1, 2]}}},
        "space.distillation.epochs: must be a whole number, at least 1, or n",
    ),
    (
        {"space": {"precision": {"mlp": ["fp32", "int3"]}}},
        "space.precision.mlp.1: must be one of fp32, int8-dynamic, int8-static, int4, int4-dynamic, int8-lstm, fp16, "
        "int8, int2, but got 'int3'",
    ),
    (
        {"space": {"precision": {"calibration": ["fp32"]}}},
        "space.precision.calibration.0: must be one of minmax, entropy, percentile, but got 'fp32'",
    ),
    (
        {"space": {"precision": {"calibration": []}}},
        "space.precision.calibration: must be different values, but got []",
    ),
    (
        {"space": {"precision": {"calibration": ["entropy", "entropy"]}}},
        "space.precision.calibration: must be different values, but got ['entropy', 'entropy']",
    ),
    (
        {"space": {"precision": {"mlp": ["fp32", "int8-dinamic"]}}},
        "space.precision.mlp.1: must be one of fp32, int8-dynami",
    ),
    (
        {"space": {"precision": {"mlp": ["int8-dynamic"]}}},
        "space.precision.mlp: must be different values, the baseline's f",
    ),
    (
        {"space": {"precision": {"mlp": []}}},
        "space.precision.mlp: must be different values, the baseline's fp32 among them",
    ),
    (
        {"space": {"precision": {"mlp": ["fp32", "fp32"]}}},
        "space.precision.mlp: must be different values, the baseline's f",
    ),
    (
        {"space": {"precision": {"compute": ["fp32", "int8"]}}},
        "space.precision.compute.1: must be one of fp32, bf16, but g",
    ),
    ({"space": {"precision": {"mlp": {"fp32": 1}}}}, "space.precision.mlp: must be a list, but got {fp32: 1}"),
    (
        {"space": {"precision": {"mlp": [32]}}},
        "space.precision.mlp.0: must be text, but got 32 (put it in quotes)",
    ),
    (
        {"space": {"placement": {"layouts": ["1xauto", "2by1"]}}},
        "space.placement.layouts.1: must be REPLICASxTHREADS, such",
    ),
    (
        {"space": {"placement": {"layouts": ["1xauto", "0x1"]}}},
        "space.placement.layouts.1: must be REPLICASxTHREADS, such",
    ),
    (
        {"space": {"placement": {"layouts": ["1xauto", "01x1"]}}},
        "space.placement.layouts.1: must be REPLICASxTHREADS, such",
    ),
    (
        {"space": {"placement": {"layouts": ["2x1"]}}},
        "space.placement.layouts: must be different values, the baseline's 1x",
    ),
    (
        {"space": {"placement": {"engines": ["openvino"]}}},
        "space.placement.engines: must be different values, the baseline",
    ),
    (
        {"space": {"placement": {"engines": []}}},
        "space.placement.engines: must be different values, the baseline's onnxrun",
    ),
    (
        {"space": {"placement": {"engines": 3}}},
        "space.placement.engines: must be a list of ENGINE or ENGINE:DEVICE, onnxruntime",
    ),
    (
        {"space": {"placement": {"engines": ["onnxruntime", "onnxruntime:"]}}},
        "space.placement.engines.1: must be ENGINE or ENGINE:DEVICE, such",
    ),
    (
        {"space": {"placement": {"inline": [True]}}},
        "space.placement.inline: must be different values, false among them, but",
    ),
    (
        {"space": {"placement": {"split_rows": [256]}}},
        "space.placement.split_rows: must be different values, 0 among them, but",
    ),
    ({"space": {"placement": {"queue": 0}}}, "space.placement.queue: must be a whole number, at least 1, or null, but"),
    ({"space": {"focus": 1}}, "space.focus: must be a number from 0 (off) to below 1, such as 0.05 for 5%, but got 1"),
    (
        {"objectives": ["money_per_million"]},
        "price_per_hour: must be the price of the machine for an hour for money_per_million, but got null",
    ),
    ({"budget": {"minutes": 0}}, "budget.minutes: must be a number above 0, but got 0"),
    ({"budget": {"minutes": math.inf}}, "budget.minutes: must be a number above 0, but got .inf"),
    ({"budget": {"trials": 0}}, "budget.trials: must be a whole number, at least 1, or null, but got 0"),
    ({"budget": {"trials": 1.0}}, "budget.trials: must be a whole number, at least 1, or null, but got 1.0"),
    ({"workers": {"builders": 0}}, "workers.builders: must be a whole number, at least 1, or null, but got 0"),
    ({"workers": {"fit_seconds": -1}}, "workers.fit_seconds: must be seconds above 0, but got -1"),
    ({"workers": {"job_seconds": "2m"}}, "workers.job_seconds: must be seconds above 0, but got '2m'"),
    ({"seed": -1}, "seed: must be a whole number from 0 to 4294967295, but got -1"),
    ({"seed": 2**32}, "seed: must be a whole number from 0 to 4294967295, but got 4294967296"),
    ({"seed": True}, "seed: must be a whole number from 0 to 4294967295, but got true"),
    ({"tracking_uri": ""}, "tracking_uri: must be MLflow's address, or null, but got ''"),
    ({"storage": 3}, "storage: must be the address of Optuna's database, or null, but got 3"),
]


@pytest.mark.parametrize(("sections", "start"), BAD_FIELDS, ids=[str(s)[:60] for s, _ in BAD_FIELDS])
def test_bad_fields(tmp_path: Path, sections: dict[str, Any], start: str) -> None:
    line = refused(study, **sections)
    assert line.startswith(start)
    assert "but got" in line or "missing" in line
    # The same through a file.
    text = as_yaml({**SMALLEST, **sections})
    assert refused(load, written(tmp_path, text)) == line


def test_missing_fields() -> None:
    assert refused(parse, {"data": {"source": "ml-100k"}}).startswith("name: missing; must be at most 100 lower-case")
    assert refused(parse, {"name": "a"}) == (f"data: missing; must be a mapping with a source: {SOURCES}")
    assert refused(parse, [1]).startswith("study: must be a mapping with the keys name, recommender, sizes, data,")


def test_a_number_as_text_is_hinted_at() -> None:
    assert refused(study, name=2024).endswith("but got 2024 (put it in quotes)")


def test_the_nearest_value_is_hinted_at() -> None:
    assert refused(study, objectives=["latencyp95"]).endswith("but got 'latencyp95'; did you mean 'latency_p95'?")
    assert refused(study, space={"precision": {"mlp": ["fp32", "int8_dynamic"]}}).endswith(
        "did you mean 'int8-dynamic'?"
    )


def test_the_first_error_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "seed: -1\nslo: {ms: -1, percentile: 3}\nname: a\nquality: {max_lose: 1}\n"
    assert refused(load, written(tmp_path, text)) == (
        "seed: must be a whole number from 0 to 4294967295, but got -1 (and 3 more)"
    )
    text = "quality: {max_lose: 1}\nseed: -1\nname: a\ndata: {source: ml-100k}\n"
    assert refused(load, written(tmp_path, text)) == (
        "quality.max_lose: unknown key; did you mean 'max_loss'? (and 1 more)"
    )
    text = "name: a\ndata: {source: ml-100k}\nspace: {pruning: {a: 0.5, b: 5, c: 6}}\n"
    assert refused(load, written(tmp_path, text)).startswith("space.pruning.b: ")


def test_long_values_are_cut() -> None:
    assert len(refused(study, tracking_uri=["x" * 5000])) < 200
    assert len(refused(study, quality=[[[[[list(range(1000))]]]]] * 100)) < 250


# --- unknown keys ---


def sections(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every key of every section, with the path to it."""
    for name, field in model.model_fields.items():
        yield path, name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from sections(field.annotation, (*path, name))


KEYS = [
    *sections(StudyConfig),
    *((("data",), name) for name in SyntheticData.model_fields),
    *((("data", "columns"), name) for name in ColumnsConfig.model_fields),
    *((("space", "pruning", "mlp"), name) for name in ("low", "high", "step", "log")),
]


@pytest.mark.parametrize(("path", "name"), KEYS, ids=[".".join((*p, n)) for p, n in KEYS])
def test_an_unknown_key_names_the_nearest(path: tuple[str, ...], name: str) -> None:
    misspelt = f"{name[:-1]}{name[-1]}x" if len(name) < 5 else name[:2] + name[1:]
    data: dict[str, Any] = json.loads(json.dumps(SMALLEST))
    if path == ("data",):
        data["data"]["source"] = "synthetic"
    if path == ("data", "columns"):
        data |= table()
    inner = data
    for key in path:
        inner = inner.setdefault(key, {})
    if path[-1:] == ("mlp",):
        inner |= {"low": 0.1, "high": 0.5}
    inner[misspelt] = 1
    assert refused(parse, data) == f"{'.'.join((*path, misspelt))}: unknown key; did you mean '{name}'?"


def test_an_unknown_key_like_no_other_lists_the_keys() -> None:
    assert refused(study, slo={"qqq": 1}) == "slo.qqq: unknown key; the keys here are percentile, ms"
    assert refused(study, space={"prunning": {}}) == "space.prunning: unknown key; did you mean 'pruning'?"


# --- overrides ---


def test_overrides(tmp_path: Path) -> None:
    config = load(
        "ml-100k",
        [
            "budget.minutes=5",
            "space.pruning.mlp=[0.25, 0.5]",
            "objectives=[quality]",
            "slo={ms: 3}",
            "quality.max_loss=1e-3",
        ],
        seed=7,
        trials=20,
    )
    assert config.budget == BudgetConfig(minutes=5.0, trials=20) and config.seed == 7
    assert config.space.pruning == {"mlp": Choice((0.25, 0.5))}
    assert config.objectives == ("quality",) and config.slo.ms == 3 and config.quality.max_loss == 0.001
    # Of two, the later counts; those by name count last; nothing after = is null.
    assert load("ml-100k", ["seed=1", "seed=2"]).seed == 2
    assert load("ml-100k", ["budget.minutes=5"], minutes=1).budget.minutes == 1
    assert load("ml-100k", ["budget.trials="]).budget.trials is None


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed", "--set: must read key.path=value, such as budget.minutes=5, but got 'seed'"),
        ("=3", "--set: must read key.path=value, such as budget.minutes=5, but got '=3'"),
        ("a..b=3", "--set: must read key.path=value, such as budget.minutes=5, but got 'a..b=3'"),
        ("name.first=3", "name.first: name holds no further keys; it is 'ml-100k'"),
        ("qualty.max_loss=0.1", "qualty: unknown key; did you mean 'quality'?"),
        ("seed=[1", "--set seed, line 1: not valid YAML: "),
        ("seed={a: 1, a: 2}", "seed.a: must be given once, but got it twice (--set seed, line 1)"),
        ("seed=x", "seed: must be a whole number from 0 to 4294967295, but got 'x'"),
        ("data.rows=9", "data.rows: unknown key; only data of source synthetic have it (got 9)"),
    ],
)
def test_bad_overrides(override: str, line: str) -> None:
    assert refused(load, "ml-100k", [override]).startswith(line)


def test_bad_named_overrides() -> None:
    assert refused(load, "ml-100k", minutes=math.nan).startswith(
        "budget.minutes: must be a number above 0, but got .nan"
    )
    assert refused(load, "ml-100k", trials=0).startswith("budget.trials: ")
    assert refused(load, "ml-100k", seed=-1).startswith("seed: ")


# --- folders and files of data ---


def test_a_folder_is_relative_to_the_file_and_stored_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "studies" / "ml").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    source = written(tmp_path / "studies", "name: a\ndata: {source: 'movielens:ml'}\n")
    monkeypatch.chdir(tmp_path)
    data = load(source).data
    assert isinstance(data, MovieLensData) and data.folder == (tmp_path / "studies" / "ml").resolve()
    for given_source in (source, "ml-100k"):
        data = load(given_source, ["data.source=movielens:here"]).data
        assert isinstance(data, MovieLensData) and data.folder == (tmp_path / "here").resolve()
    data = load("ml-100k").data
    assert isinstance(data, MovieLensData) and data.folder is None


@pytest.mark.parametrize("kind", ["table", "criteo"])
def test_a_file_is_relative_to_the_study_and_stored_absolute(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("studies", "here"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "clicks.csv").touch()
    columns = f", columns: {json.dumps(COLUMNS)}" if kind == "table" else ""
    source = written(tmp_path / "studies", f"name: a\ndata: {{source: '{kind}:clicks.csv'{columns}}}\n")
    monkeypatch.chdir(tmp_path)
    assert load(source).data.source == f"{kind}:{(tmp_path / 'studies' / 'clicks.csv').resolve()}"
    given_here = load(source, [f"data.source={kind}:here/clicks.csv"]).data.source
    assert given_here == f"{kind}:{(tmp_path / 'here' / 'clicks.csv').resolve()}"
    line = refused(load, source, [f"data.source={kind}:studies"])
    assert line == f"data.source: must name a file that exists, but got '{kind}:{(tmp_path / 'studies').resolve()}'"
    assert refused(load, source, [f"data.source={kind}:gone.csv"]).startswith("data.source: must name a file that exis")
    assert refused(load, source, [f"data.source={kind}:~nobody-of-that-name/x"]).startswith(
        f"data.source: must be {kind}:FILE, but got"
    )


@pytest.mark.parametrize("folder", ["gone", "study.yaml", "~nobody-of-that-name/x", '"a\\0b"'])
def test_a_missing_folder(tmp_path: Path, folder: str) -> None:
    text = (
        f"name: a\ndata:\n  source: movielens:{folder}\n"
        if '"' not in folder
        else ('name: a\ndata:\n  source: "movielens:a\\0b"\n')
    )
    assert refused(load, written(tmp_path, text)).startswith("data.source: must ")


# --- presets and the template ---


def test_presets() -> None:
    assert preset_names() == ("ml-100k", "synthetic-small")
    for name in preset_names():
        assert load(name).name == name
    assert load("ml-100k") == parse({"name": "ml-100k", "data": {"source": "ml-100k"}})
    small = load("synthetic-small")
    assert small.data == SyntheticData(rows=20_000) and small.budget.minutes == 2


def test_the_template_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    write_template(path)
    assert load(str(path)) == StudyConfig(name="my-study", data=MovieLensData(source="ml-100k"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["study.yaml"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o044, "others may read it, as any file"


def test_the_template_has_every_key() -> None:
    data = YAML(typ="safe", pure=True).load(TEMPLATE)
    for path, name in sections(StudyConfig):
        inner = data
        for key in path:
            inner = inner[key]
        assert name in inner
    example = "data: {" + ", ".join(re.findall(r"^  # (\w+: [\d.]+) ", TEMPLATE, re.MULTILINE)) + ", source: synthetic}"
    assert set(YAML(typ="safe", pure=True).load(example)["data"]) == set(SyntheticData.model_fields)
    assert study(**YAML(typ="safe", pure=True).load(example)).data == SyntheticData()


def test_the_template_has_every_key_of_a_tables_columns() -> None:
    commented = TEMPLATE[TEMPLATE.index("  # columns:\n") : TEMPLATE.index("  # For synthetic only:")]
    example = YAML(typ="safe", pure=True).load(re.sub(r"^  # ", "", commented, flags=re.MULTILINE))
    assert set(example["columns"]) == set(ColumnsConfig.model_fields)
    data = study(data={"source": "table:clicks.csv", **example}).data
    assert isinstance(data, TableData) and set(data.columns.of_item) < set(data.columns.features)


def test_the_template_says_what_each_choice_may_be() -> None:
    recommenders = (*module.BUILT_IN, "package.module:factory")
    techniques = (*space_sections._WIDTHS, "bf16", *IMPORTANCES, *CALIBRATIONS, FULL, SHARED, MIXED)
    metrics, sources = ("auc", "gauc", "ndcg@K", "hr@K"), ("ml-100k", "movielens:DIR", "table:FILE", "criteo:FILE")
    for word in (*get_args(module.Objective), *metrics, *sources, "poisson", *recommenders, *techniques):
        assert word in TEMPLATE


def test_the_examples_in_the_template_can_be_used() -> None:
    lines = TEMPLATE.replace("# for example: ", "").splitlines()
    examples = [line.strip() for line in TEMPLATE.splitlines() if "# for example: " in line]
    keys = {line.removeprefix("# for example: ").split(":")[0] for line in examples}
    assert len(examples) == len(keys) == 26
    with_examples = "\n".join(line for line in lines if not re.match(rf"\s*({'|'.join(keys)}): (null|\{{\}})", line))
    config = parse(YAML(typ="safe", pure=True).load(with_examples))
    space = config.space
    for section in (space, space.tables, space.attention, space.distillation, space.placement):
        unset = {"full_rows_share", "temperature"} if section is space.tables else {"queue", "deadline_ms"}
        assert {name for name in keys & set(type(section).model_fields) if getattr(section, name) is None} <= unset
    assert space.placement.layouts == ("1xauto", "1x1", "2x1")
    assert space.low_rank == {"mlp": Choice((1.0, 0.25))} and space.pruning_steps == (1, 3)
    assert space.tables.form == ("full", "quotient-remainder", "mixed-dimensions") and space.attention.window == (
        0,
        8,
        16,
    )


def test_the_template_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("mine")
    assert refused(write_template, path) == f"{path}: exists already; name a new file"
    assert path.read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["study.yaml"]
    dangling = tmp_path / "dangling.yaml"
    dangling.symlink_to(tmp_path / "gone")
    assert "exists already" in refused(write_template, dangling)
    missing = tmp_path / "gone" / "study.yaml"
    assert refused(write_template, missing).startswith(f"{missing}: cannot be written: ")


def test_the_template_is_written_without_hard_links_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    path = tmp_path / "study.yaml"
    write_template(path)
    assert path.read_text(encoding="utf-8") == TEMPLATE
    assert "exists already" in refused(write_template, path)


# --- the same study ---


def identity(config: StudyConfig) -> str:
    """The settings that identify a study as canonical text, where 1, 1.0 and true differ."""
    return json.dumps(config.model_dump(mode="json", exclude=set(FREE_SECTIONS)), sort_keys=True)


def test_what_may_change_on_resuming() -> None:
    a = load("ml-100k")
    b = load("ml-100k", ["budget={minutes: 99, trials: 3}", "workers.builders=3", "tracking_uri=x", "storage=y"])
    assert a != b
    assert identity(a) == identity(b) and difference(a, b) is None


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("quality.max_loss=0.02", "quality.max_loss was 0.01, now 0.02"),
        ("seed=1", "seed was 0, now 1"),
        ("name=b", "name was 'ml-100k', now 'b'"),
        ("objectives=[throughput]", "objectives was ['latency_p95', 'throughput', 'quality'], now ['throughput']"),
        ("space.pruning={}", "space.pruning was null, now {}"),
        ("data={source: synthetic}", "data.source was 'ml-100k', now 'synthetic'"),
        ("slo.ms=3", "slo.ms was null, now 3.0"),
        ("recommender=dlrm", "recommender was 'dcn-v2', now 'dlrm'"),
        ("quality.metric=gauc", "quality.metric was null, now 'gauc'"),
        ("sizes.crosses=2", "sizes.crosses was absent, now 2"),
        ("space.low_rank.mlp=[1.0, 0.25]", "space.low_rank was null, now {mlp: [1.0, 0.25]}"),
        ("space.attention.window=[0, 8]", "space.attention.window was null, now [0, 8]"),
        ("space.pruning_steps=[3]", "space.pruning_steps was null, now [3]"),
    ],
)
def test_the_first_difference(override: str, line: str) -> None:
    a, b = load("ml-100k"), load("ml-100k", [override])
    assert difference(a, b) == line == difference(a.model_dump(mode="json"), b)
    assert identity(a) != identity(b)


def test_domains_differ_in_type_too() -> None:
    a, b = (study(space={"architecture": {"size": value}}) for value in ([1], [True]))
    assert identity(a) != identity(b)
    assert difference(a, b) == "space.architecture.size was [1], now [true]"


def test_differences_from_data_of_another_version() -> None:
    config = parse(SMALLEST)
    plain = config.model_dump(mode="json")
    assert difference({**plain, "gone": 3}, config) == "gone was 3, now absent"
    del plain["slo"]  # a key that came later has its default
    assert difference(plain, config) is None


# --- there and back ---

NAMES = st.from_regex(r"\A[a-z][a-z0-9_]{0,8}\Z")
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.one_of(st.booleans(), st.integers(-(2**40), 2**40), FLOATS, st.text(max_size=8))


def choices(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(values, min_size=1, max_size=4, unique_by=lambda v: (type(v), v))


def ranges(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(values, values).map(lambda pair: {"low": min(pair), "high": max(pair)})


def real_domains(low: float, high: float, **options: bool) -> st.SearchStrategy[Any]:
    values = st.floats(low, high, **options)
    return st.one_of(values, choices(values), ranges(values))


def optional(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


def listed(baseline: Any, others: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(others, max_size=4).map(lambda more: list(dict.fromkeys([baseline, *more])))


# Some line breaks of Unicode are written so that they are read back as spaces.
INK = st.characters(exclude_categories=("C", "Z"))
POSITIVE = st.floats(1e-300, 1e300)
COUNT = st.integers(1, 10**6)
MAYBE_COUNT = st.one_of(st.none(), COUNT)
LAYOUTS = st.one_of(
    st.tuples(st.integers(1, 64), st.integers(1, 64)).map(lambda pair: f"{pair[0]}x{pair[1]}"), st.just("2xauto")
)
PLACES = st.one_of(NAMES, st.tuples(NAMES, NAMES.filter(lambda name: name != "cpu")).map(":".join))
SPACES = optional(
    architecture=st.dictionaries(
        NAMES, st.one_of(SCALARS, choices(SCALARS), ranges(st.integers(-(2**40), 2**40)), ranges(FLOATS)), max_size=3
    ),
    pruning=st.one_of(st.none(), st.dictionaries(NAMES, real_domains(0, 1, exclude_max=True), max_size=3)),
    pruning_importance=listed("magnitude", st.sampled_from(["taylor", "activation"])),
    pruning_steps=listed(1, COUNT),
    low_rank=st.dictionaries(NAMES, listed(1.0, st.floats(0, 1, exclude_min=True)), max_size=3),
    tables=optional(
        form=listed("full", st.sampled_from(["quotient-remainder", "mixed-dimensions"])),
        full_rows_share=real_domains(0, 1, exclude_max=True),
        temperature=real_domains(0, 1, exclude_min=True),
    ),
    attention=optional(window=listed(0, COUNT), history=listed(0, COUNT)),
    quantization_aware=st.just([False, True]),
    distillation=optional(
        temperature=real_domains(1, 1e300),
        teacher_weight=real_domains(0, 1),
        feature_weight=real_domains(0, 1e300),
        epochs=st.one_of(st.none(), COUNT),
    ),
    precision=st.dictionaries(
        NAMES.filter(lambda name: name not in ("compute", "calibration")),
        listed("fp32", st.sampled_from(space_sections._WIDTHS)),
        max_size=3,
    ),
    placement=optional(
        engines=listed("onnxruntime", PLACES),
        layouts=listed("1xauto", LAYOUTS),
        embedding_device=listed("same", PLACES),
        inline=st.just([False, True]),
        batch_rows=listed(0, COUNT),
        queue=MAYBE_COUNT,
    ),
)


def columns_of(names: list[str]) -> dict[str, Any]:
    """Columns of a table whose names are all different: features of each kind, one the user's and one the item's."""
    # A letter first: a dumper may leave 1e5 without quotes, which is a number.
    label, timestamp, user, item, *features = (f"c{number}{name}" for number, name in enumerate(names))
    kinds = {kind: features[start::3] for start, kind in enumerate(("categorical", "numeric", "multi"))}
    owned = {"of_user": features[:1], "of_item": features[1:2]}
    return {"label": label, "timestamp": timestamp, "user": user, "item": item, **kinds, **owned}


STUDIES = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,20}\Z"),
        "data": st.one_of(
            st.just({"source": "ml-100k"}),
            st.text(INK, min_size=1, max_size=8).map(lambda t: {"source": f"movielens:/{t}"}),
            st.integers(1, 10**6).map(lambda n: {"source": "synthetic", "rows": n + 1, "users": n}),
            st.lists(st.text(INK, max_size=8), min_size=4, max_size=9).map(
                lambda names: {"source": "table:/x.csv", "columns": columns_of(names)}
            ),
            st.just({"source": "criteo:/x"}),
        ),
        "price_per_hour": POSITIVE,
    },
    optional={
        "recommender": st.sampled_from(["dcn-v2", "dlrm"]),
        "sizes": st.dictionaries(NAMES, st.one_of(st.integers(0, 4096), st.just("64-32")), max_size=2),
        "quality": optional(max_loss=st.floats(0, 1, exclude_min=True, exclude_max=True)),
        "traffic": optional(
            load=st.floats(0, 1, exclude_min=True, exclude_max=True),
            rows=st.tuples(COUNT, COUNT).map(lambda pair: {"median": min(pair), "max": max(pair)}),
        ),
        "slo": optional(percentile=st.sampled_from([50, 95, 99]), ms=st.one_of(st.none(), POSITIVE)),
        "objectives": st.permutations(get_args(module.Objective)).flatmap(
            lambda every: st.integers(1, len(every)).map(lambda n: list(every[:n]))
        ),
        "space": SPACES,
        "timing": optional(screen_blocks=st.integers(20, 1000), patience_seconds=POSITIVE),
        "budget": optional(minutes=POSITIVE, trials=MAYBE_COUNT),
        "workers": optional(builders=MAYBE_COUNT, fit_seconds=POSITIVE, job_seconds=POSITIVE),
        "seed": st.integers(0, 2**32 - 1),
        "tracking_uri": st.one_of(st.none(), st.text(INK, min_size=1, max_size=8)),
    },
)


@settings(deadline=None)  # the machine may be busy
@given(STUDIES)
def test_there_and_back(data: dict[str, Any]) -> None:
    config = parse(data)
    plain = config.model_dump(mode="json")
    assert parse(json.loads(json.dumps(plain))) == config == parse(plain)
    through_yaml = parse(plain_data(as_yaml(plain), "study.yaml"))
    assert repr(through_yaml) == repr(config)
    assert identity(through_yaml) == identity(config) and difference(plain, config) is None
    assert pickle.loads(pickle.dumps(config)) == config
    for layout in config.space.placement.layouts or ():
        parse_layout(layout)


@settings(deadline=None)  # the machine may be busy
@given(STUDIES, STUDIES)
def test_a_difference_is_found_exactly_when_the_canonical_texts_differ(a: dict[str, Any], b: dict[str, Any]) -> None:
    one, other = parse(a), parse({**b, "name": a["name"], "data": a["data"]})
    found = difference(one, other)
    assert (found is None) == (identity(one) == identity(other))
    assert found is None or len(found.splitlines()) == 1


@settings(deadline=None)  # the machine may be busy
@given(
    st.recursive(SCALARS | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
)
def test_any_other_data_are_one_line(data: Any) -> None:
    for section in ("recommender", "sizes", "quality", "traffic", "objectives", "space", "seed", "data"):
        try:
            study(**{section: data})
        except ConfigError as error:
            assert len(str(error).splitlines()) == 1 and str(error).split(":")[0].startswith(section)


@settings(deadline=None)  # the machine may be busy
@given(
    st.dictionaries(st.sampled_from(sorted(ColumnsConfig.model_fields)), SCALARS | st.none() | st.lists(SCALARS)),
    st.lists(st.sampled_from(["a", "b", "user"]), max_size=3),
)
def test_any_columns_are_a_schema_or_one_line(columns: dict[str, Any], names: list[str]) -> None:
    """What the study file lets through is what reads the table."""
    for given_columns in (columns, {"numeric": names, "of_user": names[:1], "of_item": names[1:], **columns}):
        try:
            data = study(**table(**given_columns)).data
        except ConfigError as error:
            line = str(error)
            assert len(line.splitlines()) == 1 and line.startswith("data.columns")
        else:
            assert isinstance(data, TableData)
            from_plain(Schema, data.columns.model_dump(mode="json"))


@settings(deadline=None)  # the machine may be busy
@given(st.text())
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        plain_data(text, "study.yaml")
    except ConfigError as error:
        assert len(str(error).splitlines()) <= 1
