"""Quality of a model's other outputs than the one that the metric evaluates. No torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from objectives.arrays import Numbers
from objectives.held_out_rows import HeldOut, of_output
from objectives.records import Quality, SliceQuality


def others_of(held: HeldOut, quality: Callable[[int, Numbers], Quality]) -> tuple[SliceQuality, ...]:
    """Evaluate each other output by the loss of its own labels, or report the reason why these do not define it.

    Args:
        quality: evaluates a column of scores with its labels, (n,)
    """

    def told(column: int, name: str, labels: Numbers) -> SliceQuality:
        try:
            of = quality(column, labels)
        except ValueError as error:
            return SliceQuality(of_output(name), len(labels), len(np.unique(held.groups)), reason=str(error))
        return SliceQuality(of_output(name), of.rows, of.groups, of.value, of.baseline, of.loss, of.loss_interval)

    return tuple(told(column, *item) for column, item in enumerate(held.others.items(), 1))
