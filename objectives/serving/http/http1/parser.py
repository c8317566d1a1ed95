"""Parser of the requests of one connection, without I/O, within limits of their size."""

from __future__ import annotations

from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url

from objectives.serving.http.http1.messages import Refusal, Request

# Bytes of a request's line and headers, beyond the part of them that arrives first.
_HEAD_BYTES = 1 << 16


class RequestParser:
    """Parser that is fed with what arrives.

    receiving: a request has begun and is not whole
    ended: nothing is read any more: a request was the last one, or refused
    expects: the client waits for the word to send its body
    received: bytes of the body so far
    """

    def __init__(self, body_bytes: int) -> None:
        """Make a parser that refuses bodies of more than `body_bytes` bytes."""
        self.receiving = self.ended = self.expects = False
        self._body_bytes = body_bytes
        self._found: list[Request | Refusal] = []
        self._begun = self._head = self.received = 0
        self._in_head = self._keep_alive = False
        self._url, self._headers = b"", dict[str, str]()
        self._chunks: list[bytes] = []
        self._parser = HttpRequestParser(self)

    def feed(self, data: bytes) -> list[Request | Refusal]:
        """Return the requests that are whole with these bytes; a refusal is the last of its connection."""
        self._found, begun = [], self._begun
        try:
            self._feed(data)
        except HttpParserError as error:
            self._refuse(400, f"request: must be HTTP/1.1, but got: {error}")
        if self._in_head and self._begun == begun:
            self._head += len(data)
            if self._head > _HEAD_BYTES:
                self._refuse(431, f"headers: must have at most {_HEAD_BYTES} bytes, but got more")
        return self._found

    def _feed(self, data: bytes) -> None:
        while data and not self.ended:
            try:
                self._parser.feed_data(data)
            except HttpParserUpgrade as offer:
                # Another protocol is offered, and not taken: HTTP goes on behind the request.
                data = data[offer.args[0] :]
                self._parser = HttpRequestParser(self)
            else:
                return

    # -- called by the parser

    def on_message_begin(self) -> None:
        self.receiving = self._in_head = True
        self._begun += 1
        self._url, self._headers, self._chunks = b"", {}, []
        self._head = self.received = 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer follows the body
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._keep_alive = self._parser.get_http_version() == "1.1" and self._parser.should_keep_alive()
        # The parser has checked that a length consists of digits, and fits 64 bits.
        if int(self._headers.get("content-length", 0)) > self._body_bytes:
            self._refuse_size(self._headers["content-length"])
        elif "expect" in self._headers:
            self.expects = self._headers["expect"].lower() == "100-continue"

    def on_body(self, chunk: bytes) -> None:
        self.received += len(chunk)
        if self.received > self._body_bytes:
            self._refuse_size(f"{self.received} or more")
        elif not self.ended:
            self._chunks.append(chunk)

    def on_message_complete(self) -> None:
        self.receiving = self.expects = False
        if self.ended:
            return
        self.ended = not self._keep_alive
        path = (parse_url(self._url).path or b"/").decode("latin-1")
        method = self._parser.get_method().decode("latin-1")
        body = b"".join(self._chunks)
        self._chunks = []
        self._found.append(Request(method, unquote(path), self._headers, body, self._keep_alive))

    def _refuse(self, status: int, reason: str) -> None:
        if not self.ended:
            self.ended = True
            self._found.append(Refusal(status, reason))

    def _refuse_size(self, got: str) -> None:
        self._chunks = []
        self._refuse(413, f"body: must have at most {self._body_bytes} bytes, but got {got}")
