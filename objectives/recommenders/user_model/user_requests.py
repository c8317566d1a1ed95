"""Requests of the user's own factory, and the sides of inputs inferred from them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from objectives.arrays import Array, Arrays, are_rows_equal
from objectives.bags import padded
from objectives.recommenders.user_model.factory import FactoryError, Given, called, check_even
from objectives.recommenders.user_model.padded_forward import bags_of

_REQUESTS = 1000
# Requests of several rows that must agree on an input before it counts as the user's.
_TELLING = 20


@dataclass(frozen=True, eq=False)
class Sent:
    """Requests, all with the same inputs.

    once: inputs of one row where others have several
    constant: inputs that are the same in all rows of each of these requests
    declared: inputs that the factory declares to be the user's, None where it declares none
    """

    requests: tuple[Arrays, ...]
    once: frozenset[str]
    constant: frozenset[str]
    declared: frozenset[str] | None = None

    @property
    def of_user(self) -> frozenset[str]:
        """Inputs of the user: those declared, else inferred from these requests; and those given once."""
        return self.once | (self.constant if self.declared is None else self.declared)

    @property
    def inferred(self) -> frozenset[str]:
        """Inputs whose side is inferred."""
        return frozenset(self.first) - self.once if self.declared is None else frozenset()

    @property
    def first(self) -> Arrays:
        return self.requests[0]

    def sized(self, rows: NDArray[np.int64]) -> Sent:
        """Resize the requests to the given sizes: each to its first rows, or to all of them repeated cyclically."""
        sized = []
        for number, size in enumerate(rows.tolist()):
            request = self.requests[number % len(self.requests)]
            sized.append({n: v if n in self.once else v[np.arange(size) % len(v)] for n, v in request.items()})
        return replace(self, requests=tuple(sized))

    def rows(self, count: int) -> dict[str, Array]:
        """Return rows of requests with the commonest lengths, evenly spread over them.

        Neighbouring rows are of one user. Where an input is given once a request, it has to be that of all rows of a
        run, so that the first rows are taken.
        """
        shapes = Counter(shape_of(request) for request in self.requests)
        (common, _), *_ = shapes.most_common(1)
        alike = [rowed(request) for request in self.requests if shape_of(request) == common]
        joined = {name: np.concatenate([request[name] for request in alike]) for name in alike[0]}
        held = len(next(iter(joined.values())))
        spread = held > count and not self.once
        picks = np.linspace(0, held - 1, count, dtype=np.int64) if spread else np.resize(np.arange(held), count)
        return {name: values[picks] for name, values in joined.items()}


def sent_by(given: Given, seed: int) -> Sent:
    """Read the first thousand requests of the factory.

    Raises:
        FactoryError: there are none, their inputs differ, rows differ within one, or a declared input of the user's is
        not constant.
    """
    where = f"{given.name}: requests({seed})"
    bags = bags_of(given.model)
    requests = called(
        where,
        lambda: tuple(
            padded({name: _kept(values) for name, values in request.items()}, bags)
            for request in islice(given.requests(seed), _REQUESTS)
        ),
    )
    if not requests:
        raise FactoryError(f"{where} must yield a request or more, but yielded none")
    names = list(requests[0])
    for request in requests:
        if list(request) != names:
            raise FactoryError(f"{where} must name the same inputs in each, but got {names} and {list(request)}")
        check_even(request, where)
    several = [request for request in requests if max(map(len, request.values())) > 1]
    once = frozenset(n for n in names if several and all(len(request[n]) == 1 for request in several))
    constant = frozenset(n for n in names if all(are_rows_equal(request[n]) for request in several))
    declared = getattr(given, "user_inputs", None)
    where = f"{given.name}: user_inputs must name inputs"
    if unknown := sorted(set(declared or ()) - set(names)):
        raise FactoryError(f"{where} of the requests, {', '.join(names)}, but got {unknown[0]!r}")
    if different := sorted(set(declared or ()) - constant):
        raise FactoryError(f"{where} that are equal in all rows of a request, but got {different[0]!r}, which differs")
    sides = constant if len(several) >= _TELLING else once
    return Sent(requests, once, sides, None if declared is None else frozenset(declared))


def _kept(values: object) -> Array:
    """Copy an input of a request, since the user's code may reuse the same array."""
    return np.array(values.numpy(force=True) if isinstance(values, Tensor) else values, order="C", ndmin=1)


def rowed(arrays: Arrays, rows: int | None = None) -> dict[str, Array]:
    """Repeat inputs given once for each row."""
    count = rows or max(map(len, arrays.values()))
    return {n: np.repeat(v, count, axis=0) if len(v) == 1 < count else v for n, v in arrays.items()}


def shape_of(arrays: Arrays) -> tuple[tuple[int, ...], ...]:
    """Return the shape of one row of each input."""
    return tuple(values.shape[1:] for values in arrays.values())
