"""Triton's own HTTP client against `leanrec serve`, in an environment of its own: its pins are not ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objectives.serving.bundle import read_bundle
from tests.serve_tests.bundles import ITEMS, draw_request
from tests.serve_tests.environments import environment, told
from tests.serve_tests.process import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SCRIPT = Path(__file__).with_name("triton_script.py")
REQUEST = draw_request(9, seed=4)


@pytest.fixture(scope="module")
def found(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("triton")
    python = environment(folder / "environment", "tritonclient[http]")
    return told(python, SCRIPT, server, REQUEST, folder)


def test_health_and_metadata(found: dict[str, Any], server: ServerProcess) -> None:
    assert (found["live"], found["ready"], found["model_ready"]) == (True, True, [True, True])
    assert found["other_ready"] is False
    assert found["server"]["name"] == "leanrec" and "binary_tensor_data" in found["server"]["extensions"]
    model = found["model"]
    assert (model["name"], model["versions"]) == ("toy", [server.version])
    assert [(one["name"], one["datatype"], one["shape"]) for one in model["inputs"]] == [
        ("user", "INT64", [-1]), ("item", "INT64", [-1]), ("price", "FP32", [-1, 2]), ("fresh", "BOOL", [-1]),
    ]  # fmt: skip
    assert model["inputs"][1]["parameters"]["vocabulary"] == ITEMS


def test_every_path_gives_the_scores_of_the_pool(found: dict[str, Any], bundle: Path, server: ServerProcess) -> None:
    with read_bundle(bundle).open() as pool:
        expected = pool.submit(REQUEST).result(timeout=20)
    assert len(found["scores"]) == 10
    for path, scores in found["scores"].items():
        assert np.asarray(scores, np.float32).tobytes() == expected.tobytes(), path
    assert found["response"] == {"id": "seven", "model_name": "toy", "model_version": server.version}
    (counted,) = found["statistics"]["model_stats"]
    assert counted["inference_stats"]["success"]["count"] >= 10 and counted["version"] == server.version


@pytest.mark.parametrize(
    ("case", "status", "words"),
    [
        ("unknown model", 404, "must be toy, but got other"),
        ("unknown version", 404, "version: must be"),
        ("missing input", 400, "no user"),
        ("other rows", 400, "rows"),
        ("other datatype", 400, "INT64"),
        ("unknown output", 400, "must be one of scores"),
        ("no such metadata", 404, "must be toy"),
        ("no configuration", 404, "must be one of the protocol's"),
    ],
)
def test_errors_reach_the_client_with_status_and_reason(
    found: dict[str, Any], case: str, status: int, words: str
) -> None:
    got, message = found["errors"][case]
    assert got == str(status) and words in message, message


def test_the_script_needs_nothing_of_this_environment() -> None:
    """The script runs where leanrec is not installed."""
    imported = [line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith(("import ", "from "))]
    tops = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert tops == {"numpy", "tritonclient"}
