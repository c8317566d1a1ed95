"""A `leanrec serve` of which one run takes seconds longer after each SIGUSR1: `hanging_server.py SECONDS serve ...`."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import leanrec
from objectives.arrays import Arrays
from objectives.serving.pool.pending_result import Run, Scores
from objectives.serving.pool.replica import Replica
from objectives.serving.split_engine import Engine


def main() -> int:
    seconds, asked, prepare = float(sys.argv.pop(1)), threading.Semaphore(0), Replica.prepare

    def prepared(self: Replica, engine: Engine) -> Run:
        run = prepare(self, engine)

        def hanging(inputs: Arrays) -> Scores:
            if asked.acquire(blocking=False):
                time.sleep(seconds)
            return run(inputs)

        return hanging

    Replica.prepare = prepared  # type: ignore[method-assign]
    signal.signal(signal.SIGUSR1, lambda *_: asked.release())
    return leanrec.main()


if __name__ == "__main__":
    sys.exit(main())
