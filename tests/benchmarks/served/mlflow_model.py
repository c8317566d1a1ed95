"""An ONNX model as MLflow's ONNX flavour, for `mlflow models serve`: `mlflow_model.py MODEL FOLDER`.

Run by the interpreter of an environment with mlflow, onnx and onnxruntime.
"""

import sys

import mlflow.onnx
import onnx

if __name__ == "__main__":
    _, model, folder = sys.argv
    threads = {"intra_op_num_threads": 1}
    mlflow.onnx.save_model(onnx.load(model), folder, onnx_session_options=threads)
