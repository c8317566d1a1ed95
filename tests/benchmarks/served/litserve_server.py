"""An ONNX model behind LitServe, as an API of its documentation: `litserve_server.py MODEL PORT`.

Run by the interpreter of an environment with litserve and onnxruntime. Requests and answers are JSON.
"""

import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime


class Ranker(litserve.LitAPI):  # type: ignore[misc]
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.path, options)

    def decode_request(self, request: dict[str, Any]) -> dict[str, np.ndarray]:
        return {name: np.asarray(values, np.int64) for name, values in request["inputs"].items()}

    def predict(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        scores: np.ndarray = self.session.run(None, inputs)[0]
        return scores

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        return {"scores": output.tolist()}


if __name__ == "__main__":
    _, model, port = sys.argv
    server = litserve.LitServer(Ranker(model), accelerator="cpu", devices=1, workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=int(port), num_api_servers=1, generate_client_file=False, log_level="warning")
