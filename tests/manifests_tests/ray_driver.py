"""A cluster of Ray in this process that serves serve.yaml; each second, what serves and what it answers as a JSON line.

Run by the Python of an environment with `ray[serve]`, in the folder of serve.yaml: SECONDS, PORT, request as JSON.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import ray
import yaml
from ray import serve
from ray.serve._private.api import serve_start
from ray.serve.schema import ServeDeploySchema


def answer(port: int, body: bytes) -> tuple[int, object]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", body, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")
    except OSError as error:
        return 0, str(error)


def main(seconds: float, port: int, request: str) -> None:
    config = yaml.safe_load(Path("serve.yaml").read_text())
    ray.init(num_cpus=8, resources={"machine-small": 8}, include_dashboard=False, log_to_driver=False)
    client = serve_start(http_options={"host": "127.0.0.1", "port": port})
    client.deploy_apps(ServeDeploySchema.model_validate(config))
    (name,) = (application["name"] for application in config["applications"])
    end_s = time.time() + seconds
    while time.time() < end_s:
        sent_s = time.time()
        found = serve.status().applications.get(name)
        deployments = {} if found is None else found.deployments
        running = {each: status.replica_states.get("RUNNING", 0) for each, status in deployments.items()}
        line = {
            "at_s": sent_s,
            "running": running,
            "status": None if found is None else str(found.status.value),
            "answer": answer(port, request.encode()) if running.get("Router") else None,
            "wrong": answer(port, b'{"user": [1]}') if running.get("Router") else None,
            "ended_s": time.time(),
        }
        print(json.dumps(line), flush=True)
        time.sleep(1.0)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
