"""Warm start: the points of another study's front, or given candidates, as far as this study's space offers them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from search.errors import ConfigError
from search.home import Home
from search.samplers.drawn import draw
from spaces.domains import Scalar
from spaces.search_space import SearchSpace
from spaces.weights import CYCLES

Knobs = Mapping[str, Scalar]
# Knobs that were added later, with the values of earlier versions.
_ADDED: Knobs = {CYCLES: 1, "placement.score_catalogue": False, "placement.keep_warm_ms": 0.0}
_WHAT = "must be a study of this home, its front.json, or a JSON file with a list of mappings from knob to value"


def starting_points(source: str, home: Home, space: SearchSpace, seed: int) -> list[dict[str, Scalar]]:
    """Return the knobs of the points of one source, each different.

    A knob that the space does not offer, or not with that value, is drawn at random, as is one that the source lacks:
    the other study may have been of other data, on another machine, or with other techniques. Where fronts of earlier
    versions lack a knob, a training has one cycle, the catalogue is not scored as a whole, and no engine is kept warm.

    Args:
        source: name of a study of this home, or a file

    Raises:
        ConfigError: there is no such study or file, or it holds something else.
    """
    random = Random(f"{seed} {Path(source).stem}")  # wherever the file lies
    drawn = [draw(space, random, {**_ADDED, **near}, 0.0) for near in _read(source, home)]
    found = {one.candidate: dict(one.knobs) for one in drawn}
    return [*found.values()]


def check_sources(sources: Sequence[str], home: Home) -> None:
    """Check that the sources can be read; ConfigError as in `starting_points`."""
    for source in sources:
        _read(source, home)


def _read(source: str, home: Home) -> list[Knobs]:
    own = home.reports(source) / "front.json"
    path = own if own.is_file() else Path(source)
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"start_from: {source!r} {_WHAT}, but {error}") from error
    if isinstance(data, Mapping):
        data = _of_front(data.get("rows"), source, path)
    if not isinstance(data, list) or not all(isinstance(knobs, Mapping) for knobs in data):
        raise ConfigError(f"start_from: {source!r} {_WHAT}, but {path} holds something else")
    return data


def _of_front(rows: object, source: str, path: Path) -> object:
    """Return the knobs of a front's points; every study has a baseline of its own, and reference points have none."""
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        return None
    members = [row for row in rows if row.get("on_front") and row.get("trial") != 0]
    if not all("suggested" in row for row in members):
        raise ConfigError(f"start_from: {source!r} must be of this version, but {path} was written by an earlier one")
    return [row["suggested"] for row in members if row["suggested"]]
