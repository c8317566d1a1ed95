"""An ONNX model behind Ray Serve's HTTP proxy, one replica: `ray_server.py MODEL PORT`.

Run by the interpreter of an environment with ray[serve] and onnxruntime. A request's body is the int64 inputs in the
order of the graph's, one after the other; the answer's is the scores.
"""

import signal
import sys

import numpy as np
import onnxruntime
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


class Ranker:
    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options)
        self.names = [one.name for one in self.session.get_inputs()]

    async def __call__(self, request: Request) -> Response:
        arrays = np.frombuffer(await request.body(), np.int64).reshape(len(self.names), -1)
        scores = self.session.run(None, dict(zip(self.names, arrays, strict=True)))[0]
        return Response(scores.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    _, model, port = sys.argv
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    # Requests of the proxy itself count as none of the replica's cores.
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)}, logging_config={"enable_access_log": False})
    deployment = serve.deployment(num_replicas=1, max_ongoing_requests=32, ray_actor_options={"num_cpus": 1})
    serve.run(deployment(Ranker).bind(model), route_prefix="/")
    try:
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()
