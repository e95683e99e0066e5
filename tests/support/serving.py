"""The app in this process, with a client that calls it directly."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from service.core import Core
from service.http.app import create_app
from service.http.envelope import Envelope
from service.inference.encoder import Encoder
from service.inference.model import EncoderFactory
from service.settings import Settings
from tests.support.waiting import LIMIT_S


@asynccontextmanager
async def serving(
    data_dir: Path, encoder: EncoderFactory = Encoder, **settings: Any
) -> AsyncIterator[tuple[Core, httpx.AsyncClient]]:
    """A core with these settings, and a client of its app."""
    core = Core(Settings(data_dir=data_dir, **settings), encoder)
    app = Envelope(create_app(core), core)
    await core.start()
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=LIMIT_S
    ) as client:
        yield core, client
    await core.close()
