"""The follower of an alias: when it asks for a swap."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from objectives.serving.http.follower import follow


def test_another_folder_is_asked_for_once_whatever_happens_between() -> None:
    found = [
        Path("a"),
        OSError("away"),
        OSError("away"),
        Path("b"),
        Path("b"),
        ValueError("gone"),
        Path("a"),
        Path("a"),
    ]
    asked: list[Path] = []
    said: list[str] = []
    looks = iter(found)
    last: list[Path] = []

    def find() -> Path:
        match next(looks, None):
            case None:
                raise asyncio.CancelledError
            case Path() as folder:
                last[:] = [folder]
                return folder
            case error:
                raise error

    async def run() -> None:
        await follow(find, Path("a"), 0.0, lambda: asked.append(last[0]), said.append)

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(run())
    assert asked == [Path("b"), Path("a")]
    assert [line.partition(": ")[2] for line in said] == ["OSError: away", "ValueError: gone"]
