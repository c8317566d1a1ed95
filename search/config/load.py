"""Traffic of the study file, as arrival patterns for the meter and traces of the user's logs."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from objectives.measurement.arrivals import Traffic
from objectives.measurement.request_log import RequestLogError, read_request_log, read_trace, write_trace
from objectives.serving.http import PACKAGES
from objectives.store import written_whole
from search.config.sections import StudyConfig, TrafficConfig
from search.errors import ConfigError
from search.home import Home


def traffic_of(config: TrafficConfig, home: Home) -> Traffic:
    """Return the arrivals of the study file; a request log is read once and kept as a trace.

    Raises:
        ConfigError: the log is invalid.
    """
    if config.log is not None:
        return Traffic("replay", trace=str(_trace(config.log, "traffic.pattern", home)))
    if config.pattern == "bursts":
        return Traffic("bursts", config.on_seconds, config.off_seconds, config.quiet)
    if config.pattern == "diurnal":
        return Traffic("diurnal", period_seconds=config.period_seconds, depth=config.depth)
    return Traffic("deterministic" if config.pattern == "deterministic" else "poisson")


def check_server_packages(config: TrafficConfig) -> None:
    """Check that deployments can be served where requests are to go through HTTP.

    Raises:
        ConfigError: packages are missing.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if config.through == "http" and missing:
        raise ConfigError(
            f"traffic.through: must be pool without the packages of the server, but got 'http' and no "
            f"{', '.join(missing)}: pip install 'leanrec[serve]'"
        )


def rows_trace(config: StudyConfig, home: Home) -> str | None:
    """Return the trace that sets the rows of requests, None for log-normal ones.

    Raises:
        ConfigError: the log cannot be read, or lacks the rows that it was named for.
    """
    file = config.traffic.rows.file
    if file is not None:
        trace = _trace(Path(file), "traffic.rows.file", home)
        if read_trace(trace).rows is None:
            raise ConfigError(f"traffic.rows.file: {file} must have a column rows, but has none")
        return str(trace)
    if config.traffic.log is None:
        return None
    trace = _trace(config.traffic.log, "traffic.pattern", home)
    return None if read_trace(trace).rows is None else str(trace)


def _trace(log: Path, field: str, home: Home) -> Path:
    """Write a trace, named by the hash of the log's content."""
    try:
        with log.open("rb") as file:
            name = hashlib.file_digest(file, "sha256").hexdigest()[:20]
        path = home.mlruns / "cache" / "traces" / f"{name}.npz"
        if not path.exists():
            with written_whole(path) as partial:
                write_trace(read_request_log(log), partial)
    except (RequestLogError, OSError) as error:
        raise ConfigError(f"{field}: {error}") from error
    return path
