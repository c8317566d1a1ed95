"""Follower of an alias: it asks for a swap where another bundle is found than before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from objectives.errors import one_line


async def follow(
    find: Callable[[], Path],
    served: Callable[[], Path],
    seconds: float,
    swap: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Look for another folder than the one that is served, until cancelled.

    A folder is asked for once: its bundle may not verify. Where nothing is found, or the registry does not answer, the
    next look may.

    Args:
        served: returns the folder that is served
        seconds: time between two looks, each on a thread
        swap: called where another folder is found
    """
    said: str | None = None
    asked: Path | None = None
    while True:
        await asyncio.sleep(seconds)
        try:
            found = await asyncio.to_thread(find)
        except Exception as error:
            if (line := one_line(error)) != said:
                said = line
                say(f"the model stays what it is: {line}")
            continue
        said = None
        if found == served():
            asked = None
        elif found != asked:
            asked = found
            swap()
