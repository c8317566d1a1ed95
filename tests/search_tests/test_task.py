"""Model and data of a study file reach a builder unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from objectives.recommenders.datasets.sources import read_log
from objectives.recommenders.datasets.table import Schema
from objectives.task import Task
from search import session as launch
from search.config.study_file import parse
from search.home import Home
from search.session import task_of
from spaces.serialization import from_plain, to_plain

COLUMNS = {"label": "clicked", "timestamp": "time", "user": "u", "item": "i", "numeric": ["price"], "of_item": "price"}
ROWS = "clicked,time,u,i,price\n1,10,7,3,2.5\n0,11,7,4,1.5\n1,12,8,3,2.5\n"


def task(root: Path, **sections: Any) -> Task:
    study = {"name": "s", "data": {"source": "synthetic", "rows": 800, "users": 40, "order": 0.5}, **sections}
    made = task_of(parse(study), Home(root))
    assert from_plain(Task, json.loads(json.dumps(to_plain(made)))) == made, "a builder gets it as JSON"
    return made


def test_the_metric_is_the_studys_or_the_familys_own(tmp_path: Path) -> None:
    assert task(tmp_path).metric == "auc"
    assert task(tmp_path, recommender="sasrec").metric == "ndcg@10"
    assert task(tmp_path, recommender="sasrec", quality={"metric": "hr@5"}).metric == "hr@5"


def test_a_synthetic_log_has_the_sizes_of_the_study(tmp_path: Path) -> None:
    made = task(tmp_path)
    assert made.synthetic == {"rows": 800, "users": 40, "items": 2000, "fields": 8, "user_turnover": 0.0, "order": 0.5}
    assert made.columns is None
    clicks = read_log(made)
    assert len(clicks.label) == 800 and clicks.user is not None and len(set(clicks.user.tolist())) <= 40


def test_a_table_is_read_by_the_columns_of_the_study(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_text(ROWS)
    made = task(tmp_path, data={"source": f"table:{tmp_path / 'clicks.csv'}", "columns": COLUMNS})
    assert made.synthetic is None and made.columns is not None
    schema = from_plain(Schema, made.columns)
    assert (schema.numeric, schema.sides, schema.positive_from) == (("price",), {"price": "item"}, None)
    clicks = read_log(made)
    assert clicks.label.tolist() == [1, 0, 1] and clicks.columns["price"].tolist() == [2.5, 1.5, 2.5]


def test_sizes_and_columns_name_what_follows_from_a_task(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_text(ROWS)
    data = {"source": f"table:{tmp_path / 'clicks.csv'}", "columns": COLUMNS}
    other = {**data, "columns": {**COLUMNS, "numeric": [], "categorical": "price"}}
    sized = task(tmp_path, sizes={"crosses": 2, "mlp": "64-32"})
    assert sized.sizes == {"crosses": 2, "mlp": "64-32"}
    made = (task(tmp_path), sized, task(tmp_path, data=data), task(tmp_path, data=other))
    assert len({one.key() for one in made}) == len(made)


@pytest.mark.parametrize("bits", [7, 8])
def test_int8_weights_have_the_bits_of_the_machines_kernels(
    bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "int8_weight_bits", lambda: bits)
    assert task(tmp_path).int8_weight_bits == bits
