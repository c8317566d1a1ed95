"""Techniques compose: candidates drawn at random are built and served, and each shows all that was asked and no more.

Each export takes a second, so that the later candidates are slow tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from objectives.serving.devices import int8_weight_bits
from objectives.task import Task
from spaces.candidate import Candidate
from tests.compression_tests.composed import check
from tests.compression_tests.composing import COLUMNS, Shop, Walk, brief_training, told, walk, write_table

CANDIDATES, QUICK, SEED = 25, 5, 4
MEDIAN_ROWS = 20
SIZES: dict[str, dict[str, int | str]] = {
    "dcn-v2": {"embedding_dim": 16, "crosses": 2, "mlp": "64-48"},
    "dlrm": {"embedding_dim": 16, "bottom": "48-32", "top": "64-48"},
    "sasrec": {"embedding_dim": 32, "blocks": 2, "heads": 2, "feed_forward": 48, "length": 16},
}
# None as large as the baseline, so that a student always shows.
STUDENTS: dict[str, dict[str, list[int | str]]] = {
    "dcn-v2": {"embedding_dim": [8, 12], "crosses": [1], "mlp": ["48", "48-32"]},
    "dlrm": {"embedding_dim": [8, 12], "bottom": ["32", "32-16"], "top": ["48", "48-32"]},
    "sasrec": {"embedding_dim": [16, 24], "blocks": [1], "heads": [1, 2], "feed_forward": [32]},
}
BUILT = [
    pytest.param(family, number, marks=[pytest.mark.nightly] if number >= QUICK else [])
    for family in SIZES
    for number in range(CANDIDATES)
]


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The shop of a family, and its candidates' outcomes by number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("composition")
    write_table(home / "clicks.parquet", rows=4000, users=300, items=400)

    @cache
    def shop(family: str) -> Shop:
        source: dict[str, Any] = {"source": f"table:{home / 'clicks.parquet'}", "columns": COLUMNS}
        if family == "sasrec":
            source = {
                "source": "synthetic",
                "synthetic": {"rows": 4000, "users": 100, "items": 500, "order": 0.8, "zipf": 0.5},
            }
        task = Task(
            str(home), family, metric="auc", rows_median=MEDIAN_ROWS, rows_sigma=0.5, rows_max=60, seed=0,
            sizes=SIZES[family], int8_weight_bits=int8_weight_bits(), **source,
        )  # fmt: skip
        return Shop.open(
            task,
            {
                "architecture": STUDENTS[family],
                "distillation": {"epochs": 1, "feature_weight": [0, 0.5]},
                # Entropy takes as long for each range as all else together.
                "precision": {"calibration": ["minmax", "percentile"]},
                "placement": {"embedding_device": ["same", "onnxruntime", "openvino"]},
            },
        )

    @cache
    def candidates(family: str) -> list[Candidate]:
        return shop(family).candidates(CANDIDATES, SEED)

    @cache
    def walked(family: str, number: int) -> tuple[Shop, Walk]:
        candidate = candidates(family)[number]
        try:
            return shop(family), walk(shop(family), candidate)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} of {told(candidate)}") from error

    with brief_training():
        yield walked
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "number"), BUILT)
def test_a_candidate_is_all_that_was_asked_and_no_more(shops: Any, family: str, number: int) -> None:
    """The space offers nothing that a technique then refuses."""
    shop, done = shops(family, number)
    assert done.refusal is None, told(done.candidate)
    check(shop, done)
