"""Configurations of HAProxy: what they say, and, where it is installed, what it does of them with real servers."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from search.cli.parser import run_command
from search.cli.planning import BALANCING
from search.errors import ConfigError
from search.plan.haproxy import POLICIES, BalancedServer, configuration, read_servers
from tests.plan_tests.balanced import balanced
from tests.serve_tests.clients import Clients
from tests.serve_tests.process import ServerProcess, wait_until
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
    assert [line.split()[2:] for line in lines if line.startswith("    server ")] == [
        ["127.0.0.1:8000", "weight", "256"],
        ["[::1]:8001", "weight", "128"],
        ["shop.internal:80", "weight", "64"],
    ]
    assert tuple(POLICIES) == BALANCING


@pytest.mark.parametrize(
    "wrong",
    [
        "ftp://a:1",
        "a:1",
        "http://a:1/path",
        "http://a:1=0",
        "http://a:1=fast",
        "http://a:99999",
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
@pytest.mark.parametrize("policy", BALANCING)
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


def _all_answered(servers: Sequence[ServerProcess]) -> bool:
    return all(server.metric("leanrec_requests_total", status="200") > 20 for server in servers)


def _wait_for_answers(clients: Clients) -> None:
    before = clients.ended[200]
    wait_until(lambda: clients.ended[200] > before + 100)
