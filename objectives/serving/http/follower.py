"""Follower of aliases: it asks for a swap where other bundles are found than before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from objectives.errors import one_line

# A folder, or those of several variants.
T = TypeVar("T")
# Looks after which the same is asked for again, twice as many each time: what was found may have failed for a while.
_AGAIN = 10


async def follow(
    find: Callable[[], T],
    served: Callable[[], T],
    seconds: float,
    swap: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Look for other folders than those that are served, until cancelled.

    They are asked for once, since a bundle may not verify, and again after ever longer pauses, since its opening may
    have failed for another reason. Where nothing is found, or the registry does not answer, the next look may.

    Args:
        served: returns what is served
        seconds: time between two looks, each on a thread
        swap: called where something else is found
    """
    said: str | None = None
    asked: T | None = None
    looks, pause = 0, _AGAIN
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
            asked, looks, pause = found, 0, _AGAIN
            swap()
        elif (looks := looks + 1) == pause:
            looks, pause = 0, 2 * pause
            swap()
