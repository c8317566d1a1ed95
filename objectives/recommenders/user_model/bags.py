"""Recognition of the bags that a factory's batches and requests give flat, with offsets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from objectives.bags import Bags
from objectives.errors import one_line
from objectives.parity import compare_scores
from objectives.recommenders.user_model.factory import FactoryError, Given, batches_of, flat_batches
from objectives.recommenders.user_model.padded_forward import EmbeddingBagCalls, PaddedForward, bags_of, take_padded
from objectives.training_rows import Inputs, leaves


def take_bags(given: Given) -> None:
    """Let the factory's model take its bags padded.

    The bags are those that are declared, else those that the model gives to `F.embedding_bag` with an input's offsets.

    Raises:
        FactoryError: what is declared are no bags, or it is not clear what to infer.
    """
    declared = getattr(given, "bags", None)
    unknown = declared is None and any(isinstance(module, nn.EmbeddingBag) for module in given.model.modules())
    if bags_of(given.model) or not (declared or unknown):
        return
    inputs, _, groups = next(flat_batches(given, "train"))
    calls: list[Mapping[str, Any]] = []
    try:
        with EmbeddingBagCalls(calls.append), torch.no_grad():
            expected = given.model(**inputs)
    except Exception as error:  # anything that the user's own forward may raise
        raise FactoryError(f"{given.name}: a batch of train does not fit the model: {one_line(error)}") from error
    rows, where = groups.size, f"{given.name}: bags"
    offsets_of: Mapping[str, str] = declared or _inferred(calls, inputs, rows, where)
    for values, offsets in offsets_of.items():
        if values not in inputs or offsets not in inputs or inputs[offsets].ndim != 1:
            rule = f"must map inputs of values to inputs of offsets, of {', '.join(inputs)}"
            raise FactoryError(f"{where} {rule}, but got {values!r}: {offsets!r}")
    bags: list[Bags] = []
    for offsets in (name for name in inputs if name in offsets_of.values()):
        names = tuple(name for name in inputs if offsets_of.get(name) == offsets)
        bags.append(Bags(offsets, names, len(inputs[offsets]) not in (rows, 1), declared is None))
    if bags:
        own = given.model.forward
        take_padded(given.model, bags, masked=False)
        inputs, _, _ = next(batches_of(given, "train"))
        take_padded(given.model, bags, _is_same(PaddedForward(own, bags, True).on_padded, inputs, expected))


def _inferred(calls: Sequence[Mapping[str, Any]], inputs: Inputs, rows: int, where: str) -> dict[str, str]:
    """Return the name of the offsets by the name of the values.

    Where a call's values are computed, such as hashes, they are the inputs of as many values that no call takes
    unchanged.

    Raises:
        FactoryError: this is ambiguous.
    """
    names = {id(values): name for name, values in inputs.items()}
    of_inputs = [call for call in calls if id(call.get("offsets")) in names]
    given = [(names[id(call["offsets"])], [call["input"], call.get("per_sample_weights")]) for call in of_inputs]
    found = {names[id(one)]: offsets for offsets, values in given for one in values if id(one) in names}
    computed: dict[str, str] = {}
    for offsets, (ids, factors) in given:
        if id(ids) in names and (factors is None or id(factors) in names):
            continue
        alike = [n for n, v in inputs.items() if n not in {*found, offsets} and v.shape[:1] == ids.shape[:1] != (rows,)]
        unclear = not alike and id(ids) not in names
        if unclear or any(computed.get(name, offsets) != offsets for name in alike):
            raise FactoryError(f"{where} must be declared, as {{values: offsets}}: those of {offsets} are not clear")
        computed |= dict.fromkeys(alike, offsets)
    return found | computed


def _is_same(forward: Callable[..., Any], inputs: Inputs, expected: Any) -> bool:
    """Return whether a forward gives the expected outputs; one that is not made for such inputs may fail in any way."""
    try:
        with torch.no_grad():
            found = forward(**inputs)
        for ours, theirs in zip(leaves(found), leaves(expected), strict=True):
            compare_scores([ours.numpy()], [theirs.numpy()])
    except Exception:  # anything that the user's own forward may raise
        return False
    return True
