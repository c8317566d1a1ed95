"""HAProxy configuration for several `leanrec serve`: balancing by speed, health checks, ejection and retries."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from search.errors import ConfigError

# The policies of the pool, as HAProxy names them; both respect the weights.
POLICIES = {"two-choices": "random(2)", "least-outstanding": "leastconn", "round-robin": "roundrobin"}
# An address that means nothing else in a configuration.
_HOST = re.compile(r"[\w.:-]+", re.ASCII)
# HAProxy's largest weight.
_MOST_WEIGHT = 256
# Bytes of the largest request that is sent again to another server: HAProxy has to hold it until then.
_HELD_BYTES = 131_072


@dataclass(frozen=True)
class BalancedServer:
    """A server: its address, and how fast it is compared with the others."""

    host: str
    port: int
    speed: float = 1.0


def read_servers(texts: Sequence[str]) -> tuple[BalancedServer, ...]:
    """Read URL or URL=SPEED of each server.

    Raises:
        ConfigError: one is neither, or given twice.
    """
    found = tuple(_server(text) for text in texts)
    places = [(server.host, server.port) for server in found]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise ConfigError(f"URL: must be given once, but got {twice[0]}:{twice[1]} more often")
    return found


def _server(text: str) -> BalancedServer:
    url, _, speed = text.partition("=")
    try:
        parts, factor = urlsplit(url), float(speed or "1")
        port = parts.port or 80
    except ValueError:
        parts, factor, port = urlsplit(""), 0.0, 0
    plain = parts.scheme == "http" and parts.path in ("", "/") and not parts.query
    if not (plain and _HOST.fullmatch(parts.hostname or "") and math.isfinite(factor) and factor > 0):
        raise ConfigError(f"URL: must be http://HOST:PORT, or http://HOST:PORT=SPEED, but got {text!r}")
    return BalancedServer(str(parts.hostname), port, factor)


def configuration(servers: Sequence[BalancedServer], policy: str, host: str, port: int, timeout_s: float) -> str:
    """Return the configuration.

    Scores depend on nothing but the request, so that a request whose server is gone, hangs or refuses it may be sent to
    another one. What refuses for want of room is not ejected: under overload all would be.

    Args:
        policy: one of POLICIES
        host, port: to listen on
        timeout_s: seconds without an answer after which a request is sent to another server

    Raises:
        ConfigError: the host is no address.
    """
    if not _HOST.fullmatch(host):
        raise ConfigError(f"--host: must be an address, but got {host!r}")
    per_speed = _MOST_WEIGHT / max(server.speed for server in servers)
    lines = [
        f"    server s{number} {_address(server.host, server.port)} weight {max(1, round(per_speed * server.speed))}"
        for number, server in enumerate(servers)
    ]
    return _TEMPLATE.format(
        bind=_address(host, port),
        policy=POLICIES[policy],
        held=_HELD_BYTES,
        timeout=max(round(timeout_s * 1e3), 1),
        servers="\n".join(lines),
    )


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_TEMPLATE = """\
# Written by leanrec balance. To check it: haproxy -c -f FILE
global
    # A request is sent again only if it fits into this many bytes.
    tune.bufsize {held}

defaults
    mode http
    timeout connect 500ms
    timeout client 75s
    timeout server {timeout}ms
    timeout http-request 30s

frontend requests
    bind {bind}
    option http-buffer-request
    default_backend leanrec

backend leanrec
    balance {policy}
    # Twice on another server at most, where one is gone, hangs, or refuses for want of room.
    retries 2
    option redispatch 1
    retry-on conn-failure empty-response junk-response response-timeout 503
    # A server that is about to stop is not ready, and answers for half a second more.
    option httpchk
    http-check send meth GET uri /v2/health/ready
    http-check expect status 200
    default-server check inter 200ms fall 1 rise 2 observe layer4 error-limit 3 on-error mark-down slowstart 5s
{servers}
"""
