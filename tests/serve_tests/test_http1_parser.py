"""The parser of HTTP/1.1, beside h11's."""

from __future__ import annotations

from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives.serving.http.http1.messages import Refusal, Request
from objectives.serving.http.http1.parser import RequestParser

BODY_BYTES = 1000
NAMES = st.sampled_from(["X-One", "x-two", "Inference-Header-Content-Length", "Accept"])
VALUES = st.text("abc 0129,;=", max_size=12).map(str.strip)


@st.composite
def sent(draw: st.DrawFn) -> bytes:
    """Return one valid request."""
    method, path = draw(st.sampled_from(["GET", "POST", "HEAD"])), draw(st.text("abc/%20", max_size=9))
    path = "/" + path.replace("%", "%41")
    headers = draw(st.dictionaries(NAMES, VALUES, max_size=3))
    chunks = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=3)) if method == "POST" else []
    if chunks and draw(st.booleans()):
        headers["Transfer-Encoding"] = "chunked"
        body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    else:
        body = b"".join(chunks)
        headers["Content-Length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode() + body


def read_by_h11(data: bytes) -> list[tuple[str, dict[str, str], bytes]]:
    """Return target, headers and body of each request."""
    peer, found = h11.Connection(h11.SERVER), []
    peer.receive_data(data)
    while isinstance(event := peer.next_event(), h11.Request):
        target = f"{event.method.decode()} {event.target.decode()}"
        headers, body = {name.decode(): value.decode() for name, value in event.headers}, b""
        while isinstance(part := peer.next_event(), h11.Data):
            body += part.data
        assert isinstance(part, h11.EndOfMessage)
        found.append((target, headers, body))
        peer.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
        peer.send(h11.EndOfMessage())
        peer.start_next_cycle()
    return found


@given(requests=st.lists(sent(), min_size=1, max_size=4), seed=st.randoms())
def test_requests_cut_anywhere_are_those_that_h11_reads(requests: list[bytes], seed: Any) -> None:
    data = b"".join(requests)
    cuts = sorted(seed.randrange(len(data) + 1) for _ in range(seed.randrange(6)))
    parser, found = RequestParser(BODY_BYTES), []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        found += parser.feed(data[start:end])
    expected = read_by_h11(data)
    assert len(found) == len(requests) and not parser.receiving and not parser.ended
    for one, (target, headers, body) in zip(found, expected, strict=True):
        assert isinstance(one, Request) and one.keep_alive
        assert f"{one.method} {one.path}" == target.replace("%41", "A")
        assert (dict(one.headers), one.body) == (headers, body)


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_any_bytes_are_parsed_or_refused_once(data: bytes) -> None:
    parser = RequestParser(BODY_BYTES)
    found = [one for byte in data for one in parser.feed(bytes([byte]))]
    assert [one for one in found if isinstance(one, Refusal)] == found[len(found) - 1 :] or not any(
        isinstance(one, Refusal) for one in found
    )
    assert parser.ended or not any(isinstance(one, Refusal) for one in found)


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("data", "statuses"),
    [
        (HEAD + b"Content-Length: 1001\r\n\r\n", [413]),
        (HEAD + b"Content-Length: 1000\r\n\r\n" + b"a" * 1000, []),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3E9\r\n" + b"a" * 1001, [413]),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na", [400]),
        (HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", [400]),
        (HEAD + b"Content-Length: -1\r\n\r\n", [400]),
        (HEAD + b"X: " + b"a" * 300_000, [431]),
        (b"CONNECT x:1 HTTP/1.1\r\n\r\n", [400]),
        (b"\x16\x03\x01 hello\r\n\r\n", [400]),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\n\r\n", []),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else str(value),
)
@pytest.mark.parametrize("step", [1000, 1_000_000])
def test_what_is_refused(data: bytes, statuses: list[int], step: int) -> None:
    parser = RequestParser(BODY_BYTES)
    found = [one for start in range(0, len(data), step) for one in parser.feed(data[start : start + step])]
    if statuses == [431] and step > len(data):
        found += parser.feed(b"a" * 70_000)  # the first bytes of a head are not counted
    assert [one.status for one in found if isinstance(one, Refusal)] == statuses
    assert [isinstance(one, Request) for one in found] == ([False] if statuses else [True])


def test_another_protocol_is_offered_in_vain() -> None:
    offer = b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    parser = RequestParser(BODY_BYTES)
    found = parser.feed(offer + b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n" + offer) + parser.feed(offer)
    assert [one.path for one in found if isinstance(one, Request)] == ["/a", "/b", "/a", "/a"]
