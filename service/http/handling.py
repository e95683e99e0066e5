"""Helpers that the routes share: many images, the deadline, the headers of a response."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from service.core import Core
from service.errors import DeadlineExceeded, InvalidRequest, ServiceError
from service.http.body import MAX_IMAGES, Link, file_bytes
from service.inference.model import Model
from service.inference.pipeline import Embedded

_TOLD_FIRST = ("hit", "coalesced", "miss")  # of several images: nothing that was known may look like work


async def embed_files(
    request: Request, model: Model, files: Sequence[UploadFile | str]
) -> list[Embedded | ServiceError]:
    """Each file's embedding, or what is wrong with that file. Raises InvalidRequest for none or too many."""
    if not 1 <= len(files) <= MAX_IMAGES:
        raise InvalidRequest("field `images` takes 1 to 1000 files", limit=MAX_IMAGES, got=len(files))

    core: Core = request.app.state.core

    async def embed_file(file: UploadFile | str) -> Embedded:
        data = await file_bytes(file, "images", core.settings.max_image_bytes)
        return await embed_given(request, model, data)

    return await embed_many(model, [partial(embed_file, file) for file in files])


async def embed_given(request: Request, model: Model, given: bytes | Link) -> Embedded:
    """An image that is here, or that has to be fetched first; to be called within `deadline`.

    Raises InvalidRequest and UnfetchableImage of a URL, and what the pipeline raises.
    """
    if isinstance(given, bytes):
        return await model.pipeline.embed(given, request.state.deadline)
    core: Core = request.app.state.core
    if core.fetcher is None:
        raise InvalidRequest("images are not fetched by URL here: the setting UIE_URL_HOSTS is empty")
    with request.state.room() as take:  # until the image is embedded, as a body's bytes have theirs
        fetch = partial(core.fetcher.fetch, given.url, take)
        return await model.pipeline.embed_fetched(fetch, request.state.deadline)


async def embed_many(
    model: Model, works: Sequence[Callable[[], Awaitable[Embedded]]]
) -> list[Embedded | ServiceError]:
    """Each work's embedding or its error, in order; few of them at a time."""
    places = asyncio.Semaphore(model.pipeline.bulk_width)

    async def one(work: Callable[[], Awaitable[Embedded]]) -> Embedded | ServiceError:
        async with places:
            try:
                return await work()
            except ServiceError as error:
                return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(work)) for work in works]
    return [task.result() for task in tasks]


@contextlib.asynccontextmanager
async def deadline(request: Request) -> AsyncIterator[None]:
    """Give up, and drop what still waits, when the client's deadline has passed, or it has gone.

    To be entered when the body has been read. Raises DeadlineExceeded or ClientDisconnect.
    """
    gone = False

    async def expire_when_gone(limit: asyncio.Timeout) -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        limit.reschedule(0)  # long past

    try:
        async with asyncio.timeout_at(request.state.deadline) as limit:
            watcher = asyncio.create_task(expire_when_gone(limit))
            try:
                yield
            finally:
                watcher.cancel()
    except TimeoutError as error:
        if gone:
            raise ClientDisconnect from error
        raise DeadlineExceeded("not done before the deadline that the client gave") from error


def note(request: Request, *results: Embedded | ServiceError) -> None:
    """For the answer's headers: of several images the longest time in each stage, and if one was known."""
    done = [result for result in results if isinstance(result, Embedded)]
    longest: dict[str, float] = request.state.stages_ms
    for one in done:
        for stage, ms in one.stages_ms.items():
            longest[stage] = max(ms, longest.get(stage, 0))
    request.state.cache = next((how for how in _TOLD_FIRST if any(one.cache == how for one in done)), None)


def json_response(content: Any) -> Response:
    """Plain JSON: our content is made of plain values, so FastAPI's encoder has nothing to add."""
    body = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(body.encode(), media_type="application/json")
