"""Engines that run a model file; one is chosen by name, and what is not there is an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from objectives.serving.devices import engines_here

Inputs = Mapping[str, NDArray[Any]]


# Engines that prepare their kernels anew for each number of rows, the first time that they see it.
PREPARED_BY_SIZE = frozenset({"openvino"})


class EngineError(RuntimeError):
    """An engine, device or provider that was asked for is not to be had here."""


class Engine(Protocol):
    """One loaded model with its own threads. Made once, run by one thread at a time, freed with the object."""

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """Named arrays of (rows, ...) -> scores of (rows,), in the order of the rows."""
        ...


class OnnxRuntime:
    """ONNX Runtime on the CPU; threads None are its own default options."""

    def __init__(self, model: Path, device: str, threads: int | None, compute: str) -> None:
        import onnxruntime

        if device != "cpu":
            raise EngineError(f"onnxruntime runs on the device cpu here, but got {device!r}.")
        if compute != "fp32":
            raise EngineError(f"onnxruntime computes in fp32, but got {compute!r}.")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        provider = "CPUExecutionProvider"
        self._session = onnxruntime.InferenceSession(str(model), options, providers=[provider])
        loaded = self._session.get_providers()
        if loaded[0] != provider:
            raise EngineError(f"onnxruntime was asked for {provider}, but loaded {loaded}.")

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = self._session.run(None, inputs)[0]
        return scores


class OpenVino:
    """OpenVINO on the CPU with one inference request, tuned for latency; the width it computes in is pinned."""

    def __init__(self, model: Path, device: str, threads: int | None, compute: str) -> None:
        import openvino

        if device != "cpu":
            raise EngineError(f"openvino runs on the device cpu here, but got {device!r}.")
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # Pinned threads of two replicas land on the same core.
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[compute],
        }
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        compiled = openvino.Core().compile_model(str(model), "CPU", config)
        asked = config["INFERENCE_PRECISION_HINT"]
        loaded = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if loaded != asked:
            raise EngineError(f"openvino was asked to compute in {asked}, but computes in {loaded}.")
        self._request = compiled.create_infer_request()

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        self._request.infer(dict(inputs), share_inputs=True)
        # The output buffer belongs to the request and is overwritten by the next one.
        return np.array(self._request.get_output_tensor(0).data)


_ENGINES: Mapping[str, Callable[[Path, str, int | None, str], Engine]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
}


def open_engine(
    name: str, model: Path, device: str = "cpu", threads: int | None = None, compute: str = "fp32"
) -> Engine:
    """Load a model file.

    Raises:
        EngineError: the engine is not known, not installed, or cannot do what is asked.
    """
    if name not in _ENGINES:
        raise EngineError(f"An engine is one of {sorted(_ENGINES)}, but got {name!r}.")
    if name not in engines_here():
        raise EngineError(f"The engine {name} is not installed here: pip install 'leanrec[{name}]'.")
    return _ENGINES[name](model, device, threads, compute)
