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
from hypothesis import given
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
from search.session import unused_settings
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
        assert re.match(r"data\.rows: .*synthetic.*500", refused(study, data={"source": source, "rows": 500}))
    assert re.match(r"data\.rows: .*synthetic.*500", refused(study, data={**table()["data"], "rows": 500}))


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
        assert re.match(r"data\.columns: .*table.*\{\}", refused(study, data={"source": source, "columns": {}}))


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
def test_numbers(tmp_path: Path, text: str, value: float) -> None:
    source = written(tmp_path, f"name: a\ndata: {{source: ml-100k}}\nquality: {{max_loss: {text}}}\n")
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
    ("", "study.yaml: "),
    ("# nothing\n", "study.yaml: "),
    ("- a\n- b\n", "study.yaml: .*name, recommender, sizes, data, quality"),
    ("just text\n", "study.yaml: "),
    ("name: a\nquality: {max_loss: 0.01\nslo: {}\n", "study.yaml, line 3: not valid YAML: "),
    ("name: a\n\tseed: 1\n", "study.yaml, line 2: not valid YAML: "),
    ("name: a: b\n", "study.yaml, line 1: not valid YAML: "),
    ("name: a\n---\nname: b\n", "study.yaml, line 2: not valid YAML: "),
    ("name: a\nseed: \x07\n", "study.yaml, line 2: not valid YAML: "),
    ("name: a\nname: b\n", r"name: .*\(study.yaml, line 2\)"),
    ("name: a\nquality:\n  max_loss: 1\n  'max_loss': 2\n", r"max_loss: .*\(study.yaml"),
    ("space: {pruning: {mlp: 0.5, mlp: 0.6}}\n", r"mlp: .*\(study.yaml, line 1\)"),
    ("name: !!python/object:os.system x\n", "study.yaml, line 1: not valid YAML: "),
    ("slo: !!set {a}\n", "slo: must be a mapping"),
    ("seed: !!int abc\n", "study.yaml: not valid YAML: "),
    ("seed: " + "9" * 5000 + "\n", "study.yaml: not valid YAML: "),
    ("seed: 1" + "0" * 40 + "\n", "seed: .*10000000000000"),
    ("quality: {max_loss: 1" + "0" * 400 + "}\n", "quality.max_loss: "),
    ("space: &a {pruning: *a}\n", "space.pruning.pruning"),
    ("name: " + "[" * 1000 + "\n", "study.yaml: "),
    ("? [a, b]\n: 1\n", "name: missing"),
    ("1: 2\n", "1: unknown key"),
]


@pytest.mark.parametrize(("text", "start"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, start: str) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, text)
    assert re.match(start, refused(load, "study.yaml"))


def test_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(b"name: \xff\n")
    assert re.match(rf"{path}: .*UTF-8.* 6 ", refused(load, str(path)))


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    assert re.match(r"ml-10k: .*ml-100k, synthetic-small; .*'ml-100k'\?", refused(load, "ml-10k"))
    assert refused(load, "qqq").endswith("ml-100k, synthetic-small")
    assert refused(load, str(tmp_path)).startswith(f"{tmp_path}: ")
    refused(load, "a\0b")
    assert refused(load, "").startswith("'': ")
    assert "template" not in preset_names()


# --- fields ---

# Wrong values of each field.
WRONG: dict[str, list[Any]] = {
    "name": ["My study", "-a", "a\n", "", "a" * 101, 2024, None],
    "recommender": ["gru4rec", "dcn_v2", "shop factory"],
    "sizes": [None, {1: 2}],
    "sizes.mlp": [[64, 32], "64x32", "64-"],
    "sizes.crosses": [2.0, -1, True],
    "data": [None, "ml-100k"],
    "data.source": ["ml-1m", "movielens:", "tables:x.csv", 3, "criteo:", "synthetic:x"],
    "quality": [3, []],
    "quality.metric": ["ndcg", "ndcg@0", "auc\n", ["auc"], "ndcg@10"],
    "quality.max_loss": [0, 1, math.nan, math.inf, "1%", True, None],
    "traffic.pattern": ["burst", "log:"],
    "traffic.quiet": [2],
    "traffic.on_seconds": [0],
    "traffic.load": [1.0],
    "traffic.through": ["grpc", "HTTP", True],
    "traffic.overhead_ms": [-1, "5", math.nan],
    "traffic.rows": [200],
    "traffic.rows.median": [0],
    "traffic.rows.sigma": [-1],
    "traffic.rows.max": [100],
    "slo.percentile": [90, "95"],
    "slo.ms": [0],
    "objectives": [[], ["quality", "quality"], ["quality", "latency"], {"a": 1}, None],
    "space": [[]],
    "space.architecture": [[1], {1: 2}],
    "space.architecture.size": [
        [], [1, 1], [1, None], [[1]], [math.inf], None, {"low": 2, "high": 1}, {"low": 1, "high": 4, "step": 2},
        {"low": 1, "high": 4, "step": 0}, {"low": 0, "high": 4, "log": True},
    ],
    "space.pruning": [0.5],
    "space.pruning.mlp": [[0.5, 1.0], {"low": -0.1, "high": 0.5}, {"low": 0.5, "high": 1}, "half", True],
    "space.pruning_importance": [[], ["tailor"], ["taylor", "taylor"]],
    "space.pruning_steps": [[], [1, 0], [3, 3], [1.5], 3],
    "space.low_rank": [0.5],
    "space.low_rank.mlp": [[0.5], {"low": 0.5, "high": 1}, [1, 0], [1, 2]],
    "space.tables": [3],
    "space.tables.form": [["quotient-remainder"], [], ["full", "shared"]],
    "space.tables.full_rows_share": [1],
    "space.tables.temperature": [[0, 0.5]],
    "space.attention.window": [[8], 8, [0, -1]],
    "space.attention.history": [[0, 2.5], [0, 5, 5]],
    "space.quantization_aware": [[True], True, [0, 1]],
    "space.distillation.feature_weight": [[0, -1]],
    "space.distillation.temperature": [0.5],
    "space.distillation.teacher_weight": [[0.5, 1.5]],
    "space.distillation.epochs": [0, [1, 2]],
    "space.distillation.train": ["both", None, ["auto"]],
    "space.distillation.elastic_epochs": [0, 1.5],
    "space.distillation.early_stopping": ["never", 2, None],
    "space.distillation.fine_tuning": [[], [-1], [1, 1], 2],
    "space.precision.calibration": [["fp32"], [], ["entropy", "entropy"]],
    "space.precision.compute": [["fp32", "int8"]],
    "space.precision.mlp": [
        ["fp32", "int3"], ["fp32", "int8-dinamic"], ["int8-dynamic"], [], ["fp32", "fp32"], {"fp32": 1}, [32],
    ],
    "space.placement.layouts": [["1xauto", "2by1"], ["1xauto", "0x1"], ["1xauto", "01x1"], ["2x1"]],
    "space.placement.engines": [["openvino"], [], 3, ["onnxruntime", "onnxruntime:"]],
    "space.placement.inline": [[True]],
    "space.placement.split_rows": [[256]],
    "space.placement.queue": [0],
    "space.focus": [1],
    "budget.minutes": [0, math.inf],
    "budget.trials": [0, 1.0],
    "workers.builders": [0],
    "workers.fit_seconds": [-1],
    "workers.job_seconds": ["2m"],
    "seed": [-1, 2**32, True],
    "tracking_uri": [""],
    "storage": [3],
}  # fmt: skip
WRONG_COLUMNS: dict[str, list[Any]] = {
    "label": [None, ""],
    "timestamp": [3],
    "user": [["u"], "clicked"],
    "item": ["user_id"],
    "categorical": [None, ["a", "user"]],
    "numeric": [{"a": 1}, ["a", 1], ["a", "time"]],
    "multi": [["a", ""], ["a", "a"], "item"],
    "separator": [""],
    "positive_from": ["4", math.nan],
    "of_item": ["a"],
}
WRONG_SYNTHETIC: dict[str, list[Any]] = {
    "rows": [0, 2.5],
    "items": [True],
    "fields": [1],
    "user_turnover": [2],
    "order": [-0.1],
}


def nested(path: str, value: Any) -> Any:
    """The value under the keys of the path."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


@pytest.mark.parametrize(
    ("given", "unused"),
    [
        ({"recommender": "shop:factory", "traffic": {"rows": {"median": 50}}}, ("median",)),
        ({"recommender": "shop:factory", "traffic": {"rows": {"sigma": 0.1, "max": 500}}}, ("sigma", "max")),
        ({"recommender": "shop:factory", "traffic": {"rows": {"median": 50, "file": "log.csv"}}}, ()),
        ({"recommender": "shop:factory"}, ()),
        ({"data": {"source": "ml-100k"}, "traffic": {"rows": {"median": 50}}}, ()),
    ],
)
def test_rows_that_a_factorys_requests_do_not_have_are_told(given: dict[str, Any], unused: tuple[str, ...]) -> None:
    config = parse({"name": "s", **given})
    assert config.unused_rows == unused and len(unused_settings(config)) == len(unused)


# The field that is named, and settings that are wrong together.
BAD_FIELDS: list[tuple[str, dict[str, Any]]] = [
    *((field, nested(field, value)) for field, values in WRONG.items() for value in values),
    *((f"data.columns.{key}", table(**{key: value})) for key, values in WRONG_COLUMNS.items() for value in values),
    *(
        (f"data.{key}", {"data": {"source": "synthetic", key: value}})
        for key, values in WRONG_SYNTHETIC.items()
        for value in values
    ),
    ("data.source", {"data": {}}),
    ("data.source", {"data": {"source": "table:", "columns": COLUMNS}}),
    ("data", {"recommender": "shop:factory"}),
    ("sizes", {"recommender": "shop:factory", "data": None, "sizes": {"mlp": 3}}),
    ("quality.slices.'rare items'", {"quality": {"slices": {"rare items": 2}}}),
    ("data.columns", {"data": {"source": "table:x.csv"}}),
    ("data.columns", {"data": {"source": "table:x.csv", "columns": ["label"]}}),
    ("data.columns.label", {"data": {"source": "table:x.csv", "columns": None}}),
    ("data.columns.numeric", table(categorical=["a", "b"], numeric=["b"])),
    ("data.columns.of_user", table(categorical=["country"], of_user=["contry"])),
    ("data.columns.of_item", table(categorical=["a", "b"], of_user=["a", "b"], of_item=["b"])),
    ("data.columns.of_user", table(categorical=["a"], of_user=["a", "a"])),
    ("data.columns", table(user=None, item=None)),
    ("data.users", {"data": {"source": "synthetic", "rows": 100}}),
    ("quality.metric", {"recommender": "dlrm", "quality": {"metric": "hr@10"}}),
    ("quality.metric", {"recommender": "sasrec", "quality": {"metric": "auc"}}),
    ("quality.metric", {"recommender": "sasrec", "quality": {"metric": "gauc"}}),
    ("data.source", {"recommender": "sasrec", "data": {"source": "criteo:/x"}}),
    ("data.source", {"quality": {"metric": "gauc"}, "data": {"source": "criteo:/x"}}),
    ("data.columns.user", {"recommender": "sasrec", **table(user=None)}),
    ("data.columns.item", {"recommender": "sasrec", **table(item=None)}),
    ("data.columns.user", {"quality": {"metric": "gauc"}, **table(user=None)}),
    ("traffic.rows.max", {"traffic": {"rows": {"median": 5000}}}),
    ("slo.ms", {"traffic": {"overhead_ms": 4}, "slo": {"ms": 4}}),
    ("space.architecture.size.high", {"space": {"architecture": {"size": {"low": 1}}}}),
    ("space.architecture.size.high", {"space": {"architecture": {"size": {"low": 1, "high": math.nan}}}}),
    ("space.architecture.size.low", {"space": {"architecture": {"size": {"low": "a", "high": 1}}}}),
    ("space.architecture.size.low", {"space": {"architecture": {"size": {"low": True, "high": 1}}}}),
    ("space.architecture.size.log", {"space": {"architecture": {"size": {"low": 1, "high": 4, "log": "yes"}}}}),
    ("space.pruning.'a b\\n'", {"space": {"pruning": {"a b\n": 2}}}),
    ("space.distillation.temperature.high", {"space": {"distillation": {"temperature": {"low": 1, "high": "x"}}}}),
    ("price_per_hour", {"objectives": ["money_per_million"]}),
]


@pytest.mark.parametrize(("field", "sections"), BAD_FIELDS, ids=[str(s)[:60] for _, s in BAD_FIELDS])
def test_bad_fields(tmp_path: Path, field: str, sections: dict[str, Any]) -> None:
    line = refused(study, **sections)
    assert re.match(re.escape(field) + r"(\.\d+)?: ", line)
    assert "but got" in line or "missing" in line
    # The same through a file.
    text = as_yaml({**SMALLEST, **sections})
    assert refused(load, written(tmp_path, text)) == line


@pytest.mark.parametrize(
    ("sections", "got"),
    [
        ({"seed": -1}, "-1"),
        ({"seed": True}, "true"),
        ({"slo": {"percentile": "95"}}, "'95'"),
        ({"name": "a\n"}, "'a\\n'"),
        ({"budget": {"minutes": math.inf}}, ".inf"),
        ({"quality": {"max_loss": math.nan}}, ".nan"),
        ({"objectives": None}, "null"),
        ({"space": {"precision": {"mlp": {"fp32": 1}}}}, "{fp32: 1}"),
        ({"space": {"attention": {"history": [0, 5, 5]}}}, "[0, 5, 5]"),
        ({"space": {"quantization_aware": [True]}}, "[true]"),
    ],
)
def test_the_value_is_told_as_yaml(sections: dict[str, Any], got: str) -> None:
    assert f"but got {got}" in refused(study, **sections)


def test_missing_fields() -> None:
    assert refused(parse, {"data": {"source": "ml-100k"}}).startswith("name: missing; ")
    assert refused(parse, {"name": "a"}).startswith("data: missing; ")
    assert re.match("study: .*name, recommender, sizes, data,", refused(parse, [1]))


def test_a_number_as_text_is_hinted_at() -> None:
    assert "2024 (" in refused(study, name=2024) and "quotes" in refused(study, name=2024)


def test_the_nearest_value_is_hinted_at() -> None:
    assert refused(study, objectives=["latencyp95"]).endswith("'latencyp95'; did you mean 'latency_p95'?")
    assert refused(study, space={"precision": {"mlp": ["fp32", "int8_dynamic"]}}).endswith(
        "did you mean 'int8-dynamic'?"
    )


def test_the_first_error_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "seed: -1\nslo: {ms: -1, percentile: 3}\nname: a\nquality: {max_lose: 1}\n"
    assert re.match(r"seed: .*-1 \(and 3 more\)", refused(load, written(tmp_path, text)))
    text = "quality: {max_lose: 1}\nseed: -1\nname: a\ndata: {source: ml-100k}\n"
    assert re.match(r"quality\.max_lose: .*'max_loss'\? \(and 1 more\)", refused(load, written(tmp_path, text)))
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
    assert re.fullmatch(rf"{re.escape('.'.join((*path, misspelt)))}: .*'{name}'\?", refused(parse, data))


def test_an_unknown_key_like_no_other_lists_the_keys() -> None:
    assert re.match(r"slo\.qqq: .*percentile, ms", refused(study, slo={"qqq": 1}))


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
            "seed=7",
            "budget.trials=20",
        ],
    )
    assert config.budget == BudgetConfig(minutes=5.0, trials=20) and config.seed == 7
    assert config.space.pruning == {"mlp": Choice((0.25, 0.5))}
    assert config.objectives == ("quality",) and config.slo.ms == 3 and config.quality.max_loss == 0.001
    # Of two, the later counts; nothing after = is null.
    assert load("ml-100k", ["seed=1", "seed=2"]).seed == 2
    assert load("ml-100k", ["budget.trials="]).budget.trials is None


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed", "--set: .*'seed'"),
        ("=3", "--set: .*'=3'"),
        ("a..b=3", r"--set: .*'a\.\.b=3'"),
        ("name.first=3", r"name\.first: .*'ml-100k'"),
        ("qualty.max_loss=0.1", "qualty: .*'quality'"),
        ("seed=[1", "--set seed, line 1: "),
        ("seed={a: 1, a: 2}", r"seed\.a: .*\(--set seed, line 1\)"),
        ("seed=x", "seed: .*'x'"),
        ("data.rows=9", r"data\.rows: .*synthetic.*9"),
    ],
)
def test_bad_overrides(override: str, line: str) -> None:
    assert re.match(line, refused(load, "ml-100k", [override]))


# --- folders and files of data ---


def test_a_folder_is_relative_to_the_file_and_stored_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "studies" / "ml").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    source = written(tmp_path / "studies", "name: a\ndata: {source: 'movielens:ml'}\n")
    monkeypatch.chdir(tmp_path)
    assert load(source).data == MovieLensData(source=f"movielens:{(tmp_path / 'studies' / 'ml').resolve()}")
    for given_source in (source, "ml-100k"):
        data = load(given_source, ["data.source=movielens:here"]).data
        assert data == MovieLensData(source=f"movielens:{(tmp_path / 'here').resolve()}")
    assert load("ml-100k").data == MovieLensData(source="ml-100k")


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
    for name in ("studies", "gone.csv", "~nobody-of-that-name/x"):
        line = refused(load, source, [f"data.source={kind}:{name}"])
        assert line.startswith("data.source: ") and name in line


def test_a_front_to_start_from_is_relative_to_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is neither a path nor a JSON file that is there is the name of a study."""
    (tmp_path / "studies").mkdir()
    for file in ("mine.json", "other"):
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    source = written(tmp_path / "studies", "name: a\ndata: {source: ml-100k}\nstart_from: [other, b.json, fronts/b]\n")
    assert load(source).start_from == ("other", "b.json", str((tmp_path / "studies" / "fronts" / "b").resolve()))
    for one in ("mine.json", "[mine.json]"):
        assert load(source, [f"start_from={one}"]).start_from == (str((tmp_path / "mine.json").resolve()),)
    assert load(source, ["start_from=other"]).start_from == ("other",)
    assert refused(load, source, ["start_from=~nobody-of-that-name/x.json"]).startswith("start_from: must be a study")
    assert refused(load, source, ["start_from=[1]"]).startswith("start_from")


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
    for word in (
        *get_args(module.Objective),
        *metrics,
        *sources,
        "poisson",
        "pool",
        "http",
        *recommenders,
        *techniques,
    ):
        assert word in TEMPLATE


def test_the_examples_in_the_template_can_be_used() -> None:
    lines = TEMPLATE.replace("# for example: ", "").splitlines()
    examples = [line.strip() for line in TEMPLATE.splitlines() if "# for example: " in line]
    keys = {line.removeprefix("# for example: ").split(":")[0] for line in examples}
    assert examples and len(examples) == len(keys), "each key has one"
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
    assert refused(write_template, path).startswith(f"{path}: ")
    assert path.read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["study.yaml"]
    dangling = tmp_path / "dangling.yaml"
    dangling.symlink_to(tmp_path / "gone")
    assert refused(write_template, dangling).startswith(f"{dangling}: ")
    missing = tmp_path / "gone" / "study.yaml"
    assert refused(write_template, missing).startswith(f"{missing}: ")


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
        train=st.sampled_from(get_args(space_sections.Train)),
        elastic_epochs=st.one_of(st.none(), COUNT),
        early_stopping=st.booleans(),
        fine_tuning=st.lists(st.integers(0, 50), min_size=1, max_size=3, unique=True),
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
            through=st.sampled_from(["pool", "http"]),
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


@given(STUDIES, STUDIES)
def test_a_difference_is_found_exactly_when_the_canonical_texts_differ(a: dict[str, Any], b: dict[str, Any]) -> None:
    one, other = parse(a), parse({**b, "name": a["name"], "data": a["data"]})
    found = difference(one, other)
    assert (found is None) == (identity(one) == identity(other))
    assert found is None or len(found.splitlines()) == 1


@pytest.mark.parametrize("changed", [{"through": "http"}, {"overhead_ms": 5.0}])
def test_a_study_does_not_go_on_with_another_path_of_requests(changed: dict[str, Any]) -> None:
    """A study that was begun before there were such keys has their defaults."""
    before = study().model_dump(mode="json")
    del before["traffic"]["through"], before["traffic"]["overhead_ms"]
    ((key, value),) = changed.items()
    told = difference(before, study(traffic=changed))
    assert told is not None and told.startswith(f"traffic.{key} was ") and told.endswith(f"now {value!r}")
    assert difference(before, study()) is None


@given(
    st.recursive(SCALARS | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
)
def test_any_other_data_are_one_line(data: Any) -> None:
    for section in ("recommender", "sizes", "quality", "traffic", "objectives", "space", "seed", "data"):
        try:
            study(**{section: data})
        except ConfigError as error:
            assert len(str(error).splitlines()) == 1 and str(error).split(":")[0].startswith(section)


@given(
    st.dictionaries(st.sampled_from(sorted(ColumnsConfig.model_fields)), SCALARS | st.none() | st.lists(SCALARS)),
    st.lists(st.sampled_from(["a", "b", "user"]), max_size=3),
)
def test_any_columns_are_a_schema_or_one_line(columns: dict[str, Any], names: list[str]) -> None:
    """Schemas that the study file accepts are those that read the table."""
    for given_columns in (columns, {"numeric": names, "of_user": names[:1], "of_item": names[1:], **columns}):
        try:
            data = study(**table(**given_columns)).data
        except ConfigError as error:
            line = str(error)
            assert len(line.splitlines()) == 1 and line.startswith("data.columns")
        else:
            assert isinstance(data, TableData)
            from_plain(Schema, data.columns.model_dump(mode="json"))


@given(st.text())
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        plain_data(text, "study.yaml")
    except ConfigError as error:
        assert len(str(error).splitlines()) <= 1
