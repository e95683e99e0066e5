"""Requests that are in progress while the golden image has a wrong embedding, in one process."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.core import Core
from service.errors import StartupError
from service.http.app import create_app
from service.http.envelope import Envelope
from service.inference.encoder import Encoder
from service.settings import Settings
from tests.support.images import encode, noise
from tests.support.indexes import occupied
from tests.support.live import PNG, TRUNCATED, problem_of, uri
from tests.support.waiting import until

IMAGE = encode(noise(1, 32, 32))
HELD = encode(Image.new("RGB", (32, 32), (77, 77, 77)))
QUERY = {"domain": "d", "label": "l"}


class Faulty(Encoder):
    """Returns wrong embeddings while `wrong` is set, and holds one image until it is released."""

    def __init__(self, *args: Any) -> None:
        self.wrong = False
        self.held, self.release = threading.Event(), threading.Event()
        super().__init__(*args)

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        embeddings = super().encode(pixels)
        if (pixels == 77).all():
            self.held.set()
            assert self.release.wait(60)
        return np.roll(embeddings, 1, axis=1) if self.wrong else embeddings


@asynccontextmanager
async def serving(data_dir: Path) -> AsyncIterator[tuple[Core, httpx.AsyncClient]]:
    settings = Settings(data_dir=data_dir, threads=2, lanes=2, max_batch=1, golden_interval_s=1e6)
    core = Core(settings, Faulty)
    await core.start()
    transport = httpx.ASGITransport(Envelope(create_app(core), core))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=300) as client:
        yield core, client
    await core.close()


def encoder_of(core: Core) -> Faulty:
    encoder = core.model().encoder
    assert isinstance(encoder, Faulty)
    return encoder


async def fail_a_check(core: Core) -> None:
    encoder_of(core).wrong = True
    with pytest.raises(StartupError, match="wrong"):
        await core.model().golden.check()


async def fail_and_pass_a_check(core: Core) -> None:
    await fail_a_check(core)
    encoder_of(core).wrong = False
    await core.model().golden.check()


@pytest.mark.parametrize("path", ["/v1/items", "/v1/embed/batch"])
async def test_all_rows_of_a_bulk_request_around_a_wrong_golden_image_are_refused(
    tmp_path: Path, path: str
) -> None:
    """The first row is computed before a failed check, and the request ends after the next matching one."""
    rows = json.dumps([{"id": name, **QUERY} for name in ("first", "broken", "held")])
    fields = {"items": rows} if path == "/v1/items" else {}
    async with serving(tmp_path) as (core, client):
        encoder = encoder_of(core)
        encoder.wrong = True
        images = [("images", ("name", data)) for data in (IMAGE, TRUNCATED, HELD)]
        request = asyncio.create_task(client.post(path, files=images, data=fields))
        await until(lambda: encoder.held.is_set() and core.model().pipeline.in_flight == 1)
        await fail_and_pass_a_check(core)
        encoder.release.set()
        errors = [row["error"] for row in (await request).json()["results"]]
        assert [(error["status"], error["type"]) for error in errors] == [
            (503, "not-ready"),
            (400, "undecodable-image"),
            (503, "not-ready"),
        ]
        assert await core.index.counts() == (0, 0)
        again = await client.post(path, files=images[:1], data={"items": json.dumps([{"id": "a", **QUERY}])})
        assert "error" not in again.text


@pytest.mark.parametrize("after", [fail_a_check, fail_and_pass_a_check])
async def test_an_embedding_that_waits_for_the_index_is_checked_again(tmp_path: Path, after: Any) -> None:
    images, rows = [("images", ("name", IMAGE))], json.dumps([{"id": "a", **QUERY}])
    async with serving(tmp_path) as (core, client):
        vector = np.eye(64)[0].tolist()
        async with occupied(core.index):
            requests = [
                client.put("/v1/items/a", params=QUERY, content=IMAGE, headers=PNG),
                client.post("/v1/search", content=IMAGE, headers=PNG),
                client.post("/v1/items", files=images, data={"items": rows}),
                client.post("/v1/items", json={"items": [{"id": "b", **QUERY, "embedding": vector}]}),
                client.post("/v1/search", json={"embedding": vector}),
            ]
            tasks = [asyncio.create_task(request) for request in requests]
            await until(lambda: core.index._calls == len(requests))
            await after(core)
        put, search, bulk, own_item, own_query = await asyncio.gather(*tasks)
        assert problem_of(put) == problem_of(search) == (503, "not-ready")
        assert [row["error"]["type"] for row in bulk.json()["results"]] == ["not-ready"]
        # The clients' own embeddings are not the model's.
        assert own_item.json() == {"results": [{"id": "b"}]}
        assert own_query.status_code == 200
        assert await core.index.domains() == {"d": 1}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v2/embed"])
async def test_a_request_admitted_before_a_failed_check_is_refused(tmp_path: Path, path: str) -> None:
    body = json.dumps({"input" if path == "/v1/embeddings" else "images": [uri(IMAGE)]}).encode()
    async with serving(tmp_path) as (core, client):

        async def slow() -> AsyncIterator[bytes]:
            yield body[:10]
            await fail_a_check(core)
            yield body[10:]

        headers = {"Content-Type": "application/json"}
        assert problem_of(await client.post(path, content=slow(), headers=headers)) == (503, "not-ready")
        encoder_of(core).wrong = False
        await core.model().golden.check()
        assert (await client.post(path, content=body, headers=headers)).status_code == 200
