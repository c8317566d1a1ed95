"""Configurations of HAProxy: what they say, and, where it is installed, what it does of them with real servers."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from search.cli.parser import run_command
from search.cli.planning import HAPROXY_POLICIES
from search.errors import ConfigError
from search.plan.haproxy import HAPROXY_BALANCE, BalancedServer, configuration, read_servers
from tests.plan_tests.balanced import balanced, states
from tests.serve_tests.bundles import waiting
from tests.serve_tests.clients import Clients
from tests.serve_tests.process import SOON, ServerProcess, wait_until
from tests.serve_tests.test_elastic import PLAIN

needs_haproxy = pytest.mark.skipif(shutil.which("haproxy") is None, reason="HAProxy is not installed")
SERVERS = ["http://127.0.0.1:8000=2", "http://[::1]:8001/", "http://shop.internal=0.5"]


def test_servers_are_read_with_their_speed() -> None:
    found = read_servers(SERVERS)
    assert found == (
        BalancedServer("127.0.0.1", 8000, 2.0),
        BalancedServer("::1", 8001, 1.0),
        BalancedServer("shop.internal", 80, 0.5),
    )
    lines = configuration(found, "least-outstanding", "::", 8080, 5.0).splitlines()
    assert "    balance leastconn" in lines and "    bind [::]:8080" in lines
    weights = [
        ["127.0.0.1:8000", "weight", "256"],
        ["[::1]:8001", "weight", "128"],
        ["shop.internal:80", "weight", "64"],
    ]
    assert [line.split()[2:] for line in lines if line.startswith("    server ")] == 2 * weights  # in both backends
    assert tuple(HAPROXY_BALANCE) == HAPROXY_POLICIES


@pytest.mark.parametrize(
    "wrong",
    [
        "ftp://a:1",
        "a:1",
        "http://a:1/path",
        "http://a:1=0",
        "http://a:1=fast",
        "http://a:99999",
        "http://a:0",
        "http://a b:1",
        "http://",
    ],
)
def test_what_is_no_server_is_refused_in_one_line(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="URL: must be http://HOST:PORT"):
        read_servers([wrong])
    assert run_command(["balance", "http://a:1", wrong]) == 2
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 1


def test_hosts_that_would_be_more_lines_and_servers_given_twice_are_refused() -> None:
    with pytest.raises(ConfigError, match="--host: must be an address"):
        configuration(read_servers(["http://a:1"]), "round-robin", "a\nlisten b", 80, 5.0)
    with pytest.raises(ConfigError, match="URL: must be given once"):
        read_servers(["http://a:1", "http://a:1=3"])


def test_the_command_writes_a_file_or_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = configuration(read_servers(["http://a:1"]), "two-choices", "127.0.0.1", 8080, 5.0)
    assert run_command(["balance", "http://a:1"]) == 0
    assert capsys.readouterr().out == expected
    assert run_command(["balance", "http://a:1", "--out", str(tmp_path / "haproxy.cfg"), "--quiet"]) == 0
    assert (tmp_path / "haproxy.cfg").read_text() == expected


@needs_haproxy
@pytest.mark.parametrize("policy", HAPROXY_POLICIES)
def test_haproxy_takes_every_configuration(policy: str, tmp_path: Path) -> None:
    found = read_servers(["http://127.0.0.1:8000=2", "http://[::1]:8001"])
    (tmp_path / "haproxy.cfg").write_text(configuration(found, policy, "127.0.0.1", 8080, 5.0))
    command = ["haproxy", "-c", "-f", str(tmp_path / "haproxy.cfg")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr


@needs_haproxy
@pytest.mark.slow
def test_no_request_fails_while_a_server_ends_and_another_one_is_killed(tmp_path: Path) -> None:
    with balanced(tmp_path, "two-choices", 5.0) as (url, servers):
        clients = Clients(url, PLAIN, 0.001)
        with clients.running(4):
            wait_until(lambda: _all_answered(servers))
            servers[0].process.send_signal(signal.SIGTERM)
            assert servers[0].process.wait(30) == 0
            _wait_for_answers(clients)
            servers[1].process.kill()
            _wait_for_answers(clients)
            time.sleep(0.5)
    assert set(clients.ended) == {200}, clients.ended


@needs_haproxy
@pytest.mark.slow
def test_no_request_fails_while_a_server_hangs(tmp_path: Path) -> None:
    with balanced(tmp_path, "round-robin", 1.0) as (url, servers):
        clients = Clients(url, PLAIN, 0.001)
        with clients.running(4):
            wait_until(lambda: _all_answered(servers))
            servers[0].process.send_signal(signal.SIGSTOP)
            _wait_for_answers(clients)
        # All clients have ended, so those of the server that hangs were answered by another one.
        servers[0].process.send_signal(signal.SIGCONT)
    assert set(clients.ended) == {200}, clients.ended


@needs_haproxy
@pytest.mark.slow
def test_servers_that_are_busy_for_many_checks_stay_and_a_dead_one_leaves_at_once(tmp_path: Path) -> None:
    """No server runs for 1.5 s, as long as seven checks are apart; then one is killed, while no request is sent."""
    with balanced(tmp_path, "two-choices", 5.0) as (url, servers):
        clients = Clients(url, PLAIN, 0.01)
        with clients.running(4):
            wait_until(lambda: _all_answered(servers))
            for server in servers:
                server.process.send_signal(signal.SIGSTOP)
            seen = _states_for(tmp_path, 1.5)
            for server in servers:
                server.process.send_signal(signal.SIGCONT)
            seen |= _states_for(tmp_path, 0.5)
            _wait_for_answers(clients)
        # "1/2": a check was missed.
        assert {state.split()[0] for state in seen} == {"UP"}, seen
        assert set(clients.ended) == {200}, clients.ended
        began = time.monotonic()
        servers[0].process.kill()
        wait_until(lambda: states(tmp_path)["s0"] == "DOWN")
        assert time.monotonic() - began < 3.0  # 0.3 s, and what a busy machine takes; two checks that time out: 4 s


@needs_haproxy
@pytest.mark.slow
def test_a_server_that_hangs_leaves_and_requests_are_tried_where_none_passes_its_check(tmp_path: Path) -> None:
    with balanced(tmp_path, "least-outstanding", 1.0) as (url, servers):
        for server in servers:
            server.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        wait_until(lambda: set(states(tmp_path).values()) == {"DOWN"})
        assert time.monotonic() - began > 3.5, "two checks of 2 s"
        servers[2].process.send_signal(signal.SIGCONT)
        # At most 0.5 s and twice 0.1 s until it is up again: it answers before, or a moment later.
        assert httpx.post(f"{url}/infer", json=PLAIN, timeout=SOON).status_code == 200
        for server in servers:
            server.process.send_signal(signal.SIGCONT)


@needs_haproxy
@pytest.mark.slow
def test_requests_that_all_servers_refuse_are_not_sent_on_and_on(tmp_path: Path) -> None:
    """A request takes 0.2 s and each server takes one at a time: of those of 12 clients nearly all are refused."""
    with balanced(tmp_path, "round-robin", 5.0, waiting(0.2), [("--max-in-flight", "1")] * 3) as (url, servers):
        clients = Clients(url, PLAIN, 0.01)
        with clients.running(12):
            wait_until(lambda: clients.ended[503] > 1500)
        arrived = sum(server.metric("leanrec_requests_total") for server in servers)
        answered = sum(clients.ended.values())
        assert set(clients.ended) == {200, 503} and clients.ended[200] > 5
        assert answered <= arrived < 1.3 * answered


@needs_haproxy
@pytest.mark.slow
def test_what_one_server_refuses_another_one_answers(tmp_path: Path) -> None:
    """The first server takes one request of 0.2 s at a time, and the others as many as there are clients."""
    options = [("--max-in-flight", "1"), (), ()]
    with balanced(tmp_path, "round-robin", 5.0, waiting(0.2), options) as (url, servers):
        clients = Clients(url, PLAIN, 0.01)
        with clients.running(12):
            wait_until(lambda: servers[0].metric("leanrec_requests_total", status="503") > 100)
        assert set(clients.ended) == {200}, clients.ended


def _states_for(folder: Path, seconds: float) -> set[str]:
    """Return all states of servers in the next seconds."""
    seen, end = set[str](), time.monotonic() + seconds
    while time.monotonic() < end:
        seen |= set(states(folder).values())
        time.sleep(0.02)
    return seen


def _all_answered(servers: Sequence[ServerProcess]) -> bool:
    return all(server.metric("leanrec_requests_total", status="200") > 20 for server in servers)


def _wait_for_answers(clients: Clients) -> None:
    before = clients.ended[200]
    wait_until(lambda: clients.ended[200] > before + 100)
