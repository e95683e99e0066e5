"""Aborts a connection whose client does not read the responses."""

import asyncio
import fcntl
import sys
import termios


class UnreadResponses:
    """A timer that runs while a response waits for the client to read it.

    A transport that is closed keeps what it has not sent; and a response that waits, its request.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, longest_s: float
    ) -> None:
        """`longest_s` is the longest time in which the client reads nothing."""
        self._transport = transport
        self._loop = loop
        self._longest_s = longest_s
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Start the timer if something waits."""
        self.cancel()
        if self._transport.get_write_buffer_size():
            self._timer = self._loop.call_later(self._longest_s, self._on_timeout, self._unread_bytes())

    def cancel(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self, before: int) -> None:
        if self._unread_bytes() < before:
            self.watch()
        else:
            self._transport.abort()

    def _unread_bytes(self) -> int:
        """Return the bytes that the client has not acknowledged.

        With a slow reader the transport alone would seem to stand still: the kernel takes several megabytes,
        and more only when a third of them has been read.
        """
        connection = self._transport.get_extra_info("socket")
        queued = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
        return self._transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)
