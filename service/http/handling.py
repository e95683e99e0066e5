"""Helpers that the routes share: dependencies, and embedding a request's images."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Depends, Query, Request
from starlette.datastructures import UploadFile
from starlette.responses import Response

from service.core import Core
from service.errors import FingerprintMismatch, InvalidRequest, ServiceError
from service.http.body import MAX_IMAGES, Link, file_bytes, read_image_and_fields
from service.http.envelope import RequestState
from service.inference.batching import Embedded
from service.inference.model import Model
from service.manifest import Manifest

T = TypeVar("T")


async def _core(request: Request) -> Core:
    core: Core = request.app.state.core
    return core


async def _state(request: Request) -> RequestState:
    state: RequestState = request.state.request
    return state


CoreDep = Annotated[Core, Depends(_core)]
StateDep = Annotated[RequestState, Depends(_state)]


class Embedder:
    """Embeds the images of one request with one of the served models."""

    def __init__(self, core: Core, state: RequestState, model: Model) -> None:
        self.core = core
        self.state = state
        self.model = model
        state.fingerprint = model.manifest.fingerprint

    async def read_image(self, request: Request) -> bytes | Link:
        """Return the request's image. Raises as `read_image_and_fields`."""
        image, _ = await self.read_image_and_fields(request)
        return image

    async def read_image_and_fields(self, request: Request) -> tuple[bytes | Link, dict[str, str]]:
        """Return the request's image, and the text fields of a form.

        Raises Overloaded, before it reads the body, if the image would not be admitted.
        """
        self.model.pipeline.check_capacity(self.state.deadline)
        return await read_image_and_fields(request, self.core.settings.max_image_bytes)

    async def embed(self, image: bytes | Link) -> Embedded:
        """Embed an image, or fetch it and embed it.

        Raises InvalidRequest or UnfetchableImage for a URL, and the errors of the pipeline.
        """
        pipeline, deadline = self.model.pipeline, self.state.deadline
        if isinstance(image, bytes):
            embedded = await pipeline.embed(image, deadline)
        elif self.core.fetcher is None:
            raise InvalidRequest("fetching images by URL is disabled: UIE_URL_HOSTS is empty")
        else:
            with self.state.reservation() as reserve:  # held until it is embedded, as a body's bytes are
                fetch = partial(self.core.fetcher.fetch, image.url, reserve)
                embedded = await pipeline.embed_fetched(fetch, deadline)
        self.state.record(embedded)
        return embedded

    async def embed_many(
        self, sources: Sequence[T], read: Callable[[T], Awaitable[bytes | Link]]
    ) -> list[Embedded | ServiceError]:
        """Read and embed each source. Returns embeddings or errors, in order; concurrency is bounded."""
        slots = asyncio.Semaphore(self.model.pipeline.bulk_width)

        async def embed_source(source: T) -> Embedded | ServiceError:
            async with slots:
                try:
                    return await self.embed(await read(source))
                except ServiceError as error:
                    return error

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(embed_source(source)) for source in sources]
        return [task.result() for task in tasks]

    async def embed_all(
        self, sources: Sequence[T], read: Callable[[T], Awaitable[bytes | Link]]
    ) -> list[Embedded]:
        """Read and embed each source. The first error cancels the rest, and is raised with its `index`."""
        slots = asyncio.Semaphore(self.model.pipeline.bulk_width)

        async def embed_source(index: int, source: T) -> Embedded:
            async with slots:
                try:
                    return await self.embed(await read(source))
                except ServiceError as error:
                    # A copy: if images coalesce, another request has the same error.
                    raise type(error)(error.detail, **{**error.members, "index": index}) from error

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(embed_source(*entry)) for entry in enumerate(sources)]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors  # in the order of time
        return [task.result() for task in tasks]

    async def embed_files(self, files: Sequence[UploadFile | str]) -> list[Embedded | ServiceError]:
        """Embed the files of a form. Raises InvalidRequest if there are none, or too many."""
        if not 1 <= len(files) <= MAX_IMAGES:
            raise InvalidRequest(
                f"field `images` takes 1 to {MAX_IMAGES} files", limit=MAX_IMAGES, got=len(files)
            )
        max_bytes = self.core.settings.max_image_bytes
        return await self.embed_many(files, lambda file: file_bytes(file, "images", max_bytes))


_MODEL = "Name of a served model; by default the first one."
_ModelName = Annotated[str | None, Query(alias="model", description=_MODEL)]


async def _embedder(core: CoreDep, state: StateDep, name: _ModelName = None) -> Embedder:
    return Embedder(core, state, core.model(name))


EmbedderDep = Annotated[Embedder, Depends(_embedder)]


async def _index_embedder(embedder: EmbedderDep) -> Embedder:
    indexed = embedder.core.manifest.name
    if embedder.model.manifest.name != indexed:
        raise FingerprintMismatch(f"the index holds embeddings of the model {indexed}")
    return embedder


# Embeds with the model whose embeddings the index holds; naming any other is an error.
IndexEmbedderDep = Annotated[Embedder, Depends(_index_embedder)]


async def check_parameters(request: Request) -> None:
    """Raise InvalidRequest for an unknown query parameter: a misspelt one must not be ignored."""
    if not request.query_params:
        return
    operation = request.app.openapi()["paths"][request.scope["route"].path_format][request.method.lower()]
    names = [parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "query"]
    unknown = sorted(request.query_params.keys() - set(names))
    if unknown:
        raise InvalidRequest(
            f"unknown query parameter: {', '.join(unknown)[:200]}; this route takes: "
            + (", ".join(names) or "none")
        )


def json_response(content: Any) -> Response:
    """Return a JSON response."""
    return Response(orjson.dumps(content), media_type="application/json")


def model_card(manifest: Manifest) -> dict[str, Any]:
    """Return the members of a response that make its embeddings comparable with others."""
    return {"dim": manifest.dim, "model": manifest.name, "fingerprint": manifest.fingerprint}


def faults_of(errors: Iterable[Mapping[str, Any]], skip: int = 0) -> str:
    """Return pydantic's validation errors in one line, without the first `skip` parts of each location."""
    return "; ".join(f"{'.'.join(map(str, error['loc'][skip:]))}: {error['msg']}" for error in errors)
