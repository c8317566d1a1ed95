"""An ONNX model behind KServe's Python server, as a custom model of its documentation: `kserve_server.py MODEL PORT`.

Run by the interpreter of an environment with kserve and onnxruntime.
"""

import sys

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

NAME = "ranker"


class Ranker(Model):  # type: ignore[misc]
    def __init__(self, path: str) -> None:
        super().__init__(NAME)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options)
        self.output = self.session.get_outputs()[0].name
        self.ready = True

    def predict(self, payload: InferRequest, headers: object = None, response_headers: object = None) -> InferResponse:
        inputs = {one.name: one.as_numpy() for one in payload.inputs}
        scores = self.session.run([self.output], inputs)[0]
        output = InferOutput(self.output, list(scores.shape), "FP32")
        output.set_data_from_numpy(scores, binary_data=payload.use_binary_outputs)
        return InferResponse(payload.id, self.name, [output], use_binary_outputs=payload.use_binary_outputs)


if __name__ == "__main__":
    _, model, port = sys.argv
    ModelServer(http_port=int(port), workers=1, enable_grpc=False).start([Ranker(model)])
