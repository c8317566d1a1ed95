"""Held-out rows and requests as plain arrays, which a builder writes and the meter reads. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Array, Arrays, Numbers, groups_of_equal_rows
from objectives.measurement.load_generator import Request

# Parts of the data that a model may be evaluated on; it was trained on train.
HeldPart = Literal["validation", "test"]
HELD_PARTS: tuple[HeldPart, ...] = ("validation", "test")
_REQUESTS = "requests.npz"
S = TypeVar("S", bound=np.generic)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out rows for evaluation: n rows with labels, or n users and the next item of each.

    inputs: by name, (rows, ...) each, in blocks of rows of one shape, n rows in all; of a ranking one block without the
        input that takes items
    labels: (n,) of the main output, 0 or 1 where the metric wants that; of a ranking the next item's code
    groups: (n,) the user or request that a row belongs to
    slices: (n,) bool by name
    seen: of a ranking, codes of the items that a user had before, (n, longest), 0 as padding
    items: of a ranking, codes of the catalogue, (items,)
    others: labels of a model's other outputs, (n,), by the output's name in the order of the scores' columns
    """

    inputs: tuple[Arrays, ...]
    labels: Numbers
    groups: NDArray[np.int64]
    slices: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    seen: NDArray[np.int64] | None = None
    items: NDArray[np.int64] | None = None
    others: Mapping[str, Numbers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.seen is None) != (self.items is None):
            raise ValueError("A ranking has both a catalogue and what was seen of it, but got one of them.")

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts whose loss is reported in addition to that of all rows: slices and other outputs."""
        return (*self.slices, *map(of_output, self.others))

    def of_users(self, rows: NDArray[np.int64]) -> HeldOut:
        """Keep users of a ranking, given by their rows."""
        return HeldOut(
            tuple({name: values[rows] for name, values in block.items()} for block in self.inputs),
            self.labels[rows],
            self.groups[rows],
            {name: mask[rows] for name, mask in self.slices.items()},
            None if self.seen is None else self.seen[rows],
            self.items,
        )


def runs(
    inputs: Arrays,
    once: Collection[str],
    groups: NDArray[np.int64] | None = None,
    most: int = 4096,
) -> list[NDArray[np.int64]]:
    """Split rows of one shape into batches of row indices that may be scored together.

    A batch has at most `most` rows. Where a model takes some inputs once a request, or `groups` are given, a batch is
    all rows that are equal in these instead.

    Args:
        inputs: (rows, ...) by name
        once: names of the inputs that the model takes once a request
        groups: (rows,), given where the rows of a group, and no others, are scored together
    """
    apart = [inputs[name] for name in sorted(once)] + ([] if groups is None else [groups])
    if apart:
        return groups_of_equal_rows(apart)
    rows = np.arange(len(next(iter(inputs.values()))))
    return [rows[start : start + most] for start in range(0, len(rows), most)]


def of_output(name: str) -> str:
    """Return the part's name of another output."""
    return f"output {name}"


def write_held_out(held: HeldOut, folder: Path, part: HeldPart) -> None:
    arrays: dict[str, Array] = {"labels": held.labels, "groups": held.groups}
    for number, block in enumerate(held.inputs):
        arrays |= {f"input.{number}.{name}": values for name, values in block.items()}
    arrays |= {f"slice.{name}": mask for name, mask in held.slices.items()}
    arrays |= {f"other.{name}": labels for name, labels in held.others.items()}
    if held.seen is not None and held.items is not None:
        arrays |= {"seen": held.seen, "items": held.items}
    np.savez(folder / f"{part}.npz", allow_pickle=False, **arrays)


@lru_cache(maxsize=2)
def read_held_out(folder: Path, part: HeldPart) -> HeldOut:
    with np.load(folder / f"{part}.npz") as arrays:
        blocks = (_named(arrays, f"input.{number}") for number in itertools.count())
        return HeldOut(
            tuple(itertools.takewhile(bool, blocks)),
            arrays["labels"],
            arrays["groups"],
            _named(arrays, "slice"),
            arrays.get("seen"),
            arrays.get("items"),
            _named(arrays, "other"),
        )


def write_requests(requests: Sequence[Request], folder: Path) -> None:
    """Write each input's values in one flat array, with its shape in each request, since lengths may differ."""
    arrays: dict[str, Array] = {}
    for name in requests[0]:
        arrays[f"value.{name}"] = np.concatenate([request[name].ravel() for request in requests])
        arrays[f"shape.{name}"] = np.array([request[name].shape for request in requests])
    np.savez(folder / _REQUESTS, allow_pickle=False, **arrays)


@lru_cache(maxsize=1)
def read_requests(folder: Path) -> list[Request]:
    with np.load(folder / _REQUESTS) as arrays:
        values, shapes = _named(arrays, "value"), _named(arrays, "shape")
    cut = {}
    for name, flat in values.items():
        ends = np.cumsum(np.prod(shapes[name], axis=1))[:-1]
        parts = np.split(flat, ends)
        cut[name] = [part.reshape(shape) for part, shape in zip(parts, shapes[name], strict=True)]
    return [dict(zip(cut, of, strict=True)) for of in zip(*cut.values(), strict=True)]


def _named(arrays: Mapping[str, NDArray[S]], kind: str) -> dict[str, NDArray[S]]:
    """Return the arrays of a file whose names begin with `kind` and a dot, without that prefix."""
    return {name.removeprefix(f"{kind}."): arrays[name] for name in arrays if name.startswith(f"{kind}.")}
