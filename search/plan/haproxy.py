"""HAProxy configuration for several `leanrec serve`: balancing by speed, health checks, ejection and retries."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from search.errors import ConfigError

# The policies of the pool, as HAProxy names them; all respect the weights.
HAPROXY_BALANCE = {"two-choices": "random(2)", "least-outstanding": "leastconn", "round-robin": "roundrobin"}
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
        port = 80 if parts.port is None else parts.port
    except ValueError:
        parts, factor, port = urlsplit(""), 0.0, 0
    plain = parts.scheme == "http" and parts.path in ("", "/") and not parts.query
    if not (plain and port and _HOST.fullmatch(parts.hostname or "") and math.isfinite(factor) and factor > 0):
        raise ConfigError(f"URL: must be http://HOST:PORT, or http://HOST:PORT=SPEED, but got {text!r}")
    return BalancedServer(str(parts.hostname), port, factor)


def configuration(servers: Sequence[BalancedServer], policy: str, host: str, port: int, timeout_s: float) -> str:
    """Return the configuration.

    Scores depend on nothing but the request, so that a request whose server is gone, hangs or refuses it may be sent to
    another one, as long as that finds room. A server that is slow or refuses for want of room is not ejected: under
    overload all would be, and where none passes its check, all are tried.

    Args:
        policy: one of HAPROXY_BALANCE
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
        policy=HAPROXY_BALANCE[policy],
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
    balance {policy}
    # Twice on another server at most, where one is gone, hangs, or refuses for want of room.
    retries 2
    option redispatch 1
    retry-on conn-failure empty-response junk-response response-timeout 503

frontend requests
    bind {bind}
    option http-buffer-request
    # One server may refuse what another has room for. Where all refuse, what is sent again takes time from what has a
    # chance: once a tenth of a second's requests end with 503 or 504 all the same, only failed connections are tried
    # again.
    stick-table type integer size 1 expire 1m store http_req_rate(1s),gpc0_rate(1s)
    http-request track-sc0 int(1)
    http-request set-var(txn.requests) sc_http_req_rate(0)
    http-request disable-l7-retry if {{ sc_gpc0_rate(0),mul(10),sub(txn.requests) gt 0 }}
    http-after-response sc-inc-gpc0(0) if {{ status 503 504 }}
    # Where no server passes its check, a slow answer is better than none.
    use_backend unchecked if {{ nbsrv(leanrec) eq 0 }}
    default_backend leanrec

backend leanrec
    # A server that is about to stop is not ready, and answers for half a second more: two checks find it within 300 ms.
    # A dead one refuses them, and is found as soon. A busy one has 2 s for each; one that misses two in turn hangs.
    option httpchk
    http-check send meth GET uri /v2/health/ready
    http-check expect status 200
    timeout check 2s
    # Three connections in turn that fail count as one failed check: the next check says whether the server is gone.
    default-server check inter 200ms fastinter 100ms fall 2 rise 2 observe layer4 error-limit 3 on-error sudden-death
    # One that comes back is cold, and has the fewest requests of all.
    default-server slowstart 5s
{servers}

backend unchecked
{servers}
"""
