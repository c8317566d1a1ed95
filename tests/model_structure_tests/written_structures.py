"""The anatomies of the built-in families as one writes them down by hand, from what their forward does: an oracle."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from objectives.recommenders.families.dcn_v2 import DCNV2
from objectives.recommenders.families.dlrm import DLRM
from objectives.recommenders.families.sasrec import Block, FeedForward, SASRec
from objectives.recommenders.families.self_attention import SelfAttention
from spaces.model_structure import AxisSlice, Group, Kind, ModelStructure, PrunableDim

_NORM = ("weight", "bias", "running_mean", "running_var")


def names_of(model: nn.Module, within: str, kind: type[nn.Module]) -> tuple[str, ...]:
    """Dotted names of the modules of a kind inside the submodule `within`, in their order."""
    inside = model.get_submodule(within).named_modules(prefix=within)
    return tuple(name for name, module in inside if isinstance(module, kind))


def group_of(
    model: nn.Module,
    name: str,
    kind: Kind,
    modules: Sequence[str],
    widths: Sequence[PrunableDim] = (),
    reason: str | None = None,
) -> Group:
    """A group with the parameters of its modules counted; the reason stands where there are no widths."""
    parameters = sum(p.numel() for module in modules for p in model.get_submodule(module).parameters())
    return Group(name, kind, tuple(modules), parameters, tuple(widths), None if widths else reason)


def tower_widths(
    model: nn.Module, layers: Sequence[str], reader: AxisSlice, norms: Sequence[str] = ()
) -> tuple[PrunableDim, ...]:
    """The outputs of each Linear layer of a tower, with its batch normalisation, and the inputs of the next layer.

    Args:
        layers: dotted names, one after the other
        reader: of the last layer's outputs, where what follows the tower reads them
        norms: batch normalisation of each layer, where there is any
    """
    readers = (*(AxisSlice(f"{layer}.weight", 1) for layer in layers[1:]), reader)
    widths = []
    for i, layer in enumerate(layers):
        made = (AxisSlice(f"{layer}.weight", 0), AxisSlice(f"{layer}.bias", 0))
        normed = tuple(AxisSlice(f"{norms[i]}.{tensor}", 0) for tensor in _NORM) if norms else ()
        widths.append(PrunableDim(layer, model.get_parameter(f"{layer}.weight").shape[0], (*made, *normed, readers[i])))
    return tuple(widths)


def dcn_v2_anatomy(model: DCNV2) -> ModelStructure:
    """Groups of a DCN-V2: all tables, the cross network, the MLP; the head's single unit is in none.

    Of a model as it was built or pruned: every layer a Linear, every table an Embedding.
    """
    tables = tuple(f"tables.{name}" for name in model.tables)
    cross, mlp = names_of(model, "cross", nn.Linear), names_of(model, "mlp", nn.Linear)
    norms = names_of(model, "mlp", nn.BatchNorm1d)
    behind_x = AxisSlice("head.weight", 1, first=model.get_parameter("mlp.0.weight").shape[1])
    tied = "its width is tied to the embeddings by the elementwise product with x_0, and narrows with the tables"
    groups = [
        group_of(model, "tables", "table", tables, [_dcn_v2_dimension(model, tables, cross)]),
        *([group_of(model, "cross", "linear", cross, reason=tied)] if cross else []),
        group_of(model, "mlp", "linear", mlp, tower_widths(model, mlp, behind_x, norms)),
    ]
    return ModelStructure(tuple(groups))


def _dcn_v2_dimension(model: DCNV2, tables: Sequence[str], cross: Sequence[str]) -> PrunableDim:
    """A dimension that is 0 in x_0 stays 0 in every x_l: it leaves each of them, once for each table."""
    dimension = model.get_parameter(f"{tables[0]}.weight").shape[1]

    def in_x(tensor: str, axis: int) -> AxisSlice:
        return AxisSlice(tensor, axis, repeats=len(tables), period=dimension if len(tables) > 1 else 0)

    axis_slices = [AxisSlice(f"{table}.weight", 1) for table in tables]
    for layer in cross:
        axis_slices += [in_x(f"{layer}.weight", 0), in_x(f"{layer}.weight", 1), in_x(f"{layer}.bias", 0)]
    axis_slices += [in_x("mlp.0.weight", 1), in_x("head.weight", 1)]
    return PrunableDim("embedding_dim", dimension, tuple(axis_slices))


def dlrm_anatomy(model: DLRM) -> ModelStructure:
    """Groups of a DLRM: all tables, the bottom MLP where there is one, the top MLP; the head's single unit is in none.

    Of a model as it was built or pruned: every layer a Linear, every table an Embedding.
    """
    tables = tuple(f"tables.{name}" for name in model.tables)
    bottom = names_of(model, "bottom", nn.Linear) if model.bottom is not None else ()
    top = names_of(model, "top", nn.Linear)
    groups = [
        group_of(model, "tables", "table", tables, [_dlrm_dimension(model, tables, bottom)]),
        *([_bottom_group(model, bottom)] if bottom else []),
        group_of(model, "top", "linear", top, tower_widths(model, top, AxisSlice("head.weight", 1))),
    ]
    return ModelStructure(tuple(groups))


def _bottom_group(model: DLRM, bottom: Sequence[str]) -> Group:
    *inner, last = bottom
    tied = "its only layer's width is tied to the embeddings by the dot products, and narrows with the tables"
    return group_of(
        model, "bottom", "linear", bottom, tower_widths(model, inner, AxisSlice(f"{last}.weight", 1)), reason=tied
    )


def _dlrm_dimension(model: DLRM, tables: Sequence[str], bottom: Sequence[str]) -> PrunableDim:
    """A dimension that is 0 in all vectors adds nothing to a dot product; the top reads the bottom's first."""
    dimension = model.get_parameter(f"{tables[0]}.weight").shape[1]
    axis_slices = [AxisSlice(f"{table}.weight", 1) for table in tables]
    if bottom:
        axis_slices += [
            AxisSlice(f"{bottom[-1]}.weight", 0),
            AxisSlice(f"{bottom[-1]}.bias", 0),
            AxisSlice("top.0.weight", 1),
        ]
    return PrunableDim("embedding_dim", dimension, tuple(axis_slices))


def sasrec_anatomy(model: SASRec) -> ModelStructure:
    """Groups of a SASRec: the tables, whose dimension every layer reads or gives; all blocks' attention; their MLPs.

    Of a model as it was built or pruned: every layer a Linear, every table an Embedding.
    """
    blocks = {name: block for name, block in model.named_modules() if isinstance(block, Block)}
    tables = [f"tables.{name}" for name in model.tables]
    attention = [f"{name}.attention.{part}" for name in blocks for part in ("q", "k", "v", "out")]
    mlp = [f"{name}.feed_forward.{part}" for name in blocks for part in ("inner", "outer")]
    heads = [_heads(f"{name}.attention", block.attention) for name, block in blocks.items()]
    units = [_units(f"{name}.feed_forward", block.feed_forward) for name, block in blocks.items()]
    several = [width for width in heads if width.units > 1]
    return ModelStructure(
        (
            group_of(model, "tables", "table", tables, [_sasrec_dimension(model, tables, list(blocks))]),
            group_of(model, "attention", "attention", attention, several, "each block has one head"),
            group_of(model, "mlp", "linear", mlp, units),
        )
    )


def _sasrec_dimension(model: SASRec, tables: Sequence[str], blocks: Sequence[str]) -> PrunableDim:
    """The dimension of embeddings and states: readers along axis 1 of their weight, writers along axis 0."""
    readers = [
        f"{b}.{part}" for b in blocks for part in ("attention.q", "attention.k", "attention.v", "feed_forward.inner")
    ]
    givers = [f"{b}.{part}" for b in blocks for part in ("attention.out", "feed_forward.outer")]
    givers += [f"{b}.{norm}" for b in blocks for norm in ("attention_norm", "feed_forward_norm")]
    axis_slices = [AxisSlice(f"{name}.weight", 1) for name in (*tables, *readers)]
    axis_slices += [AxisSlice(f"{name}.{tensor}", 0) for name in (*givers, "norm") for tensor in ("weight", "bias")]
    return PrunableDim("d", model.norm.weight.shape[0], tuple(axis_slices), normalised=True)


def _heads(name: str, attention: SelfAttention) -> PrunableDim:
    size = attention.head_dim
    axis_slices = [
        AxisSlice(f"{name}.{part}.{tensor}", 0, size=size) for part in "qkv" for tensor in ("weight", "bias")
    ]
    units = attention.q.weight.shape[0] // size
    return PrunableDim(f"{name}.heads", units, (*axis_slices, AxisSlice(f"{name}.out.weight", 1, size=size)))


def _units(name: str, mlp: FeedForward) -> PrunableDim:
    axis_slices = (
        AxisSlice(f"{name}.inner.weight", 0),
        AxisSlice(f"{name}.inner.bias", 0),
        AxisSlice(f"{name}.outer.weight", 1),
    )
    return PrunableDim(f"{name}.inner", mlp.inner.weight.shape[0], axis_slices)
