"""Clients of a server under load."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx

from tests.serve_tests import oracle
from tests.serve_tests.process import SOON


class Clients:
    """Clients that send one request after another, each on a connection that it keeps.

    gap_s: seconds that each waits between two, which may be changed meanwhile
    ended: number of responses by status, or of failed requests by their error's class
    seen: versions with the scores that came with them
    """

    def __init__(self, url: str, request: object, gap_s: float = 0.0) -> None:
        self.gap_s, self._url, self._request, self._stop = gap_s, url, request, threading.Event()
        self.ended: Counter[int | str] = Counter()
        self.seen: set[tuple[str, bytes]] = set()

    @contextmanager
    def running(self, clients: int) -> Iterator[None]:
        with ThreadPoolExecutor(clients) as threads:
            running = [threads.submit(self._send) for _ in range(clients)]
            try:
                yield
            finally:
                self._stop.set()
        for each in running:
            each.result()

    def _send(self) -> None:
        with httpx.Client(timeout=SOON) as client:
            while not self._stop.wait(self.gap_s):
                try:
                    response = client.post(f"{self._url}/infer", json=self._request)
                except httpx.TransportError as error:
                    self.ended[type(error).__name__] += 1
                    continue
                self.ended[response.status_code] += 1
                if response.status_code == 200:
                    plain, scores = oracle.read_scores(response.content, None)
                    self.seen.add((plain["model_version"], scores.tobytes()))
