"""The worker's side of a job: one JSON line in, one JSON line out."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from objectives.errors import InputError, one_line

Handler = Callable[..., Any]


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer jobs from standard input until it closes.

    A line `{"job": NAME, "arguments": {...}}` is answered by `{"result": ...}`, or by
    `{"error": ONE LINE, "input": BOOL, "trace": ...}`, where `input` is true for an error of the user's input.
    `{"progress": LINE}` may come in between. Whatever the work prints goes to standard error.
    """
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def progress(line: str) -> None:
        replies.write(json.dumps({"progress": line}) + "\n")

    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = handlers[request["job"]](progress=progress, **request["arguments"])
            reply = json.dumps({"result": result}, allow_nan=False)
        except Exception as error:
            wrong = isinstance(error, InputError)
            reply = json.dumps({"error": one_line(error), "input": wrong, "trace": traceback.format_exc()})
        replies.write(reply + "\n")
