"""The stop on SIGTERM: refuse, stop listening, and close a connection only when it is quiet."""

import asyncio
import select
import signal

from uvicorn import Server

from service.core import Core

_REFUSALS_S = 0.5  # new connections are accepted, so that load balancers see the refusals
_QUIET_S = 0.5  # without a response to any connection
_MAX_ACCEPTS = 10_000  # turns of the event loop, each of which accepts a waiting connection


def refuse_before_stopping(core: Core) -> None:
    """Delay uvicorn's handler of SIGTERM, which closes idle connections even if a request is in transit.

    Until then new requests are refused. The responses carry `Connection: close`, so clients disconnect.
    """
    loop, stop = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)
    server = getattr(stop, "__self__", None)
    assert isinstance(server, Server), "uvicorn handles SIGTERM before the app starts"
    tasks = set[asyncio.Task[None]]()

    def refuse(number: int, _: object) -> None:
        if not core.stopping:
            core.stopping = True
            loop.call_soon_threadsafe(lambda: tasks.add(loop.create_task(_stop(server, core, number))))

    signal.signal(signal.SIGTERM, refuse)


async def _stop(server: Server, core: Core, number: int) -> None:
    loop = asyncio.get_running_loop()
    limit = loop.time() + core.settings.stop_timeout_s
    await asyncio.sleep(_REFUSALS_S)
    await _stop_listening(server)
    connections, answered = server.server_state.connections, -1
    while connections and answered != server.server_state.total_requests and loop.time() < limit:
        answered = server.server_state.total_requests
        await asyncio.sleep(_QUIET_S)
    server.config.timeout_graceful_shutdown = max(1, round(limit - loop.time()))
    server.handle_exit(number, None)


async def _stop_listening(server: Server) -> None:
    """Close the sockets when no connection waits in them: the kernel would reset it."""
    listening = select.poll()
    for listener in server.servers:
        for socket in listener.sockets:
            listening.register(socket.fileno(), select.POLLIN)
    for _ in range(_MAX_ACCEPTS):
        if not listening.poll(0):
            break
        await asyncio.sleep(0)
    for listener in server.servers:
        listener.close()
