"""The two pipes to the program that started the worker; nothing but messages ever gets into them."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO


class Channel:
    """JSON objects, one a line, in both directions.

    send: any thread may call it.  Iterating gives the messages that come in, until the other side is gone.
    """

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._one_at_a_time = threading.Lock()

    @classmethod
    def of_this_process(cls) -> Channel:
        """Takes over standard input and output: what a library prints goes to the error stream from now on.

        Standard input becomes empty: on Windows a library that looks at it while it is being waited on hangs.
        """
        sys.stdout.flush()
        incoming, outgoing = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        return cls(os.fdopen(incoming, "rb"), os.fdopen(outgoing, "wb"))

    def send(self, event: str, **content: Any) -> None:
        """One message; without anybody to read it, it is dropped."""
        line = json.dumps({"event": event, **content}, allow_nan=False) + "\n"
        with self._one_at_a_time:
            try:
                self._outgoing.write(line.encode("utf-8"))
                self._outgoing.flush()
            except OSError as error:  # the reader sees the same moment's end of input, and ends the process
                sys.stderr.write(f"Nobody listens any more: {error}\n")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self._incoming:
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):  # no JSON, or nested beyond reason
                message = None
            if isinstance(message, dict):
                yield message
            else:
                self.send("log", id=None, message="A line that is no message was ignored.")
