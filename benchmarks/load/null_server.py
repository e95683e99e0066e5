"""A server that returns a constant response to any request: it shows the maximum rate of a client."""

import asyncio
import contextlib
import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import cast

import httptools
import uvloop

_BODY = b'{"embedding": [' + b", ".join([b"0.125"] * 64) + b'], "hits": []}'
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_BODY)


@contextlib.contextmanager
def null_server() -> Iterator[str]:
    """Run the server in a separate process on loopback; yields its URL."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sender,), daemon=True)
    process.start()
    with receiver, sender:
        try:
            yield f"http://127.0.0.1:{receiver.recv()}"
        finally:
            process.kill()
            process.join()


def _serve(port: Connection) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(_Protocol, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve())


class _Protocol(asyncio.Protocol):
    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(_HEAD + _BODY)
