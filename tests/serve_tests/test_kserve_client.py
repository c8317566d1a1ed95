"""KServe's own REST client against `leanrec serve`, in an environment of its own: its pins are not ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objectives.serving.bundle import read_bundle
from tests.serve_tests.bundles import draw_request
from tests.serve_tests.environments import environment, told
from tests.serve_tests.process import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
REQUEST = draw_request(9, seed=4)


@pytest.fixture(scope="module")
def found(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("kserve")
    python = environment(folder / "environment", "kserve")
    return told(python, Path(__file__).with_name("kserve_script.py"), server, REQUEST, folder)


def test_health(found: dict[str, Any]) -> None:
    assert (found["live"], found["ready"], found["model_ready"]) == (True, True, True)


def test_every_path_gives_the_scores_of_the_pool(found: dict[str, Any], bundle: Path) -> None:
    with read_bundle(bundle).open() as pool:
        expected = pool.submit(REQUEST).result(timeout=20)
    assert set(found["scores"]) == {"json", "binary", "mixed"}
    for path, scores in found["scores"].items():
        assert np.asarray(scores, np.float32).tobytes() == expected.tobytes(), path


@pytest.mark.parametrize(
    ("case", "status", "words"), [("unknown model", 404, "must be toy"), ("missing input", 400, "no user")]
)
def test_errors_reach_the_client_with_status_and_reason(
    found: dict[str, Any], case: str, status: int, words: str
) -> None:
    got, message = found["errors"][case]
    assert got == status and words in message, message
