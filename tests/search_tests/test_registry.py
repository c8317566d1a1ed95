"""Registered bundles: the challenger when written, the champion once verified, and usable wherever a path is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from objectives.errors import ExplainedError, InputError
from objectives.serving.bundle import read_bundle
from objectives.serving.bundle_files import BundleError
from search.choose.bundles import bundle_folder, load
from search.cli.parser import run_command
from search.home import Home
from search.ledger import registry
from search.ledger.registry import Registered, register
from tests.serve_tests import oracle
from tests.serve_tests.bundles import draw_request, write_bag, write_toy
from tests.serve_tests.process import serving, wait_until

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("user", "item", "price", "fresh")


def uri(home: Home) -> str:
    return f"sqlite:///{home.mlruns / 'mlflow.db'}"


def client(home: Home) -> MlflowClient:
    return MlflowClient(uri(home))


def registered(home: Home, bundle: Path, name: str = "toy") -> Registered:
    found = client(home)
    experiment = found.get_experiment_by_name("e")
    identity = experiment.experiment_id if experiment else found.create_experiment("e", home.artifacts.as_uri())
    run = found.create_run(identity).info.run_id
    return register(found, uri(home), name, bundle, run, {"candidate": "c1"})


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_version_is_the_champion_once_its_registered_files_are_verified(home: Home, tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "bundle")
    found = registered(home, bundle)
    assert found == Registered("toy", "1", None) and found.alias == "champion"
    version = client(home).get_model_version_by_alias("toy", "champion")
    assert version.tags == {"candidate": "c1"} and version.aliases == ["champion"], "no longer the challenger"
    folder = bundle_folder("models:/toy@champion", home)
    assert read_bundle(folder).manifest == read_bundle(bundle).manifest and folder != bundle
    assert bundle_folder("models:/toy/1", home) == folder
    (output,) = client(home).get_run(version.run_id).outputs.model_outputs
    assert client(home).get_logged_model(output.model_id).artifact_location == version.source


def test_what_does_not_verify_stays_the_challenger(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered(home, write_toy(tmp_path / "bundle"))
    with monkeypatch.context() as patch:
        patch.setattr(registry, "verify", lambda folder: (_ for _ in ()).throw(BundleError("it was changed")))
        found = registered(home, write_toy(tmp_path / "bundle", seed=1))
    assert (found.version, found.alias, found.refused) == ("2", "challenger", "it was changed")
    assert client(home).get_model_version_by_alias("toy", "champion").version == 1
    assert client(home).get_model_version_by_alias("toy", "challenger").version == 2


def test_the_flavour_gives_the_pools_scores_and_holds_no_pickle(home: Home, tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "bundle")
    registered(home, bundle)
    request = draw_request(9, seed=3)
    with read_bundle(bundle).open() as pool:
        scores = pool.submit(request).result(timeout=20)
    location = client(home).get_model_version_by_alias("toy", "champion").source.removeprefix("file://")
    model = mlflow.pyfunc.load_model(location)
    assert np.array_equal(model.predict(request), scores)
    assert [spec.name for spec in model.metadata.signature.inputs] == list(NAMES)
    example = mlflow.models.Model.load(location).load_input_example(location)
    assert np.array_equal(example["item"], np.asarray(read_bundle(bundle).manifest.example.inputs["item"]))
    files = [path for path in Path(location).rglob("*") if path.is_file()]
    assert files and not [path for path in files if path.suffix in (".pkl", ".pickle", ".joblib", ".pt")]
    with pytest.raises(mlflow.exceptions.MlflowException, match=r"signature|schema"):
        model.predict({"user": request["user"]})


def test_a_bag_has_a_signature_of_any_length(home: Home, tmp_path: Path) -> None:
    registered(home, write_bag(tmp_path / "bag"), "bag")
    folder = bundle_folder("models:/bag@champion", home)
    model = mlflow.pyfunc.load_model(str(folder.parents[1]))
    request = {"genres": np.array([[1, 2, 3]]), "bounds": np.array([[True, True, False]])}
    assert model.predict(request) == pytest.approx([3.0])


@pytest.mark.parametrize(
    "wrong",
    ["models:/toy", "models:/toy@champion", "models:/toy/7", "models:/nobody@champion", "models:/a/b/c", "models:/"],
)
def test_a_name_that_is_not_there_is_bad_input(
    wrong: str, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client(home).create_registered_model("toy")
    assert run_command(["verify", wrong, "--home", str(home.root)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "BUNDLE" in err and wrong in err
    with pytest.raises(InputError, match="nothing is"):
        bundle_folder("models:/toy@champion", Home(tmp_path / "another"))
    assert not (tmp_path / "another").exists(), "nothing is made"


def test_a_version_that_holds_no_bundle_is_bad_input(home: Home) -> None:
    found = client(home)
    found.create_registered_model("old")
    run = found.create_run(found.create_experiment("e", home.artifacts.as_uri())).info.run_id
    found.log_text(run, "flavors: {onnx: {data: model.onnx}}\n", "model/MLmodel")
    found.create_model_version("old", f"{found.get_run(run).info.artifact_uri}/model", run)
    with pytest.raises(InputError, match="models:/old/1 must hold a bundle"):
        bundle_folder("models:/old/1", home)


def test_a_server_that_is_away_is_explained(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{probe.getsockname()[1]}")
    with pytest.raises(ExplainedError, match="did not answer"):
        bundle_folder("models:/toy@champion", home)


def test_commands_and_python_take_a_registered_name(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_toy(tmp_path / "bundle")
    registered(home, bundle)
    assert run_command(["verify", "models:/toy@champion", "--home", str(home.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verified"]
    assert run_command(["build", "models:/toy@champion", "--home", str(home.root)]) == 2
    assert "must keep a recipe" in capsys.readouterr().err, "it was found and read"
    request = draw_request(6)
    with load("models:/toy/1", home.root) as ranker, read_bundle(bundle).open() as pool:
        assert np.array_equal(ranker.score(request), pool.submit(request).result(timeout=20))


class Served:
    """A store behind a real MLflow server, and a home whose MLflow it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"


@pytest.fixture
def server(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    served = Served(tmp_path)
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri(home), "--port", str(served.port),
        "--artifacts-destination", str(tmp_path / "stored"), "--workers", "1",
    ]  # fmt: skip
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(f"{served.url}/health", process, tmp_path / "server.log")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", served.url)
        yield served
    finally:
        process.terminate()
        process.wait(30)


def wait_for(url: str, process: subprocess.Popen[Any], log: Path) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.mark.slow
def test_a_bundle_is_fetched_from_a_server_once(server: Served, home: Home, tmp_path: Path) -> None:
    bundle, far = write_toy(tmp_path / "bundle"), MlflowClient(server.url)
    run = far.create_run(far.create_experiment("far")).info.run_id
    assert register(far, server.url, "toy", bundle, run, {}).alias == "champion"
    elsewhere = Home(tmp_path / "elsewhere")
    folder = bundle_folder("models:/toy@champion", elsewhere)
    assert folder.is_relative_to(elsewhere.root) and read_bundle(folder).manifest == read_bundle(bundle).manifest
    shutil.rmtree(tmp_path / "stored")
    assert bundle_folder("models:/toy@champion", elsewhere) == folder


@pytest.mark.slow
def test_the_server_follows_an_alias(home: Home, tmp_path: Path) -> None:
    """SIGHUP resolves the alias again."""
    for seed in (0, 1):
        registered(home, write_toy(tmp_path / "bundle", seed=seed))
    client(home).set_registered_model_alias("toy", "champion", "1")
    request = draw_request(4)
    with serving("models:/toy@champion", tmp_path / "log", "--home", str(home.root)) as served:
        for version in ("1", "2"):
            if version == "2":
                client(home).set_registered_model_alias("toy", "champion", version)
                served.process.send_signal(signal.SIGHUP)
                wait_until(lambda: served.metric("leanrec_swaps_total", result="done") == 1)
            response = httpx.post(f"{served.url}/infer", json=oracle.json_request(request), timeout=30)
            with read_bundle(bundle_folder(f"models:/toy/{version}", home)).open() as pool:
                scores = pool.submit(request).result(timeout=20)
            assert oracle.read_scores(response.content, None)[1].tobytes() == scores.tobytes()


@pytest.mark.slow
def test_mlflows_own_server_answers_with_the_pools_scores(home: Home, tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "bundle")
    registered(home, bundle)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # MLflow starts uvicorn by its name
    environment = {**os.environ, "PATH": programs, "MLFLOW_TRACKING_URI": uri(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/toy@champion"]
    command += ["--env-manager", "local", "--port", str(port), "--workers", "1"]
    request = draw_request(11, seed=5)
    plain = {"inputs": {name: values.tolist() for name, values in request.items()}}
    with (tmp_path / "serve.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process, tmp_path / "serve.log")
        response = httpx.post(f"http://127.0.0.1:{port}/invocations", json=plain, timeout=30)
        assert response.status_code == 200, response.text
        with read_bundle(bundle).open() as pool:
            scores = pool.submit(request).result(timeout=20)
        assert np.asarray(response.json()["predictions"], np.float32) == pytest.approx(scores, abs=1e-6)
        wrong = {"inputs": {**plain["inputs"], "item": [-1] * 11}}
        assert httpx.post(f"http://127.0.0.1:{port}/invocations", json=wrong, timeout=30).status_code >= 400
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
