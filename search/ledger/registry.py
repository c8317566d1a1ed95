"""Registry of models: a bundle as a version with MLflow's flavour, and the bundle of a version."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from mlflow.entities import LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from objectives.errors import ExplainedError, InputError
from objectives.serving.bundle import Bundle, read_bundle, verify
from objectives.serving.bundle_files import BundleError
from objectives.serving.devices import distribution
from objectives.store import make_once
from search.home import Home, is_missing
from search.ledger.client import STORE_ERRORS, first_line, open_client
from spaces.serialization import digest

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

# Alias of a version that is written, and of one whose registered files were verified.
CHALLENGER, CHAMPION = "challenger", "champion"
# Module by which MLflow loads a bundle; no pickle is involved.
LOADER = "objectives.serving.pyfunc"
_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True)
class Registered:
    """A version in the registry; `refused` is the reason why it is no champion, None where it is."""

    name: str
    version: str
    refused: str | None

    @property
    def alias(self) -> str:
        return CHAMPION if self.refused is None else CHALLENGER


def register(client: MlflowClient, uri: str, name: str, folder: Path, run: str, tags: Mapping[str, str]) -> Registered:
    """Register a bundle as a new version: the challenger, and the champion once the registered files are verified.

    Args:
        uri: of the client's store
        run: id of the run that the bundle comes from
        tags: of the version
    """
    version = challenge(client, name, folder, run, tags)
    try:
        with tempfile.TemporaryDirectory() as cache:
            verify(_bundle_of(client, uri, version, Path(cache) / "fetched"))
    except BundleError as error:
        return Registered(name, str(version.version), str(error))
    crown(client, version)
    return Registered(name, str(version.version), None)


def challenge(client: MlflowClient, name: str, folder: Path, run: str, tags: Mapping[str, str]) -> ModelVersion:
    """Register a bundle as a new version, the challenger; arguments as in `register`."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model = _log_flavour(client, read_bundle(folder), run, tags)
    # Its place, since a database would look a models:/ URI up in the process's own store and not in this client's.
    source = client.get_logged_model(model).artifact_location
    version = client.create_model_version(name, source, run, tags=dict(tags), model_id=model)
    client.set_registered_model_alias(name, CHALLENGER, version.version)
    return version


def crown(client: MlflowClient, version: ModelVersion) -> None:
    """Make a version the champion, and then no longer the challenger; done twice, it changes nothing."""
    client.set_registered_model_alias(version.name, CHAMPION, version.version)
    aliases = client.get_registered_model(version.name).aliases
    if str(aliases.get(CHALLENGER)) == str(version.version):
        client.delete_registered_model_alias(version.name, CHALLENGER)


def fetch(uri: str, home: Home, field: str = "BUNDLE") -> Path:
    """Return the folder of a registered bundle, fetched into the home's cache if the store is not on this machine.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`
        field: name of the argument in errors

    Raises:
        InputError: there is no such version, or it is no bundle.
        ExplainedError: the store does not answer.
    """
    if (found := find(uri, home, field)) is None:
        raise InputError(f"{field}: {uri} must be registered in {home.tracking_uri(None)}, but there is no such alias")
    return found


def find(uri: str, home: Home, field: str = "BUNDLE") -> Path | None:
    """Return what `fetch` does, with its arguments and errors, but None where the model has no such alias."""
    store, wanted = home.tracking_uri(None), _URI.fullmatch(uri)
    if wanted is None:
        raise InputError(f"{field}: must be models:/NAME@ALIAS or models:/NAME/VERSION, but got {uri!r}")
    check_store(store, uri, field)
    with answering(store, uri, field):
        client = open_client(store)
        version = _version(client, **wanted.groupdict())
        return None if version is None else bundle_of(client, store, version, home)


def check_store(store: str, what: str, field: str) -> None:
    """Check that a database is there, since looking into it would make it."""
    if is_missing(store):
        others = "--home gives another home, and MLFLOW_TRACKING_URI another store"
        raise InputError(f"{field}: {what} must be registered in {store}, but nothing is; {others}")


@contextmanager
def answering(store: str, what: str, field: str) -> Iterator[None]:
    """Turn errors of a store into InputError where something is not registered, else into ExplainedError."""
    try:
        yield
    except STORE_ERRORS as error:
        if isinstance(error, MlflowException) and error.error_code in _UNKNOWN:
            raise InputError(f"{field}: {what} must be registered in {store}, but: {first_line(error)}") from error
        raise ExplainedError(f"MLflow at {store} did not answer: {first_line(error)}") from error


def bundle_of(client: MlflowClient, store: str, version: ModelVersion, home: Home) -> Path:
    """Return the folder of a version's bundle, fetched as in `fetch`; InputError where it holds none."""
    kept = home.mlruns / "cache" / "registered" / digest(store, version.source)[:20]
    return _bundle_of(client, store, version, kept)


def _version(client: MlflowClient, name: str, alias: str | None, version: str | None) -> ModelVersion | None:
    if alias is not None:
        version = client.get_registered_model(name).aliases.get(alias)
    return None if version is None else client.get_model_version(name, version)


def _log_flavour(client: MlflowClient, bundle: Bundle, run: str, tags: Mapping[str, str]) -> str:
    """Log a bundle as an MLflow model of a run, and return its id."""
    from mlflow import pyfunc
    from mlflow.models import Model

    experiment = client.get_run(run).info.experiment_id
    model = client.create_logged_model(experiment, "bundle", run, dict(tags), model_type="pyfunc")
    try:
        with tempfile.TemporaryDirectory() as folder:
            pyfunc.save_model(
                f"{folder}/model",
                loader_module=LOADER,
                data_path=str(bundle.folder),
                mlflow_model=Model(run_id=run, model_id=model.model_id),
                signature=_signature(bundle),
                input_example=_example(bundle),
                pip_requirements=_requirements(bundle),
                metadata=dict(tags),
            )
            client.log_model_artifacts(model.model_id, f"{folder}/model")
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run, [LoggedModelOutput(model.model_id, step=0)])
    return str(model.model_id)


def _signature(bundle: Bundle) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def free(shape: tuple[int | None, ...]) -> tuple[int, ...]:
        return (-1, *(-1 if size is None else size for size in shape))

    output = bundle.manifest.output
    inputs = [TensorSpec(np.dtype(spec.dtype), free(spec.shape), spec.name) for spec in bundle.inputs]
    return ModelSignature(Schema(inputs), Schema([TensorSpec(np.dtype(output.dtype), free(output.shape))]))


def _example(bundle: Bundle) -> dict[str, np.ndarray]:
    held = bundle.manifest.example.inputs
    return {spec.name: np.asarray(held[spec.name], spec.dtype) for spec in bundle.inputs}


def _requirements(bundle: Bundle) -> list[str]:
    """Return what serving needs: leanrec, which brings NumPy and ONNX Runtime, and the engines as verified."""
    placement, versions = bundle.candidate.placement, bundle.manifest.verified_on.versions
    engines = {group.engine for group in placement.instance_groups}
    if placement.embedding_device is not None:
        engines.add(placement.embedding_device.engine)
    return ["leanrec", *(f"{distribution(engine)}=={versions[engine]}" for engine in sorted(engines & versions.keys()))]


def _bundle_of(client: MlflowClient, uri: str, version: ModelVersion, cache: Path) -> Path:
    """Return the folder of a version's bundle, fetched into `cache` if the store's artifacts are not on this machine.

    Raises:
        InputError: the version has another flavour.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.models import Model

    location = client.get_model_version_download_uri(version.name, version.version)
    if urlsplit(location).scheme in ("", "file"):
        folder = Path(url2pathname(urlsplit(location).path))
    else:
        make_once(cache, lambda into: download_artifacts(location, dst_path=str(into), tracking_uri=uri))
        folder = next(cache.rglob("MLmodel"), cache / "MLmodel").parent
    described = (folder / "MLmodel").exists()
    flavour = Model.load(str(folder)).flavors.get("python_function", {}) if described else {}
    if flavour.get("loader_module") != LOADER:
        raise InputError(
            f"BUNDLE: models:/{version.name}/{version.version} must hold a bundle, but was registered by an older "
            "leanrec or something else; leanrec choose registers it anew"
        )
    return folder / str(flavour["data"])
