"""Requests as in production: one user at one moment, and the items to rank."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from objectives.arrays import Array
from objectives.recommenders.datasets.click_log import Integers
from objectives.recommenders.datasets.features import Dataset, Field
from objectives.recommenders.datasets.weighted_sampling import ByWeight
from objectives.task import Task

REQUESTS = 1000
_TRIES = 1000  # test rows to try for one whose user has an unseen item


def lognormal_rows(median: int, sigma: float, most: int, count: int, seed: int) -> Integers:
    """Draw the rows of each request, (count,): lognormal, rounded, from 1 to `most`."""
    drawn = np.random.default_rng(seed).lognormal(np.log(median), sigma, size=count)
    return np.clip(np.rint(drawn), 1, most).astype(np.int64)


def recorded_rows(rows: Integers, most: int, count: int) -> Integers:
    """Return the rows of each request, (count,): those of a log, (n,), repeated in order, each at most `most`."""
    if rows.ndim != 1 or len(rows) == 0 or rows.min() < 1 or most < 1:
        raise ValueError(f"recorded rows and the most of them must be at least 1, but got {rows} and {most}")
    return np.minimum(np.resize(rows, count), most).astype(np.int64)


def request_rows(task: Task, seed: int) -> Integers:
    """Return the rows of each request, (requests,), by the task's settings."""
    if task.rows_trace is None:
        return lognormal_rows(task.rows_median, task.rows_sigma, task.rows_max, REQUESTS, seed)
    with np.load(task.rows_trace) as trace:
        return recorded_rows(trace["rows"], task.rows_max, REQUESTS)


def draw_requests(dataset: Dataset, rows: Integers, seed: int) -> list[dict[str, Array]]:
    """Draw one request for each number of rows in `rows`, (count,), at least 1 each.

    A request has a test row's user side and context, and that many candidates, as views of codes or numbers, (rows,),
    or codes, (rows, length), by field.

    Where the data name items, candidates are drawn by their count in train rows among those that the test row's user
    had no event with before it: without replacement while there are enough of them, else with. Otherwise a candidate is
    the item side of any test row.

    Raises:
        ValueError: no candidate is available.
    """
    random = np.random.default_rng(seed)
    item = dataset.field("item")
    if item is None:
        moments = random.choice(dataset.split.test, size=len(rows))
        candidates = random.choice(dataset.split.test, size=int(rows.sum()))
    else:
        moments, candidates = _rank_items(dataset, item, rows, random)
    moment_of_row = np.repeat(moments, rows)
    inputs = {
        field.name: dataset.inputs[field.name][candidates if field.side == "item" else moment_of_row]
        for field in dataset.fields
    }
    bounds = pairwise([0, *np.cumsum(rows).tolist()])
    return [{name: values[start:end] for name, values in inputs.items()} for start, end in bounds]


def _rank_items(dataset: Dataset, item: Field, rows: Integers, random: Generator) -> tuple[Integers, Integers]:
    """Draw the test row of each request, (count,), and for each candidate, (total_rows,), a row with its features."""
    train, codes = dataset.split.train, dataset.codes("item")
    count = np.bincount(codes[train], minlength=item.vocabulary).astype(np.float64)
    count[0] = 0  # code 0 is no item, but all unseen and rare ones
    if not count.any():
        raise ValueError(f"the train rows must hold a known item, but got none in {dataset.name!r}")
    popular = ByWeight(count)
    moments, items = [], []
    for wanted, (moment, allowed) in zip(rows.tolist(), _moments(dataset, popular.possible, random), strict=False):
        moments.append(moment)
        items.append(popular.draw(wanted, allowed, random))
    # Where a log changes an item's features over time, the latest in train counts: the last assignment wins.
    latest = np.zeros(item.vocabulary, dtype=np.int64)
    latest[codes[train]] = train
    return np.array(moments, dtype=np.int64), latest[np.concatenate(items)]


def _moments(dataset: Dataset, known: NDArray[np.bool_], random: Generator) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Draw test rows, uniformly, with a mask of the known items, (vocabulary,), that the user had not seen before."""
    order = np.argsort(dataset.group, kind="stable")  # within a user, time order is kept
    starts = np.searchsorted(dataset.group[order], np.arange(dataset.group.max() + 2))
    items, timestamps = dataset.codes("item")[order], dataset.timestamp[order]
    failed = 0
    while failed < _TRIES:
        row = int(random.choice(dataset.split.test))
        start, end = starts[dataset.group[row]], starts[dataset.group[row] + 1]
        earlier = np.searchsorted(timestamps[start:end], dataset.timestamp[row], side="left")
        allowed = known.copy()
        allowed[items[start : start + earlier]] = False
        if allowed.any():
            failed = 0
            yield row, allowed
        else:
            failed += 1
    raise ValueError(f"users of test rows must have items that they have not seen, but got none in {dataset.name!r}")
