"""One server process and one client for the tests that do not end it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serve_tests.bundles import MAX_ROWS, write_toy
from tests.serve_tests.process import ServerProcess, serving


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="session")
def server(bundle: Path) -> Iterator[ServerProcess]:
    options = ("--max-rows", str(MAX_ROWS), "--max-body-mb", "1")
    log = bundle.with_name("log")
    with serving(bundle, log, *options) as found:
        yield found
    # Of all tests that share the server, with their bad requests.
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="session")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=20) as found:
        yield found
