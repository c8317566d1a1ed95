"""Request times of a graph and of a copy with one thing changed, measured in turns.

    python tests/benchmarks/techniques/graph_variants.py [--rows 20 200 1000] [--rounds 400] [--threads 1 2]

Stacked tables: 26 tables of a DLRM as one, whose ids are joined, shifted and looked up at once; the ids are joined as
columns, or one after the other and turned afterwards. int4: MatMulNBits at accuracy level 0 (products in fp32) and, as
int4-dynamic, at level 4 (activations in int8), beside fp32 and dynamic int8.

Ratios are of medians over rounds in which all graphs take turns, in a new order each; intervals (95%) are of a
bootstrap over the rounds. With one thread the thread's own processor time is told as well, which other processes on the
machine do not lengthen.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from objectives.onnx_graph import finish
from objectives.recommenders.datasets.features import Field
from objectives.recommenders.families import dcn_v2, dlrm
from spaces.model_structure import Group, ModelStructure
from spaces.techniques.quantization import Precision
from tests.protos import quantize, to_onnx

Array = NDArray[Any]
Graphs = Mapping[str, onnx.ModelProto]
Run = Callable[[Mapping[str, Array]], Array]
FIELDS = (
    *(Field(name=f"code{i}", side="item", vocabulary=int(10 * 1.42**i)) for i in range(26)),
    *(Field(name=f"number{i}", side="item", kind="numeric") for i in range(13)),
)


def inputs(rows: int, fields: Sequence[Field] = FIELDS) -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {
        f.name: random.normal(size=rows).astype(np.float32)
        if f.kind == "numeric"
        else random.integers(f.vocabulary, size=rows)
        for f in fields
    }


def exported(model: torch.nn.Module, fields: Sequence[Field] = FIELDS) -> onnx.ModelProto:
    rows = {name: torch.from_numpy(values) for name, values in inputs(8, fields).items()}
    return to_onnx(model.eval(), rows)  # type: ignore[no-any-return]


# -- tables of one dimension as one


def stacked(graph: onnx.ModelProto, turned: bool) -> onnx.ModelProto:
    """The lookups that a Concat joins side by side become one, in one table."""
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    held = {tensor.name: tensor for tensor in made.graph.initializer}
    gathers = {n.output[0]: n for n in made.graph.node if n.op_type == "Gather" and n.input[0] in held}
    concat = next(n for n in made.graph.node if n.op_type == "Concat" and len(gathers.keys() & set(n.input)) > 1)
    joined = [gathers[name] for name in concat.input if name in gathers]
    tables = [numpy_helper.to_array(held[node.input[0]]) for node in joined]
    offsets = np.cumsum([0, *(len(table) for table in tables[:-1])])
    count, d = len(tables), tables[0].shape[1]
    constants: dict[str, Array] = {
        "stack": np.concatenate(tables),
        "last": np.array([-1]),
        "flat": np.array([-1, count * d]),
    }
    ids = [node.input[1] for node in joined]
    if turned:
        constants |= {"offsets": offsets[:, None], "by_table": np.array([count, -1])}
        nodes = [
            helper.make_node("Concat", ids, ["ids"], axis=0),
            helper.make_node("Reshape", ["ids", "by_table"], ["lines"]),
            helper.make_node("Add", ["lines", "offsets"], ["places"]),
            helper.make_node("Gather", ["stack", "places"], ["found"]),
            helper.make_node("Transpose", ["found"], ["vectors"], perm=[1, 0, 2]),
        ]
    else:
        constants |= {"offsets": offsets[None]}
        nodes = [helper.make_node("Unsqueeze", [name, "last"], [f"{name}_column"]) for name in ids]
        nodes += [
            helper.make_node("Concat", [f"{name}_column" for name in ids], ["ids"], axis=1),
            helper.make_node("Add", ["ids", "offsets"], ["places"]),
            helper.make_node("Gather", ["stack", "places"], ["vectors"]),
        ]
    nodes.append(helper.make_node("Reshape", ["vectors", "flat"], ["looked_up"]))
    rest = [name for name in concat.input if name not in gathers]
    assert list(concat.input) == [*rest, *(node.output[0] for node in joined)] and concat.attribute[0].i == 1
    concat.input[:] = [*rest, "looked_up"]
    kept = list(made.graph.node)
    del made.graph.node[:]
    made.graph.node.extend([*nodes, *kept])
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return ir.to_proto(finish(ir.from_proto(made)))


def stacking() -> Graphs:
    torch.manual_seed(0)
    graph = exported(dlrm.DLRM(FIELDS, dlrm.Sizes(16, (64, 32), (64, 32))))
    return {
        "as it is": graph,
        "ids as columns": stacked(graph, turned=False),
        "ids in lines": stacked(graph, turned=True),
    }


# -- products of 4 bits


def four_bits(units: Sequence[int]) -> Graphs:
    """A DCN-V2's MLP of these units, over 8 fields of 64 dimensions."""
    torch.manual_seed(0)
    fields = FIELDS[:8]
    model = dcn_v2.DCNV2(fields, dcn_v2.Sizes(64, 1, tuple(units)))
    graph = exported(model, fields)
    layers = tuple(name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    structure = ModelStructure(
        (Group("mlp", "linear", tuple(n for n in layers if n.startswith("mlp")), 0, (), "not asked"),)
    )
    narrow = {
        w: quantize(graph, Precision((("mlp", w),)), structure, inputs(64, fields))
        for w in ("int4", "int4-dynamic", "int8-dynamic")
    }
    return {"int4": narrow.pop("int4"), "fp32": graph, **narrow}


# -- in turns


def session(graph: onnx.ModelProto, threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    made = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    takes = [value.name for value in made.get_inputs()]
    return lambda given: made.run(None, {name: given[name] for name in takes})[0]


def in_turns(runs: Sequence[Run], given: Mapping[str, Array], rounds: int) -> tuple[Array, Array]:
    """Wall seconds and the thread's own seconds, (rounds, runs)."""
    random = np.random.default_rng(0)
    wall, own = np.empty((rounds, len(runs))), np.empty((rounds, len(runs)))
    for number in range(-20, rounds):  # the first ones warm up
        for which in random.permutation(len(runs)):
            before, used = time.perf_counter(), time.thread_time()
            runs[which](given)
            wall[number, which], own[number, which] = time.perf_counter() - before, time.thread_time() - used
    return wall, own


def ratio(seconds: Array, which: int) -> str:
    """Ratio to the first graph's median, with its interval."""
    drawn = np.random.default_rng(0).integers(len(seconds), size=(500, len(seconds)))
    ratios = np.median(seconds[drawn, which], axis=1) / np.median(seconds[drawn, 0], axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return f"{np.median(seconds[:, which]) / np.median(seconds[:, 0]):.3f} [{low:.3f}, {high:.3f}]"


def told(title: str, graphs: Graphs, rows: Sequence[int], threads: Sequence[int], rounds: int) -> None:
    for number in threads:
        told_of(title, {name: session(graph, number) for name, graph in graphs.items()}, rows, number, rounds)


def told_of(title: str, runs: Mapping[str, Run], rows: Sequence[int], number: int, rounds: int) -> None:
    for count in rows:
        given = inputs(count)
        first, *others = (run(given) for run in runs.values())
        off = [np.abs(scores - first).max() / first.std() for scores in others]
        wall, own = in_turns(list(runs.values()), given, rounds)
        print(f"{title}, {count} rows, {number} threads: {next(iter(runs))} {np.median(wall[:, 0]) * 1e6:.0f} us")
        for which, name in enumerate(list(runs)[1:], 1):
            processor = f", own time {ratio(own, which)}" if number == 1 else ""
            print(f"  {name:16} {ratio(wall, which)}{processor}, scores off by {off[which - 1]:.2g}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[20, 200, 1000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=400)
    options = parser.parse_args()
    told("stacked tables", stacking(), options.rows, options.threads, options.rounds)
    for units in ((64, 32), (400, 400, 400), (1024, 512, 256)):
        title = f"MLP {'-'.join(map(str, units))}"
        told(title, four_bits(units), options.rows, options.threads, options.rounds)


if __name__ == "__main__":
    main()
