"""Real servers of a small bundle behind a real HAProxy, with the configuration that leanrec writes."""

from __future__ import annotations

import csv
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from objectives.errors import InputError
from objectives.measure.remote_model import RemoteModel
from search.plan.haproxy import configuration, read_servers
from spaces.techniques.placement import Placement
from tests.serve_tests.bundles import write_toy
from tests.serve_tests.process import ServerProcess, serving, wait_until

SERVERS = 3
STATS = "stats.sock"


@contextmanager
def balanced(
    folder: Path,
    policy: str,
    timeout_s: float,
    placement: Placement | None = None,
    options: Sequence[Sequence[str]] = ((),) * SERVERS,
) -> Iterator[tuple[str, Sequence[ServerProcess]]]:
    """Run servers and HAProxy, and yield the model's URL at HAProxy and the servers.

    Args:
        options: of each server
    """
    bundle = write_toy(folder / "bundle", placement)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(serving(bundle, folder / f"log-{number}", *own)) for number, own in enumerate(options)
        ]
        text = configuration(read_servers([server.root for server in servers]), policy, "127.0.0.1", port, timeout_s)
        (folder / "haproxy.cfg").write_text(text)
        # Unix sockets have short names.
        control = stack.enter_context(tempfile.TemporaryDirectory(prefix="h"))
        (folder / "stats.cfg").write_text(f"global\n    stats socket {control}/{STATS}\n")
        (folder / STATS).symlink_to(Path(control, STATS))
        command = ["haproxy", "-db", "-f", str(folder / "stats.cfg"), "-f", str(folder / "haproxy.cfg")]
        proxy = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        stack.callback(proxy.wait)
        stack.callback(proxy.terminate)
        url = f"http://127.0.0.1:{port}/v2/models/toy"
        wait_until(lambda: _described(url))
        yield url, servers


def states(folder: Path) -> dict[str, str]:
    """Return the state of each server that is checked, such as `UP`, as HAProxy tells it."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect(str((folder / STATS).readlink()))
        asked.sendall(b"show stat\n")
        text = b"".join(iter(lambda: asked.recv(1 << 16), b"")).decode().removeprefix("# ")
    rows = csv.DictReader(text.strip().splitlines())
    return {row["svname"]: row["status"] for row in rows if row["pxname"] == "leanrec" and row["svname"] != "BACKEND"}


def _described(url: str) -> bool:
    try:
        with RemoteModel(url):
            return True
    except InputError:
        return False
