"""The process that owns the embedded index: `python -m service.index.daemon`, started by `process`.

The engine holds Python's lock during its calls, and a full disk or a damaged file can end its process. So it
runs in this one, which executes the commands of any number of service processes, one after the other.
"""

import asyncio
import contextlib
import logging
import signal
import sys
from pathlib import Path
from typing import cast

import msgspec
import uvloop

from service.errors import IndexUnavailable, ServiceError, StartupError
from service.index import wire
from service.index.base import VectorIndex
from service.index.commands import Command, changes, run
from service.index.edge import EdgeIndex
from service.process import end_with_parent
from service.settings import Quantization

_FLUSH_S = 5.0  # at most this long after a write: the engine's log grows until then
_log = logging.getLogger(__name__)


class _Connection(asyncio.Protocol):
    """Executes the commands of one service process in the order of their arrival."""

    def __init__(self, owner: "_Owner") -> None:
        self._owner = owner
        self._frames = wire.Frames()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        index = self._owner.index
        self._transport.write(wire.framed(wire.Hello(index.quantization, index.fingerprint)))

    def data_received(self, data: bytes) -> None:
        for frame in self._frames.feed(data):
            request = wire.decode_request(frame)
            self._transport.write(wire.framed(self._owner.respond(request)))


class _Owner:
    """The index, and the time of its next flush."""

    def __init__(self, index: VectorIndex) -> None:
        self.index = index
        self._flush: asyncio.TimerHandle | None = None

    def respond(self, request: wire.Request) -> wire.Response:
        """Execute a command."""
        try:
            result = self._run(request.command)
        except ServiceError as error:
            fault = wire.Fault(error.slug, error.detail, error.members)
            return wire.Response(request.number, wire.NO_RESULT, fault)
        return wire.Response(request.number, wire.encoded(result))

    def _run(self, command: Command) -> object:
        try:
            result = run(self.index, command)
        except ServiceError:
            raise
        except Exception as error:  # the engine raises plain exceptions
            _log.exception("the index failed")
            raise IndexUnavailable("the index did not answer") from error
        if self._flush is None and changes(command):
            self._flush = asyncio.get_running_loop().call_later(_FLUSH_S, self._flush_now)
        return result

    def _flush_now(self) -> None:
        self._flush = None
        self.index.flush()


async def _serve(socket: Path, index: VectorIndex) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    owner = _Owner(index)
    await loop.create_unix_server(lambda: _Connection(owner), str(socket))
    _report("ready")
    await stopped.wait()


def _report(line: str) -> None:
    """Tell `process`, which waits for a line."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until SIGTERM. Prints `ready`, or the reason why the index cannot be opened."""
    parent, name, folder, dim, fingerprint, quantization = sys.argv[1:]
    end_with_parent(int(parent), signal.SIGTERM)
    socket = Path(name)
    try:
        index = EdgeIndex(Path(folder), int(dim), fingerprint, msgspec.convert(quantization, Quantization))
    except StartupError as error:
        _report(str(error))
        sys.exit(1)
    socket.unlink(missing_ok=True)  # of a process that was killed
    with contextlib.closing(index):
        uvloop.run(_serve(socket, index))


if __name__ == "__main__":
    main()
