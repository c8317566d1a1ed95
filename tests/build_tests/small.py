"""Small studies of each family, whose baselines train within seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from objectives.task import Task
from spaces.domains import Scalar

FAMILIES = ("dcn-v2", "dlrm", "sasrec")
ROWS, USERS, ITEMS, SHOPS = 4000, 120, 100, 290

COLUMNS: Mapping[str, Any] = {
    "label": "clicked",
    "timestamp": "at",
    "user": "who",
    "item": "what",
    "categorical": ["shop"],
    "numeric": ["age", "price"],
    "multi": ["tags", "liked"],
    "of_user": ["age", "liked"],
    "of_item": ["shop", "price", "tags"],
}
SIZES: Mapping[str, Mapping[str, Scalar]] = {
    "dcn-v2": {"embedding_dim": 8, "crosses": 2, "mlp": "64-32"},
    "dlrm": {"embedding_dim": 8, "bottom": "32", "top": "64-32"},
    "sasrec": {"embedding_dim": 16, "blocks": 2, "heads": 2, "feed_forward": 32, "length": 8},
}
# Flat enough for most items to come five times and more, so that the items' table can share rows.
SEQUENCES = {"rows": ROWS, "users": USERS, "items": 320, "fields": 5, "order": 0.8, "zipf": 0.3}


def write_table(file: Path) -> None:
    """Users and items with features of every kind; the shops are enough to share rows."""
    random = np.random.default_rng(0)
    user, item = random.integers(USERS, size=ROWS), random.integers(ITEMS, size=ROWS)
    age, price = random.integers(15, 90, USERS), random.lognormal(2, 1, ITEMS).round(2)
    words = np.array(list("abcdefgh"))
    liked = ["|".join(random.choice(words, random.integers(4), replace=False)) for _ in range(USERS)]
    tags = ["|".join(random.choice(words, random.integers(4), replace=False)) for _ in range(ITEMS)]
    logit = random.normal(size=USERS)[user] + random.normal(size=ITEMS)[item] + (age[user] - 50) / 40
    table = {
        "clicked": (random.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(int),
        "at": np.arange(ROWS) + 1_700_000_000,
        "who": user,
        "what": item,
        "shop": [f"shop {number}" for number in random.integers(SHOPS, size=ROWS)],
        "age": age[user],
        "price": price[item],
        "liked": [liked[u] for u in user],
        "tags": [tags[i] for i in item],
    }
    pl.DataFrame(table).write_csv(file)


def small_task(home: Path, family: str) -> Task:
    """Return the task of a table in the home, or of a synthetic log in whose order there is something to learn."""
    sequential = family == "sasrec"
    file = home / "clicks.csv"
    if not sequential and not file.exists():
        write_table(file)
    return Task(
        home=str(home),
        recommender=family,
        source="synthetic" if sequential else f"table:{file}",
        metric="ndcg@10" if sequential else "auc",
        rows_median=20,
        rows_sigma=0.5,
        rows_max=60,
        seed=0,
        synthetic=SEQUENCES if sequential else None,
        columns=None if sequential else COLUMNS,
        sizes=SIZES[family],
    )
