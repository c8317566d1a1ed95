"""Requests as production sends them: one user at one moment, and the items to rank."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from objectives.recommenders.features import Dataset

_TRIES = 1000  # test rows to try for one whose user has an unseen item


@dataclass(frozen=True, eq=False)
class Requests:
    """Request i is rows offsets[i] to offsets[i + 1] of each input."""

    inputs: Mapping[str, NDArray[np.int64]]  # field -> (total_rows,) codes
    offsets: NDArray[np.int64]  # (count + 1,)

    def __post_init__(self) -> None:
        offsets = self.offsets
        if offsets.ndim != 1 or len(offsets) < 1 or offsets[0] != 0 or np.any(np.diff(offsets) < 1):
            raise ValueError(f"offsets must start at 0 and ascend, but got {offsets[:5]}... of shape {offsets.shape}")
        for name, values in self.inputs.items():
            if values.shape != (offsets[-1],):
                raise ValueError(f"input {name!r} must have {offsets[-1]} rows, but got shape {values.shape}")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> dict[str, NDArray[np.int64]]:
        """The inputs of one request, each (rows,): views, not copies."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"a request's number must be within {len(self)} requests, but got {index}")
        index %= len(self)
        return {name: values[self.offsets[index] : self.offsets[index + 1]] for name, values in self.inputs.items()}

    def save(self, path: Path) -> None:
        """Writes the requests to path, an .npz file, under exactly that name."""
        arrays = {f"input:{name}": values for name, values in self.inputs.items()}
        with path.open("wb") as file:  # given a name, NumPy would append .npz to it
            np.savez(file, allow_pickle=False, offsets=self.offsets, **arrays)

    @staticmethod
    def load(path: Path) -> "Requests":
        with np.load(path, allow_pickle=False) as stored:
            if "offsets" not in stored.files:
                raise ValueError(f"a file of requests must hold offsets, but got {path} with {stored.files}")
            inputs = {name.partition(":")[2]: stored[name] for name in stored.files if name.startswith("input:")}
            return Requests(inputs, stored["offsets"])


def lognormal_rows(median: int, sigma: float, most: int, count: int, seed: int) -> NDArray[np.int64]:
    """(count,) rows of each request: lognormal, rounded, from 1 to `most`."""
    drawn = np.random.default_rng(seed).lognormal(np.log(median), sigma, size=count)
    return np.clip(np.rint(drawn), 1, most).astype(np.int64)


def recorded_rows(rows: NDArray[np.int64], most: int, count: int) -> NDArray[np.int64]:
    """(count,) rows of each request: those of a log, (n,), in their order, round and round, cut at `most`."""
    if rows.ndim != 1 or len(rows) == 0 or rows.min() < 1 or most < 1:
        raise ValueError(f"recorded rows and the most of them must be at least 1, but got {rows} and {most}")
    return np.minimum(np.resize(rows, count), most).astype(np.int64)


def draw_requests(dataset: Dataset, rows: NDArray[np.int64], seed: int) -> Requests:
    """One request for each of rows, (count,): that many candidates for a user of the test rows, drawn by frequency.

    Request i copies a test row's user side and context, and ranks items drawn by their count in train rows among those
    the user had no event with before that row: without replacement while there are enough of them, else with.
    """
    if rows.ndim != 1 or len(rows) == 0 or rows.min() < 1:
        raise ValueError(f"rows must be the sizes, at least 1, of at least 1 request, but got {rows}")
    random = np.random.default_rng(seed)
    weight = np.bincount(dataset.inputs["item"][dataset.split.train], minlength=dataset.fields[1].vocabulary).astype(
        np.float64
    )
    weight[0] = 0  # not an item: whatever is unseen or too rare
    if not weight.any():
        raise ValueError(f"the train rows must hold a known item, but got none in {dataset.name!r}")
    known, cumulative, history = weight > 0, np.cumsum(weight), _History(dataset)
    moments, items = [], []
    for count in rows.tolist():
        moment, allowed = _moment(dataset, history, known, random)
        moments.append(moment)
        items.append(_draw(count, weight, cumulative, allowed, random))
    moment_of_row = np.repeat(np.array(moments, dtype=np.int64), rows)
    item = np.concatenate(items)
    # Where a log changes an item's features over time, the latest in train counts: the last assignment stays.
    latest = np.zeros(dataset.fields[1].vocabulary, dtype=np.int64)
    latest[dataset.inputs["item"][dataset.split.train]] = dataset.split.train
    inputs = {
        field.name: dataset.inputs[field.name][latest[item] if field.side == "item" else moment_of_row]
        for field in dataset.fields
    }
    return Requests(inputs, np.concatenate(([0], np.cumsum(rows))).astype(np.int64))


class _History:
    """Finds the items that a user had seen before a row."""

    def __init__(self, dataset: Dataset) -> None:
        order = np.argsort(dataset.group, kind="stable")  # within a user, time order is kept
        self._starts = np.searchsorted(dataset.group[order], np.arange(dataset.group.max() + 2))
        self._items = dataset.inputs["item"][order]
        self._timestamps = dataset.timestamp[order]
        self._dataset = dataset

    def before(self, row: int) -> NDArray[np.int64]:
        """Codes of the items, (seen,), each as often as it was seen."""
        user = self._dataset.group[row]
        start, end = self._starts[user], self._starts[user + 1]
        earlier = np.searchsorted(self._timestamps[start:end], self._dataset.timestamp[row], side="left")
        seen: NDArray[np.int64] = self._items[start : start + earlier]
        return seen


def _moment(
    dataset: Dataset, history: _History, known: NDArray[np.bool_], random: np.random.Generator
) -> tuple[int, NDArray[np.bool_]]:
    """A test row, and which items, (vocabulary,), its user may be shown. Any row: so users come by their frequency."""
    for _ in range(_TRIES):
        row = int(random.choice(dataset.split.test))
        allowed = known.copy()
        allowed[history.before(row)] = False
        if allowed.any():
            return row, allowed
    raise ValueError(f"users of test rows must have items that they have not seen, but got none in {dataset.name!r}")


def _draw(
    count: int,
    weight: NDArray[np.float64],
    cumulative: NDArray[np.float64],
    allowed: NDArray[np.bool_],
    random: np.random.Generator,
) -> NDArray[np.int64]:
    """Items, (count,), drawn one after the other by weight among the allowed; none twice while they suffice."""
    if np.count_nonzero(allowed) < count:
        possible = np.flatnonzero(allowed)
        share = weight[possible] / weight[possible].sum()
        repeated: NDArray[np.int64] = random.choice(possible, size=count, p=share)
        return repeated
    # Drawing from all and passing over what is not allowed is fast as long as most of the weight is left ...
    drawn = np.searchsorted(cumulative, random.random(4 * count) * cumulative[-1], side="right")
    drawn = np.minimum(drawn, len(weight) - 1)  # rounding may reach the very end
    drawn = drawn[allowed[drawn]]
    taken: NDArray[np.int64] = drawn[np.sort(np.unique(drawn, return_index=True)[1])][:count]
    if len(taken) == count:
        return taken
    # ... else the rest come by an exponential race: the first to arrive at a rate of its weight is drawn next.
    left = np.setdiff1d(np.flatnonzero(allowed), taken, assume_unique=True)
    arrival = random.exponential(size=len(left)) / weight[left]
    return np.concatenate([taken, left[np.argsort(arrival, kind="stable")[: count - len(taken)]]])
