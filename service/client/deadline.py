"""The end of a blocking call: httpx limits each step alone, as one read of many."""

import math
import socket
import ssl
import threading
import time
from typing import Any

import httpcore
import httpx

TIMEOUT = "the call did not finish within its timeout"
_WRITTEN_BYTES = 2**16  # in one write
_NUMERIC = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV


class Deadline(threading.local):
    """The end of the call that the current thread makes."""

    ends = math.inf

    def limit(self, timeout_s: float | None, error: type[Exception]) -> float:
        """Return the timeout, or the remaining time if that is less. Raises `error` if there is none."""
        left_s = self.ends - time.monotonic()
        if left_s <= 0:
            raise error(TIMEOUT)
        return left_s if timeout_s is None else min(timeout_s, left_s)


def limit_every_step(client: httpx.Client) -> Deadline:
    """Return a deadline that limits the sum of all steps of each call of the client."""
    deadline = Deadline()
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, httpx.HTTPTransport):  # httpx has no parameter for the backend
            transport._pool._network_backend = _Backend(deadline)
    return deadline


class _Backend(httpcore.SyncBackend):
    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *args: Any, **kwargs: Any
    ) -> httpcore.NetworkStream:
        """Connect to the first address that accepts; each gets an equal share of the remaining time."""
        try:
            addresses = [info[4] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        while True:
            share_s = self._deadline.limit(timeout, httpcore.ConnectTimeout) / len(addresses)
            address, _ = socket.getnameinfo(addresses.pop(0), _NUMERIC)
            try:
                return _Stream(super().connect_tcp(address, port, share_s, *args, **kwargs), self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if not addresses:
                    raise


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.limit(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _WRITTEN_BYTES):
            limit_s = self._deadline.limit(timeout, httpcore.WriteTimeout)
            self._stream.write(buffer[start : start + _WRITTEN_BYTES], limit_s)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        limit_s = self._deadline.limit(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, limit_s), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
