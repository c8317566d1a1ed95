"""Groups of layers that are treated alike, their kinds and names; and the excluded modules, each with its reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import count

import torch
from torch import nn
from torch.fx import Node

from objectives.compression.module_edit import names_of, tensors
from objectives.compression.structure.program import MOVES, Flow, nearest, operator_name
from spaces.model_structure import Kind

TABLES = "tables"
_NORMS = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.RMSNorm)
_SOFTMAX = ("_softmax", "_safe_softmax")
_PRODUCTS = ("bmm", "mm", "addmm")


def weight_of(module: nn.Module) -> str:
    """Return the name of the matrix whose rows make a layer's units."""
    return "weight_hh_l0" if isinstance(module, nn.RNNBase) else "weight"


def grouped(model: nn.Module, flow: Flow, read: Set[str]) -> dict[str, tuple[Kind, tuple[str, ...]]]:
    """Return the kind and the layers of each group by its name.

    All tables are one group. Other layers are grouped by the part of the model, under a short name: the innermost named
    part of their path, numbers left out, with as much of the outer path as needed to distinguish two.

    Args:
        read: the names of the tensors that the program reads; layers with one output are in no group
    """
    tables = _modules_read(model, read, nn.Embedding, nn.EmbeddingBag)
    linear = [name for name in _modules_read(model, read, nn.Linear) if len(tensors(model)[f"{name}.weight"]) > 1]
    weights = _attention_weights(flow)
    attention = {layer for layer in linear if names_of(model, f"{layer}.weight")[0] in weights}
    by_path: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for layer in linear:
        by_path[_path(layer)].append(layer)
    encoders: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for layer in _modules_read(model, read, nn.RNNBase):
        path = _named(layer.split("."))
        encoders[path if path and path not in by_path else (*path, "recurrent")].append(layer)
    names = _short([*{**by_path, **encoders}])
    found: dict[str, tuple[Kind, tuple[str, ...]]] = {TABLES: ("table", tables)} if tables else {}
    for path, members in by_path.items():
        found[names[path]] = ("attention" if attention & set(members) else "linear", tuple(members))
    return found | {names[path]: ("recurrent", tuple(members)) for path, members in encoders.items()}


def _modules_read(model: nn.Module, read: Set[str], *types: type[nn.Module]) -> tuple[str, ...]:
    """Return the dotted names of the modules of these types whose weights the program reads; a shared one only once."""
    found = ((name, module) for name, module in model.named_modules() if isinstance(module, types))
    return tuple(name for name, module in found if f"{name}.{weight_of(module)}" in read)


def _attention_weights(flow: Flow) -> set[str]:
    """Return the names of the weights of an attention's layers."""
    names = {node: name for name, nodes in flow.places.items() for node in nodes}
    found: set[str] = set()
    for softmax in flow.program.exported.graph.nodes:
        if operator_name(softmax) not in _SOFTMAX:
            continue
        scores = next(_back(softmax.args[:1], _PRODUCTS), None)
        mixing = [node for node in _forth(softmax) if not _weights(node, names)]
        if scores is None or not mixing or _weights(scores, names):
            continue  # weights of something other than products of queries and keys
        makers = (layer for product in (scores, *mixing) for layer in _back(product.args, ("mm", "addmm")))
        readers = (layer for mixed in mixing for layer in _forth(mixed))
        found.update(*(_weights(layer, names) for layer in (*makers, *readers)))
    return found


def _transparent(node: Node) -> bool:
    return operator_name(node) in MOVES or torch.Tag.pointwise in getattr(node.target, "tags", ())


def _back(start: Iterable[object], wanted: tuple[str, ...]) -> Iterator[Node]:
    """Iterate over the nearest of these operators that values come from; others only move or scale the values."""
    return nearest(start, lambda n: operator_name(n) in wanted, _transparent, lambda n: n.all_input_nodes)


def _forth(start: Node) -> Iterator[Node]:
    """Iterate over the nearest products that read a value."""
    return nearest(start.users, lambda n: operator_name(n) in _PRODUCTS, _transparent, lambda n: n.users)


def _weights(layer: Node, names: Mapping[Node, str]) -> set[str]:
    """Return the parameter matrix that a product multiplies by, directly or transposed."""
    found = set()
    for side in layer.all_input_nodes:
        source = side
        while operator_name(source) in ("permute", "view") and source.all_input_nodes:
            source = source.all_input_nodes[0]
        if source in names and len(source.meta["val"].shape) == 2:
            found.add(names[source])
    return found


def left_alone(model: nn.Module, members: Set[str], read: Set[str]) -> dict[str, str]:
    """Return the reason for each module with parameters of its own that is in no group, by dotted name."""
    reasons: dict[str, str] = {}
    for name, module in model.named_modules():
        own = [f"{name}.{p}".removeprefix(".") for p, _ in module.named_parameters(recurse=False)]
        if not own or name in members or isinstance(module, _NORMS):
            continue
        called = name or type(module).__name__
        if not read & set(own):
            reasons[called] = "it is not used for scores"
        elif isinstance(module, nn.Linear) and module.out_features == 1:
            reasons[called] = "it gives a single number"
        elif isinstance(module, nn.Linear):
            reasons[called] = "its weight is worked out from other parameters, or it is all of the model"
        elif isinstance(module, nn.MultiheadAttention):
            reasons[called] = "nn.MultiheadAttention packs its projections into one tensor and checks its own sizes"
        else:
            reasons[called] = (
                f"leanrec compresses linear and recurrent layers and embedding tables, not {type(module).__name__}"
            )
    return reasons


def _path(layer: str) -> tuple[str, ...]:
    *outer, leaf = layer.split(".")
    return _named(outer) or (leaf.rstrip("0123456789").rstrip("_") or leaf,)


def _named(parts: Sequence[str]) -> tuple[str, ...]:
    return tuple(part for part in parts if not part.isdigit())


def _short(paths: Sequence[tuple[str, ...]]) -> Mapping[tuple[str, ...], str]:
    """Return the shortest ending of each path that differs from the others, and from the tables' name.

    Names that are still equal are numbered.
    """
    found: dict[tuple[str, ...], str] = {}
    for path in paths:
        ends = (path[-length:] for length in range(1, len(path) + 1))
        alone = (end for end in ends if end != (TABLES,) and [p[-len(end) :] for p in paths].count(end) == 1)
        name, taken = "_".join(next(alone, path)), {TABLES, *found.values()}
        numbered = (f"{name}_{i}" for i in count(2))
        found[path] = name if name not in taken else next(other for other in numbered if other not in taken)
    return found
