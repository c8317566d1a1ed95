"""Real servers of a small bundle behind a real HAProxy, with the configuration that leanrec writes."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from objectives.errors import InputError
from objectives.measure.remote_model import RemoteModel
from search.plan.haproxy import configuration, read_servers
from tests.serve_tests.bundles import write_toy
from tests.serve_tests.process import ServerProcess, serving, wait_until

SERVERS = 3


@contextmanager
def balanced(folder: Path, policy: str, timeout_s: float) -> Iterator[tuple[str, Sequence[ServerProcess]]]:
    """Run servers and HAProxy, and yield the model's URL at HAProxy and the servers."""
    bundle = write_toy(folder / "bundle")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(bundle, folder / f"log-{number}")) for number in range(SERVERS)]
        text = configuration(read_servers([server.root for server in servers]), policy, "127.0.0.1", port, timeout_s)
        (folder / "haproxy.cfg").write_text(text)
        proxy = subprocess.Popen(["haproxy", "-db", "-f", str(folder / "haproxy.cfg")], stderr=subprocess.DEVNULL)
        stack.callback(proxy.wait)
        stack.callback(proxy.terminate)
        url = f"http://127.0.0.1:{port}/v2/models/toy"
        wait_until(lambda: _described(url))
        yield url, servers


def _described(url: str) -> bool:
    try:
        with RemoteModel(url):
            return True
    except InputError:
        return False
