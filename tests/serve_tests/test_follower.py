"""The follower of an alias: when it asks for a swap."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from objectives.serving.http.follower import follow

A, B, C = Path("a"), Path("b"), Path("c")
AWAY, GONE = OSError("away"), ValueError("gone")


@pytest.mark.parametrize(
    ("found", "verifies", "asked"),
    [
        ([A, A], True, []),
        ([A, AWAY, AWAY, B, B, GONE, A, A], True, [B, A]),
        ([B, B, B], False, [B]),
        ([B, A, B], False, [B, B]),
        ([B, C, C], False, [B, C]),
        ([B] * 11 + [B] * 19, False, [B, B]),
        ([B] * 11 + [B] * 20, False, [B, B, B]),
    ],
)
def test_another_folder_is_asked_for_once(found: list[Path | Exception], verifies: bool, asked: list[Path]) -> None:
    """The first folder stays the one that is served where the new bundle does not verify."""
    looks, served, wanted, said = iter(found), [A], list[Path](), list[str]()
    last: list[Path] = []

    def find() -> Path:
        look = next(looks, None)
        if look is None:
            raise asyncio.CancelledError
        if isinstance(look, Exception):
            raise look
        last[:] = [look]
        return look

    def swap() -> None:
        wanted.append(last[0])
        if verifies:
            served[:] = last

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(follow(find, lambda: served[0], 0.0, swap, said.append))
    assert wanted == asked
    assert [line.partition(": ")[2] for line in said] == (
        ["OSError: away", "ValueError: gone"] if AWAY in found else []
    )
