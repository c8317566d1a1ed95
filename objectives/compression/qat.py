"""Quantization-aware training for static int8, by torchao's PT2E.

The trained object is a plain model: the traced graph with fake quantization holds the model's own parameters and
buffers, and replaces one of its methods during training. So no weight is copied back, and the model is exported like
any other.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import (
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
    annotate_input_qspec_map,
)

from objectives.compression.training_graph import training_graph
from objectives.int8_weights import Int8WeightBits, largest_code
from objectives.model_copy import copy_model

Ranges = dict[str, tuple[float, float]]

# Moving range of the inputs (Jacob et al. 2018, section 3.1).
_INPUT = QuantizationSpec(
    dtype=torch.uint8,
    quant_min=0,
    quant_max=255,
    qscheme=torch.per_tensor_affine,
    observer_or_fake_quant_ctr=FakeQuantize.with_args(observer=MovingAverageMinMaxObserver),
)
# Arguments of torch's operators in evaluation mode.
_JUDGED = {"train": False, "training": False, "dropout_p": 0.0}
_COUNT = ".num_batches_tracked"


def train_aware(
    model: nn.Module,
    modules: Sequence[str],
    train: Callable[[nn.Module], object],
    example: Mapping[str, Tensor],
    method: str = "forward",
    hidden: str | None = None,
    weight_bits: Int8WeightBits = 8,
) -> tuple[nn.Module, Ranges]:
    """Train a copy of the model quantization-aware, and return it with the input range of each linear layer.

    Quantization is that of the static graph: inputs as uint8, one scale and zero point for all, of the returned range;
    weights as symmetric int8, one scale per output channel. Everything else is computed as before. `train` is given the
    copy, whose parameters, submodules and modes are the model's own; only its method is traced.

    A layer whose weight is changed before the product, such as a masked one, is not rounded, and has no learned range.

    Args:
        modules: dotted names of linear layers, or of modules that contain some, such as two factors
        train: trains the model in place
        example: inputs of the method by name, (rows, ...) each, two rows or more; only the number of rows may change
            later
        method: the model's method that is trained
        hidden: dotted name of a submodule whose forward hooks receive its output
        weight_bits: bits of the weights in the exported graph's int8 products

    Returns:
        The model, and for each rounded layer by name the (low, high) values of the codes 0 and 255.

    Raises:
        ValueError: a name is that of no linear layer, or the method multiplies by the weight of none; `train` never ran
        the model in train mode.
    """
    learner = copy_model(model).train()
    rounding = _Rounding(_linears(learner, modules), weight_bits)
    graph = prepare_qat_pt2e(training_graph(learner, method, example, hidden), rounding)
    with _standing_in(_StandIn(learner, graph, method, tuple(example), hidden)):
        train(learner)
    return learner.eval(), _ranges(graph, rounding.products)


def _linears(model: nn.Module, modules: Sequence[str]) -> dict[str, nn.Linear]:
    found: dict[str, nn.Linear] = {}
    for name in modules:
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"Rounding is learned in layers of the model, but got {name!r}: {error}.") from error
        linears = {full: inner for full, inner in module.named_modules(prefix=name) if isinstance(inner, nn.Linear)}
        if not linears:
            raise ValueError(f"Rounding is learned in linear layers, but {name!r} got {type(module).__name__}.")
        found |= linears
    if not found:
        raise ValueError("Rounding is learned in one layer or more, but got none.")
    return found


class _Rounding(Quantizer):  # type: ignore[misc]
    """Quantizer that annotates the products with the layers' weights; a layer called twice has one range."""

    def __init__(self, linears: Mapping[str, nn.Linear], weight_bits: Int8WeightBits) -> None:
        super().__init__()
        # Per output channel, with the current range at each step.
        observer = MovingAveragePerChannelMinMaxObserver
        self.weight = QuantizationSpec(
            dtype=torch.int8,
            quant_min=-largest_code(weight_bits),
            quant_max=largest_code(weight_bits),
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
            observer_or_fake_quant_ctr=FakeQuantize.with_args(observer=observer, averaging_constant=1.0),
        )
        self.names = {id(linear.weight): name for name, linear in linears.items()}
        self.products: dict[str, fx.Node] = {}  # the first traced product of each layer, by name

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        products = [node for node in model.graph.nodes if node.target is torch.ops.aten.linear.default]
        for product in (node for node in products if node.args[1].op == "get_attr"):
            x, weight = product.args[:2]
            name = self.names.get(id(operator.attrgetter(weight.target)(model)))
            if name is None:
                continue
            first = self.products.setdefault(name, product)
            shared = SharedQuantizationSpec((first.args[0], first))
            annotate_input_qspec_map(product, x, _INPUT if product is first else shared)
            annotate_input_qspec_map(product, weight, self.weight)
        return model

    def validate(self, model: fx.GraphModule) -> None:
        if not self.products:
            names = sorted(set(self.names.values()))
            raise ValueError(f"A layer that learns rounding multiplies by its weight, but {names} got no product.")


class _StandIn:
    """Replacement of the model's method by the fake-quantized graph, in the model's mode.

    The graph was traced in train mode. torchao's own switch between modes supports only dropout and batch
    normalisation, and resets their constants to the defaults; here any operator keeps its own.
    """

    def __init__(
        self, learner: nn.Module, graph: fx.GraphModule, method: str, names: tuple[str, ...], hidden: str | None
    ) -> None:
        self.learner, self.graph, self.method, self.names = learner, graph, method, names
        self.hidden = None if hidden is None else learner.get_submodule(hidden)
        self.parameters = tuple(inspect.signature(getattr(learner, method)).parameters)
        self.switches = [(node, node.args, _judged(node)) for node in graph.graph.nodes if _judged(node) != node.args]
        self.training, self.ran = True, False

    def __call__(self, *values: Tensor, **named: Tensor) -> Tensor:
        self._follow(self.learner.training)
        inputs = dict(zip(self.parameters, values, strict=False)) | named
        outputs, *features = self.graph(*(inputs[name] for name in self.names))
        for feature in features:
            assert self.hidden is not None
            self.hidden(feature)
        return outputs  # type: ignore[no-any-return]

    def _follow(self, training: bool) -> None:
        """Switch the mode: train mode updates the input ranges, and its first run starts fake quantization."""
        self.ran |= training
        if training == self.training:
            return
        for node, trained, judged in self.switches:
            node.args = trained if training else judged
        self.graph.recompile()
        for module in (each for each in self.graph.modules() if isinstance(each, FakeQuantize)):
            module.enable_observer(training or module.is_per_channel)
            module.enable_fake_quant(self.ran)
        self.training = training


def _judged(node: fx.Node) -> tuple[fx.node.Argument, ...]:
    """Return the arguments of a node in evaluation mode."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.args
    if node.target is torch.ops.aten.add_.Tensor and str(getattr(node.args[0], "target", "")).endswith(_COUNT):
        return (node.args[0], 0)
    names = [argument.name for argument in node.target._schema.arguments]
    return tuple(_JUDGED.get(name, value) for name, value in zip(names, node.args, strict=False))


@contextlib.contextmanager
def _standing_in(stand_in: _StandIn) -> Iterator[None]:
    """Replace the method of this one model; a hidden submodule passes its input on, for its hooks."""
    patched: list[tuple[nn.Module, str, Callable[..., Tensor]]] = [(stand_in.learner, stand_in.method, stand_in)]
    if stand_in.hidden is not None:
        patched.append((stand_in.hidden, "forward", nn.Identity().forward))
    with contextlib.ExitStack() as stack:
        for module, name, function in patched:
            if name in vars(module):  # else it is the class's own
                stack.callback(setattr, module, name, vars(module)[name])
            stack.callback(delattr, module, name)
            setattr(module, name, function)
        yield


def _ranges(graph: fx.GraphModule, products: Mapping[str, fx.Node]) -> Ranges:
    """Return the values of the codes 0 and 255 at the input of each product."""
    ranges = {}
    for name, product in products.items():
        (source, *_) = product.args
        assert isinstance(source, fx.Node)
        rounding: Any = graph.get_submodule(str(source.target))
        if not torch.isfinite(rounding.activation_post_process.min_val):
            raise ValueError(f"Rounding is learned by running the model in train mode, but {name!r} saw no rows.")
        scale, zero_point = rounding.scale.item(), rounding.zero_point.item()
        ranges[name] = (-zero_point * scale, (255 - zero_point) * scale)
    return ranges
