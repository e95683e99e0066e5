"""An ASGI app behind the service's protocol, on a real port of this process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp

from service.http.heads import BoundedHeads
from tests.support.waiting import LIMIT_S, until


@asynccontextmanager
async def served_app(
    app: ASGIApp, protocol: type[BoundedHeads] = BoundedHeads, keep_alive_s: int = 1
) -> AsyncIterator[int]:
    """Serves the app within a time limit; yields the port."""
    config = uvicorn.Config(
        app, port=0, http=protocol, lifespan="off", log_level="error", timeout_keep_alive=keep_alive_s
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(LIMIT_S):
        await until(lambda: server.started)
        try:
            yield server.servers[0].sockets[0].getsockname()[1]
        finally:
            server.should_exit = True
            await serving
