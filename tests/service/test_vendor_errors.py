"""Errors of the envelope carry the members from which OpenAI's and Cohere's clients take their message."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from service.core import Core
from service.http.app import create_app
from service.http.envelope import Envelope
from service.settings import Settings
from tests.support.live import problem_of

PATHS = ("/v1/embeddings", "/v2/embed")
KEY = {"Authorization": "Bearer key", "Content-Type": "application/json"}


@pytest.fixture
async def envelope(tmp_path: Path) -> AsyncIterator[Envelope]:
    core = Core(Settings(data_dir=tmp_path, api_keys=("key",)))
    await core.start()
    yield Envelope(create_app(core), core)
    await core.close()


async def slow_body() -> AsyncIterator[bytes]:
    yield b"{"
    await asyncio.Event().wait()


async def test_errors_of_load_and_access_have_the_members_of_the_vendors(envelope: Envelope) -> None:
    transport = httpx.ASGITransport(envelope)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=KEY) as client:

        async def refused(status: int, slug: str, headers: dict[str, str] | None = None) -> None:
            for path in PATHS:
                content = slow_body() if status == 504 else b"{}"
                response = await client.post(path, content=content, headers=headers)
                assert problem_of(response) == (status, slug)
                problem = response.json()
                assert problem["message"] == problem["detail"] == problem["error"]["message"]
                assert problem["error"]["code"] == slug

        await refused(401, "unauthorized", {"Authorization": "Bearer another"})
        await refused(413, "image-too-large", {"Content-Length": str(10**12)})
        await refused(504, "deadline-exceeded", {"X-Deadline-Ms": "50"})
        share = envelope._intake.bulk_share
        assert share.acquire(envelope._intake.max_bytes // 2)
        await refused(429, "overloaded")
        share.release(envelope._intake.max_bytes // 2)
        envelope._core.model().golden.matches = False
        await refused(503, "not-ready")
