"""Bundles by their path or by their name in the registry of models; only the latter needs mlflow."""

from __future__ import annotations

import warnings
from pathlib import Path

from objectives.errors import InputError
from objectives.serving.ranker import Ranker
from search.home import Home

_REGISTERED = "models:/"


def is_registered(where: str) -> bool:
    """Return whether a text names a registered model and not a path."""
    return where.startswith(_REGISTERED)


def is_alias(where: str) -> bool:
    """Return whether a text names a registered model by an alias, which may move to another version."""
    return is_registered(where) and "@" in where


def bundle_folder(where: str, home: Home, field: str = "BUNDLE") -> Path:
    """Return the folder of a bundle.

    Args:
        where: a path, `models:/NAME@ALIAS` or `models:/NAME/VERSION`
        home: the home whose MLflow store has the registered models, unless MLFLOW_TRACKING_URI names another
        field: name of the argument in errors

    Raises:
        InputError: there is none.
        ExplainedError: the store does not answer.
    """
    if is_registered(where):
        from search.ledger.registry import fetch

        return fetch(where, home, field)
    folder = Path(where)
    if not folder.is_dir():
        raise InputError(f"{field}: must be a folder or models:/NAME@ALIAS, but got {where!r}")
    return folder


def challenger_folder(where: str, home: Home) -> Path | None:
    """Return the folder of a challenger; None while a registered model has no version of that alias.

    Arguments and errors are as in `bundle_folder`.
    """
    field = "--challenger"
    if not is_alias(where):
        return bundle_folder(where, home, field)
    from search.ledger.registry import find

    return find(where, home, field)


def load(path_or_uri: str | Path, home: str | Path | None = None) -> Ranker:
    """Open a bundle, with the placement that was measured.

    with leanrec.load("models:/shop@champion") as ranker:
        order, scores = ranker.rank({"user": [7], "item": [4, 8, 15]})

    Args:
        path_or_uri: a bundle's folder, `models:/NAME@ALIAS` or `models:/NAME/VERSION`
        home: folder of mlruns/; None for LEANREC_HOME, else the working directory

    Raises:
        BundleError: it is no valid bundle, or cannot run here.
        InputError: there is no such folder or version.
    """
    ranker = Ranker(bundle_folder(str(path_or_uri), Home.find(None if home is None else str(home))))
    for line in ranker.bundle.warnings:
        warnings.warn(line, stacklevel=2)
    return ranker
