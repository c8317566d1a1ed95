"""Requests as in production: one user at one moment, and the items to rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Array, Arrays
from objectives.recommenders.datasets.features import Dataset, Field
from objectives.recommenders.datasets.weighted_sampling import ByWeight
from objectives.task import Task

REQUESTS = 1000
_TRIES = 1000  # test rows to try for one whose user has an unseen item


@dataclass(frozen=True, eq=False)
class Requests:
    """Requests, of which number i has rows offsets[i] to offsets[i + 1] of each input."""

    inputs: Arrays  # field -> (total_rows,) codes or numbers, or (total_rows, length) codes
    offsets: NDArray[np.int64]  # (count + 1,)

    def __post_init__(self) -> None:
        offsets = self.offsets
        if offsets.ndim != 1 or len(offsets) < 1 or offsets[0] != 0 or np.any(np.diff(offsets) < 1):
            raise ValueError(f"offsets must start at 0 and ascend, but got {offsets[:5]}... of shape {offsets.shape}")
        for name, values in self.inputs.items():
            if values.shape[:1] != (offsets[-1],):
                raise ValueError(f"input {name!r} must have {offsets[-1]} rows, but got shape {values.shape}")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> dict[str, Array]:
        """Return the inputs of one request, `rows` of each, as views."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"a request's number must be within {len(self)} requests, but got {index}")
        index %= len(self)
        return {name: values[self.offsets[index] : self.offsets[index + 1]] for name, values in self.inputs.items()}

    def save(self, path: Path) -> None:
        """Write the requests to path, an .npz file, under exactly that name."""
        arrays = {f"input:{name}": values for name, values in self.inputs.items()}
        with path.open("wb") as file:  # given a name, NumPy would append .npz to it
            np.savez(file, allow_pickle=False, offsets=self.offsets, **arrays)

    @staticmethod
    def load(path: Path) -> Requests:
        with np.load(path, allow_pickle=False) as stored:
            if "offsets" not in stored.files:
                raise ValueError(f"a file of requests must hold offsets, but got {path} with {stored.files}")
            inputs = {name.partition(":")[2]: stored[name] for name in stored.files if name.startswith("input:")}
            return Requests(inputs, stored["offsets"])


def lognormal_rows(median: int, sigma: float, most: int, count: int, seed: int) -> NDArray[np.int64]:
    """Draw the rows of each request, (count,): lognormal, rounded, from 1 to `most`."""
    drawn = np.random.default_rng(seed).lognormal(np.log(median), sigma, size=count)
    return np.clip(np.rint(drawn), 1, most).astype(np.int64)


def recorded_rows(rows: NDArray[np.int64], most: int, count: int) -> NDArray[np.int64]:
    """Return the rows of each request, (count,): those of a log, (n,), in their order, repeated cyclically, at most
    `most`.
    """
    if rows.ndim != 1 or len(rows) == 0 or rows.min() < 1 or most < 1:
        raise ValueError(f"recorded rows and the most of them must be at least 1, but got {rows} and {most}")
    return np.minimum(np.resize(rows, count), most).astype(np.int64)


def request_rows(task: Task, seed: int) -> NDArray[np.int64]:
    """Return the rows of each request, (requests,), by the task's settings."""
    if task.rows_trace is None:
        return lognormal_rows(task.rows_median, task.rows_sigma, task.rows_max, REQUESTS, seed)
    with np.load(task.rows_trace) as trace:
        return recorded_rows(trace["rows"], task.rows_max, REQUESTS)


def draw_requests(dataset: Dataset, rows: NDArray[np.int64], seed: int) -> Requests:
    """Draw one request for each of rows, (count,): a test row's user side and context, and that many candidates.

    Where the data name items, candidates are drawn by their count in train rows among those that the test row's user
    had no event with before it: without replacement while there are enough of them, else with. Otherwise a candidate is
    the item side of any test row.

    Raises:
        ValueError: rows are not sizes of at least 1, or no candidate is available.
    """
    if rows.ndim != 1 or len(rows) == 0 or rows.min() < 1:
        raise ValueError(f"rows must be the sizes, at least 1, of at least 1 request, but got {rows}")
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
    return Requests(inputs, np.concatenate(([0], np.cumsum(rows))).astype(np.int64))


def _rank_items(
    dataset: Dataset, item: Field, rows: NDArray[np.int64], random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the test row of each request, (count,), and for each candidate, (total_rows,), a row with its features."""
    train, codes = dataset.split.train, dataset.codes("item")
    count = np.bincount(codes[train], minlength=item.vocabulary).astype(np.float64)
    count[0] = 0  # code 0 is no item, but all unseen and rare ones
    if not count.any():
        raise ValueError(f"the train rows must hold a known item, but got none in {dataset.name!r}")
    popular, history = ByWeight(count), _History(dataset)
    moments, items = [], []
    for wanted in rows.tolist():
        moment, allowed = _moment(dataset, history, popular.possible, random)
        moments.append(moment)
        items.append(popular.draw(wanted, allowed, random))
    # Where a log changes an item's features over time, the latest in train counts: the last assignment wins.
    latest = np.zeros(item.vocabulary, dtype=np.int64)
    latest[codes[train]] = train
    return np.array(moments, dtype=np.int64), latest[np.concatenate(items)]


class _History:
    """Items that a user had seen before a row; without users, none."""

    def __init__(self, dataset: Dataset) -> None:
        order = np.argsort(dataset.group, kind="stable")  # within a user, time order is kept
        self._starts = np.searchsorted(dataset.group[order], np.arange(dataset.group.max() + 2))
        self._items = dataset.codes("item")[order]
        self._timestamps = dataset.timestamp[order]
        self._dataset = dataset

    def before(self, row: int) -> NDArray[np.int64]:
        """Return the codes of the items seen before a row, (seen,), each as often as it was seen."""
        user = self._dataset.group[row]
        start, end = self._starts[user], self._starts[user + 1]
        earlier = np.searchsorted(self._timestamps[start:end], self._dataset.timestamp[row], side="left")
        return self._items[start : start + earlier]


def _moment(
    dataset: Dataset, history: _History, known: NDArray[np.bool_], random: np.random.Generator
) -> tuple[int, NDArray[np.bool_]]:
    """Draw a test row, and the mask of items, (vocabulary,), that its user may be shown. Rows are uniform, so users are
    drawn by their frequency.
    """
    for _ in range(_TRIES):
        row = int(random.choice(dataset.split.test))
        allowed = known.copy()
        allowed[history.before(row)] = False
        if allowed.any():
            return row, allowed
    raise ValueError(f"users of test rows must have items that they have not seen, but got none in {dataset.name!r}")
