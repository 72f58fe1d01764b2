"""The one way in which processes of the evaluator talk: JSON lines and open files over a Unix socket."""

from __future__ import annotations

import json
import os
import select
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class Channel:
    """One end of a connected Unix socket.

    Attributes:
        files: Open files that came with the latest messages; they belong to the caller.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""
        self.files: list[int] = []

    def send(self, message: Mapping[str, Any], files: Sequence[int] = ()) -> None:
        """Send a message, and open files with it.

        Raises:
            ConnectionError: If the other side has gone away.
        """
        line = json.dumps(message).encode() + b"\n"
        # The files travel with the first byte; the rest may be longer than what one call takes.
        socket.send_fds(self._connection, [line[:1]], list(files))
        self._connection.sendall(line[1:])

    def receive(self) -> dict[str, Any] | None:
        """Wait for the next message and return it; None if the other side has gone away."""
        while b"\n" not in self._received:
            try:
                content, files, _, _ = socket.recv_fds(self._connection, 1 << 16, 2)
            except ConnectionError:
                content, files = b"", []
            self.files += files
            if not content:  # the message was cut off
                for number in self.files:
                    os.close(number)
                self.files = []
                return None
            self._received += content
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def has_message(self) -> bool:
        """Return whether :meth:`receive` would return without waiting for more to arrive."""
        return b"\n" in self._received

    def watch(self, leave: Callable[[], None]) -> threading.Thread:
        """Start a thread that calls ``leave`` once the other side has gone away, and return it."""

        def wait() -> None:
            hang_up = select.poll()
            hang_up.register(self._connection, 0)  # a hang-up is always reported, messages are not
            hang_up.poll()
            leave()

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return thread

    def fileno(self) -> int:
        """Return the socket's number, for a selector."""
        return self._connection.fileno()

    def shutdown(self) -> None:
        """End the connection, for both sides."""
        self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._connection.close()
