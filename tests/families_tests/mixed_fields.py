"""Fields of every kind and side, rows of them, and oracles that the families' tests share."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from objectives.recommenders.datasets.features import Field
from spaces.model_structure import PrunableDim

# The numbers stand between the codes, the user's fields between the item's.
FIELDS = (
    Field(name="item", side="item", vocabulary=80),
    Field(name="age", side="user", kind="numeric"),
    Field(name="user", side="user", vocabulary=60),
    Field(name="genres", side="item", kind="multi", vocabulary=12, length=4),
    Field(name="price", side="item", kind="numeric"),
    Field(name="liked", side="user", kind="multi", vocabulary=9, length=3),
    Field(name="hour", side="context", vocabulary=24),
)
CODES = tuple(field for field in FIELDS if field.kind != "numeric")
USER = frozenset({"age", "user", "liked"})
ROWS = (1, 2, 7, 64, 257)
Arrays = dict[str, NDArray[np.generic]]


def draw(fields: Iterable[Field], rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Half of the codes of a multi-valued field are padding, anywhere; its first row has nothing else."""
    random = np.random.default_rng(seed)
    made: dict[str, Tensor] = {}
    for field in fields:
        if field.kind == "numeric":
            made[field.name] = torch.from_numpy(random.normal(size=rows).astype(np.float32))
        elif field.kind == "multi":
            codes = random.integers(1, field.vocabulary, (rows, field.length))
            codes *= random.random(codes.shape) < 0.5
            codes[0] = 0
            made[field.name] = torch.from_numpy(codes)
        else:
            made[field.name] = torch.from_numpy(random.integers(0, field.vocabulary, rows))
    return made


def one_users(inputs: Mapping[str, Tensor], row: int) -> Arrays:
    """The rows with the user's inputs of one of them in all."""
    return {
        name: np.repeat(values.numpy()[[row]], len(values), 0) if name in USER else values.numpy()
        for name, values in inputs.items()
    }


def lively(model: nn.Module) -> nn.Module:
    """Draw parameters and statistics in place, at a size at which every part of the model shows in its scores."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                fan_in = 4 if tensor.dim() < 2 or name.startswith("tables.") else tensor.shape[1]
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * fan_in**-0.5)
            if name.endswith(("running_var", "bias")):  # so that no unit is silent in all rows
                tensor.copy_(tensor.abs() + 0.5)
        for table in model.modules():
            if isinstance(table, nn.Embedding) and table.padding_idx is not None:
                table.weight[table.padding_idx] = 0
    return model.eval()


def scores(model: nn.Module, inputs: Mapping[str, Tensor]) -> NDArray[np.float32]:
    with torch.inference_mode():
        answer: NDArray[np.float32] = model(**inputs).numpy()
    return answer


def vectors_by_hand(
    model: nn.Module, fields: Iterable[Field], inputs: Mapping[str, Tensor]
) -> list[NDArray[np.float64]]:
    """Vectors of each field with codes, (rows, d), one code at a time."""
    tables = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    made = []
    for field in fields:
        if field.kind == "numeric":
            continue
        table = tables[f"tables.{field.name}.weight"]
        rows = []
        for codes in np.atleast_2d(inputs[field.name].numpy().T).T:
            taken = [table[code] for code in codes if field.kind == "categorical" or code != 0]
            rows.append(np.mean(taken, axis=0) if taken else np.zeros(table.shape[1]))
        made.append(np.array(rows))
    return made


def sliced(model: nn.Module, width: PrunableDim, gone: Iterable[int]) -> dict[str, Tensor]:
    """The state of the model without some units of a width, by its cuts alone."""
    state, gone = dict(model.state_dict()), tuple(gone)
    for cut in width.axis_slices:
        leave = set(cut.positions(gone))
        kept = [i for i in range(state[cut.tensor].shape[cut.axis]) if i not in leave]
        state[cut.tensor] = state[cut.tensor].index_select(cut.axis, torch.tensor(kept))
    return state


def factored(model: nn.Module, layer: str) -> tuple[nn.Module, nn.Module]:
    """Copies that compute the same: every table and the layer of rank 2 in two factors, and multiplied out."""
    factors, whole = copy.deepcopy(model), copy.deepcopy(model)
    for name in [*(f"tables.{field.name}" for field in CODES), layer]:
        weight = whole.get_parameter(f"{name}.weight")
        first: nn.Linear | nn.Embedding
        if name == layer:
            first, second = nn.Linear(weight.shape[1], 2, bias=False), nn.Linear(2, weight.shape[0])
            second.bias = nn.Parameter(model.get_parameter(f"{name}.bias"))
            product = second.weight @ first.weight
        else:
            first, second = nn.Embedding(weight.shape[0], 2), nn.Linear(2, weight.shape[1], bias=False)
            product = first.weight @ second.weight.T
        with torch.no_grad():
            weight.copy_(product)
        factors.set_submodule(name, nn.Sequential(first, second))
    return factors, whole
