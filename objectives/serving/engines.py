"""Engines that run a model file, selected by name; an unavailable one is an error."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from objectives.arrays import Array, Arrays
from objectives.errors import ExplainedError
from objectives.int8_weights import WEIGHT_BITS, open_exact, saturates
from objectives.serving.devices import HOW_TO_GET, engines_here, int8_weight_bits
from objectives.serving.node_placement import nodes_left_to_cpu
from objectives.serving.per_user import PerUser
from objectives.serving.split_engine import DENSE, TABLES, Engine, Graph, Scores, Shape, Staged, taken_once
from spaces.techniques.placement import EmbeddingDevice, InstanceGroup

if TYPE_CHECKING:
    import onnxruntime
    import openvino

_CPU = "CPUExecutionProvider"
# Device of ONNX Runtime -> its providers; nodes that one lacks go to the next.
_PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "cpu": (_CPU,),
    "cuda": ("CUDAExecutionProvider", _CPU),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", _CPU),
}
# By default CUDA multiplies in TF32, with a mantissa of 10 bits; fp32 was requested.
_OPTIONS: Mapping[str, Mapping[str, str]] = {"CUDAExecutionProvider": {"use_tf32": "0"}}
# Most nodes listed in an error.
_SHOWN = 5
_OPENVINO_WIDTHS: Mapping[str, str] = {"fp32": "f32", "bf16": "bf16"}


class EngineError(ExplainedError):
    """The requested engine, device or provider is not available on this machine."""


class OnnxRuntime:
    """ONNX Runtime on `cpu`, `cuda` or `tensorrt` (`cuda:1` is the second GPU).

    On a GPU the first run is profiled, and it and all later runs fail where nodes were left to the CPU.

    threads: threads of the engine; None for its default
    """

    def __init__(self, model: Path, device: str, threads: int | None, compute: str) -> None:
        import onnxruntime

        if compute != "fp32":
            raise EngineError(f"onnxruntime computes in fp32, but got {compute!r}.")
        providers = _providers(device)
        asked, available = providers[0][0], onnxruntime.get_available_providers()
        if asked not in available:
            raise _no_provider(asked, device, f"has {', '.join(available)}")
        if asked != _CPU:
            # CUDA's libraries may be in pip packages.
            onnxruntime.preload_dlls()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        if asked != _CPU:
            self._profile = tempfile.TemporaryDirectory()
            options.enable_profiling, options.profile_file_prefix = True, f"{self._profile.name}/run"

        try:
            session = open_exact(model, options, providers, int8_weight_bits())
        except Exception as error:  # its errors have no common base class
            raise EngineError(f"onnxruntime could not load {model} on {device}: {_first_line(error)}") from error
        if (loaded := session.get_providers())[0] != asked:
            raise _no_provider(asked, device, f"loaded {', '.join(loaded)}")
        self.takes: Mapping[str, Shape] = {i.name: _shape(i.shape) for i in session.get_inputs()}
        self.gives = tuple(output.name for output in session.get_outputs())
        self.once = taken_once(self.takes)
        self._scores, self._all = [self.gives[0]], list(self.gives)
        self._run: Callable[[list[str], Arrays], list[Any]] = (
            session.run if asked == _CPU else partial(self._first_run, session, device)
        )

    def _first_run(
        self, session: onnxruntime.InferenceSession, device: str, names: list[str], inputs: Arrays
    ) -> list[Any]:
        """Run once and check the profile; later runs are direct.

        Raises:
            EngineError: nodes that do more than compute shapes ran on the CPU.
        """
        found = session.run(names, inputs)
        left = nodes_left_to_cpu(Path(session.end_profiling()))
        self._profile.cleanup()
        self._run = partial(_refused, device, left) if left else session.run
        return self._run(names, inputs) if left else found

    def run(self, inputs: Arrays) -> Scores:
        scores: Scores = self._run(self._scores, inputs)[0]
        return scores

    def outputs(self, inputs: Arrays) -> dict[str, Array]:
        return dict(zip(self.gives, self._run(self._all, inputs), strict=True))


def _refused(device: str, left: Sequence[str], _names: list[str], _inputs: Arrays) -> NoReturn:
    shown = ", ".join(left[:_SHOWN]) + (f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else "")
    raise EngineError(f"onnxruntime was asked to run on {device}, but left to the CPU: {shown}.")


def _providers(device: str) -> list[tuple[str, dict[str, str]]]:
    """Return the providers with their options, the requested one first."""
    kind, colon, index = device.partition(":")
    if kind not in _PROVIDERS or (colon and (kind == "cpu" or not index.isdecimal())):
        raise EngineError(
            f"onnxruntime runs on {', '.join(_PROVIDERS)} (cuda:1 is the second GPU), but got {device!r}."
        )
    number = {"device_id": index} if index else {}
    return [(name, {} if name == _CPU else {**_OPTIONS.get(name, {}), **number}) for name in _PROVIDERS[kind]]


def _no_provider(asked: str, device: str, but: str) -> EngineError:
    remedy = HOW_TO_GET.get(device.partition(":")[0], "pip install --force-reinstall onnxruntime")
    return EngineError(f"onnxruntime was asked for {asked}, but {but}. To get it: {remedy}.")


def _shape(dimensions: list[int | str | None]) -> Shape:
    return tuple(size if isinstance(size, int) else None for size in dimensions)


_TIE = threading.Lock()


class OpenVino:
    """OpenVINO on `cpu`, `gpu` or `gpu.1`, one request tuned for latency; its compute type is fixed."""

    def __init__(self, model: Path, device: str, threads: int | None, compute: str) -> None:
        import openvino

        _initialise_openvino()
        if compute not in _OPENVINO_WIDTHS:
            raise EngineError(f"openvino computes in {', '.join(_OPENVINO_WIDTHS)}, but got {compute!r}.")
        core, name = openvino.Core(), device.upper()
        # The only device of a kind has the kind's name and number 0.
        if not {name, f"{name}.0", name.removesuffix(".0")} & set(core.available_devices):
            raise EngineError(
                f"openvino has the devices {', '.join(core.available_devices).lower()} here, but got {device!r}."
            )
        try:
            read = core.read_model(str(model))
            if name.startswith("CPU"):
                _check_int8(read, model)
            compiled = core.compile_model(read, name, _config(name, threads, compute))
        except EngineError:
            raise
        except RuntimeError as error:
            raise EngineError(f"openvino could not load {model} on {device}: {_first_line(error)}") from error
        asked, loaded = _OPENVINO_WIDTHS[compute], compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if loaded != asked:
            raise EngineError(f"openvino was asked to compute in {asked}, but computes in {loaded}.")
        # A port's own names may include those of tensors that were merged into it; the node keeps the graph's.
        self.takes: Mapping[str, Shape] = {i.node.friendly_name: _sizes(i.partial_shape) for i in compiled.inputs}
        self.gives = tuple(output.node.friendly_name.split("/sink_port_")[0] for output in compiled.outputs)
        self.once = taken_once(self.takes)
        self._count, self._infer = len(self.takes), compiled.create_infer_request().infer

    def run(self, inputs: Arrays) -> Scores:
        scores: Scores = self._infer(self._fed(inputs), share_inputs=True).to_tuple()[0]
        return scores

    def outputs(self, inputs: Arrays) -> dict[str, Array]:
        # Shared outputs are the request's own buffers, which its next run overwrites.
        found = self._infer(self._fed(inputs), share_inputs=True, share_outputs=True)
        return dict(zip(self.gives, found.to_tuple(), strict=True))

    def _fed(self, inputs: Arrays) -> dict[str, Array]:
        # A missing input would silently keep the last request's values; an unknown one is refused by OpenVINO.
        if len(inputs) != self._count:
            raise ValueError(f"The model takes {sorted(self.takes)}, but got {sorted(inputs)}.")
        return dict(inputs)


def _initialise_openvino() -> None:
    """Initialise OpenVINO's binding to NumPy.

    OpenVINO does so on first use, where two threads of 2026.4.1 would deadlock: one holds the interpreter and waits for
    C++'s guard, the other the reverse.
    """
    import openvino

    with _TIE:
        openvino.Type.f32.to_dtype()


def _check_int8(read: openvino.Model, model: Path) -> None:
    """Check the weights of int8 products.

    Raises:
        EngineError: the sums of the int8 products would saturate, and OpenVINO has no other kernels.
    """
    entry = ["framework", WEIGHT_BITS]  # OpenVINO's key for an ONNX file's metadata
    metadata = {WEIGHT_BITS: read.get_rt_info(entry).value} if read.has_rt_info(entry) else {}
    if saturates(metadata, int8_weight_bits()):
        raise EngineError(
            f"{model}: int8 products must have weights of {int8_weight_bits()} bits for openvino on this CPU, which "
            f"has no VNNI and saturates, but got {metadata[WEIGHT_BITS]}; build it again here: leanrec build BUNDLE"
        )


def _config(device: str, threads: int | None, compute: str) -> dict[str, str | int]:
    config: dict[str, str | int] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _OPENVINO_WIDTHS[compute],
    }
    if device == "CPU":
        # Pinned threads of two replicas land on the same core.
        config["ENABLE_CPU_PINNING"] = False
        # Chains of products that it fuses, where the number of rows is fixed, give wrong results or crash in 2026.4.1.
        config["SNIPPETS_MODE"] = "DISABLE"
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
    return config


def _sizes(shape: openvino.PartialShape) -> Shape:
    return tuple(size.get_length() if size.is_static else None for size in shape)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# Each is called with model file, device, threads (at most so many; None: as many as it likes) and compute width.
_ENGINES: Mapping[str, Callable[[Path, str, int | None, str], Graph]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
}


def open_engine(
    name: str, model: Path, device: str = "cpu", threads: int | None = None, compute: str = "fp32"
) -> Graph:
    """Load a model file as one graph, which takes arrays of the shapes it declares.

    Raises:
        EngineError: the engine is unknown, not installed, or does not support the request.
    """
    if name not in _ENGINES:
        raise EngineError(f"An engine is one of {sorted(_ENGINES)}, but got {name!r}.")
    if name not in engines_here():
        raise EngineError(f"The engine {name} is not installed here: {HOW_TO_GET[name]}.")
    return _ENGINES[name](model, device, threads, compute)


def open_replica(
    model: Path, instance_group: InstanceGroup, lookup: EmbeddingDevice | None, compute: str = "fp32"
) -> Engine:
    """Load a model file as a replica of an instance group.

    With an embedding device, load the two graphs that the model was split into.

    Arrays that the model takes once a request are reduced to one row, whatever a request holds.

    Raises:
        EngineError: as in `open_engine`, or one of the two graphs is missing.
    """
    graph = _open_seat(model, instance_group, lookup, compute)
    return PerUser(graph) if graph.once else graph


def _open_seat(model: Path, instance_group: InstanceGroup, lookup: EmbeddingDevice | None, compute: str) -> Engine:
    if lookup is None:
        return open_engine(instance_group.engine, model, instance_group.device, instance_group.threads, compute)
    tables, dense = model.with_name(TABLES), model.with_name(DENSE)
    for file in (tables, dense):
        if not file.is_file():
            raise EngineError(
                f"A placement with an embedding device needs {TABLES} and {DENSE} beside {model}, but {file} is absent."
            )
    return Staged(
        # An embedding lookup is bound by memory, not cores, and spinning threads would take the dense stage's cores.
        open_engine(lookup.engine, tables, lookup.device, 1),
        open_engine(instance_group.engine, dense, instance_group.device, instance_group.threads, compute),
    )
