"""Helpers that the routes share: dependencies, and embedding a request's images."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Depends, FastAPI, Query, Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.core import Core
from service.errors import FingerprintMismatch, InvalidRequest, NotReady, ServiceError
from service.http.body import Link, file_bytes, read_image_and_fields
from service.http.envelope import RequestState
from service.http.forms import FormFile
from service.http.parsing import MAX_IMAGES
from service.index import IndexWorker
from service.inference.model import Model
from service.inference.work import Embedded
from service.manifest import Manifest

T = TypeVar("T")

_INLINE_ROWS = 16  # of at most 64 KiB, on the event loop


async def _core(request: Request) -> Core:
    core: Core = request.app.state.core
    return core


async def _state(request: Request) -> RequestState:
    state: RequestState = request.state.request
    return state


CoreDep = Annotated[Core, Depends(_core)]
StateDep = Annotated[RequestState, Depends(_state)]


async def _index(core: CoreDep, state: StateDep) -> IndexWorker:
    state.fingerprint = core.index.fingerprint
    return core.index


# The response is about stored vectors: it has the fingerprint of the index, not of the served model.
IndexDep = Annotated[IndexWorker, Depends(_index)]


class Embedder:
    """Embeds the images of one request with one of the served models."""

    def __init__(self, core: Core, state: RequestState, model: Model) -> None:
        self.core = core
        self.state = state
        self.model = model
        state.fingerprint = model.manifest.fingerprint
        self._discards = model.pipeline.discards
        self._has_embedded = False

    async def read_image(self, request: Request) -> bytes | Link:
        """Return the request's image. Raises as `read_image_and_fields`."""
        image, _ = await self.read_image_and_fields(request)
        return image

    async def read_image_and_fields(
        self, request: Request, *text_fields: str
    ) -> tuple[bytes | Link, dict[str, bytes]]:
        """Return the request's image, and the text fields of a form.

        Raises Overloaded, before it reads the body, if the image would not be admitted.
        """
        self.model.pipeline.check_capacity(self.state.deadline)
        return await read_image_and_fields(request, self.core.settings.max_image_bytes, *text_fields)

    def admit_bulk(self) -> None:
        """Admit a request with several images before its body is read. Raises Overloaded.

        Its images then wait for capacity instead of being refused.
        """
        self.model.pipeline.check_capacity(self.state.deadline, in_bulk=True)
        self.state.body.admit_bulk()

    async def embed(self, image: bytes | Link, in_bulk: bool = False) -> Embedded:
        """Embed an image, or fetch it and embed it. `in_bulk`: as one of several of an admitted request.

        Raises InvalidRequest or UnfetchableImage for a URL, and as `check_golden` and the pipeline do.
        """
        pipeline, deadline = self.model.pipeline, self.state.deadline
        admission = pipeline.counted() if in_bulk else None
        if isinstance(image, bytes):
            embedded = await pipeline.embed(image, deadline, admission)
        elif self.core.fetcher is None:
            raise InvalidRequest("fetching images by URL is disabled: UIE_URL_HOSTS is empty")
        else:
            fetch = partial(self.core.fetcher.fetch, image.url)
            with self.state.body.fetched(fetch, in_bulk) as fetch_within:
                embedded = await pipeline.embed_fetched(fetch_within, deadline, admission)
        self._has_embedded = True
        self.check_golden()
        self.state.record(embedded)
        return embedded

    def check_golden(self) -> None:
        """Raise NotReady if the golden image has had a wrong embedding since the request began.

        Embeddings of this request may be wrong too. Whatever outlives `embed` is checked again before it is
        written or returned. Without effect if nothing was embedded.
        """
        wrong = self.model.pipeline.discards != self._discards or not self.model.golden.matches
        if wrong and self._has_embedded:
            raise NotReady("the golden image had a wrong embedding meanwhile, so this one may be wrong too")

    def checked(self, rows: list[T | ServiceError]) -> list[T | ServiceError]:
        """Return the rows of a bulk request, each refused as of `check_golden` unless it has an error."""
        try:
            self.check_golden()
        except NotReady as error:
            return [row if isinstance(row, ServiceError) else error for row in rows]
        return rows

    async def embed_many(
        self, sources: Sequence[T], read: Callable[[T], Awaitable[bytes | Link]]
    ) -> list[Embedded | ServiceError]:
        """Read and embed each source. Returns embeddings or errors, in order; concurrency is bounded."""

        async def embed_source(source: T) -> Embedded | ServiceError:
            try:
                return await self.embed(await read(source), in_bulk=True)
            except ServiceError as error:
                return error

        return self.checked(await self.model.pipeline.in_bulk([embed_source(source) for source in sources]))

    async def embed_all(
        self, sources: Sequence[T], read: Callable[[T], Awaitable[bytes | Link]]
    ) -> list[Embedded]:
        """Embed as `embed_many`, but raise the first error, with its `index`, and cancel the rest.

        A single image may be refused: only several of them are a bulk request. Their number was not known
        to `admit_batch`, so Overloaded is raised if they cannot meet the deadline.
        """
        in_bulk = len(sources) > 1
        if in_bulk:
            self.model.pipeline.check_deadline(self.state.deadline, in_bulk)

        async def embed_source(index: int, source: T) -> Embedded:
            try:
                return await self.embed(await read(source), in_bulk)
            except ServiceError as error:
                # A copy: if images coalesce, another request has the same error.
                raise type(error)(error.detail, **{**error.members, "index": index}) from error

        images = [embed_source(index, source) for index, source in enumerate(sources)]
        results = await self.model.pipeline.in_bulk(images) if in_bulk else [await images[0]]
        self.check_golden()
        return results

    async def embed_files(self, files: Sequence[FormFile | bytes]) -> list[Embedded | ServiceError]:
        """Embed the files of a form. Raises InvalidRequest if there are none, or too many."""
        if not 1 <= len(files) <= MAX_IMAGES:
            raise InvalidRequest(
                f"field `images` takes 1 to {MAX_IMAGES} files", limit=MAX_IMAGES, got=len(files)
            )
        max_bytes = self.core.settings.max_image_bytes
        return await self.embed_many(files, lambda file: file_bytes(file, "images", max_bytes))


def admit_batch(core: Core, state: RequestState) -> None:
    """Admit a request whose body names its model and has one image or more. Raises Overloaded."""
    if len(core.manifests) == 1:
        core.model().pipeline.check_capacity(state.deadline)
    state.body.admit_bulk()


_MODEL = "Name of a served model; by default the first one."
_ModelName = Annotated[str | None, Query(alias="model", description=_MODEL)]


async def _embedder(core: CoreDep, state: StateDep, name: _ModelName = None) -> Embedder:
    return Embedder(core, state, core.model(name))


EmbedderDep = Annotated[Embedder, Depends(_embedder)]


class App(FastAPI):
    """The FastAPI app. It calls some endpoints itself, if there are no query parameters to validate.

    FastAPI's middleware, router and dependencies take a third of the event loop's work for a small image.
    """

    direct: Mapping[str, APIRoute] = {}  # by path; POST endpoints that take the request and an `Embedder`

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a request. Raises the errors of a direct endpoint."""
        route = self.direct.get(scope["path"]) if scope["type"] == "http" else None
        if route is None or scope["query_string"] or scope["method"] != "POST":
            await super().__call__(scope, receive, send)
            return
        scope["route"] = route  # for the metrics
        core, state = self.state.core, scope["state"]["request"]
        embedder = Embedder(core, state, core.model())
        response = await route.endpoint(Request(scope, receive), embedder)
        await response(scope, receive, send)


async def _index_embedder(embedder: EmbedderDep) -> Embedder:
    indexed = embedder.core.manifest.name
    if embedder.model.manifest.name != indexed:
        raise FingerprintMismatch(f"the index holds embeddings of the model {indexed}")
    embedder.core.index.check_fingerprint()  # before the image is read
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


def encoded_rows(sources: Iterable[T], row: Callable[[T], Any]) -> list[orjson.Fragment]:
    """Encode each row by a separate call, because a call holds Python's lock."""
    return [orjson.Fragment(orjson.dumps(row(source))) for source in sources]


async def large_response(content: Callable[[], Any], rows: int) -> Response:
    """Return a JSON response of `content()`, which is encoded in a thread if it has many rows."""
    if rows <= _INLINE_ROWS:
        return json_response(content())
    return await asyncio.to_thread(lambda: json_response(content()))


async def rows_response(
    name: str, sources: Sequence[T], row: Callable[[T], Any], members: Mapping[str, Any] | None = None
) -> Response:
    """Return a JSON response with the list `name` of many rows."""
    return await large_response(lambda: {name: encoded_rows(sources, row), **(members or {})}, len(sources))


def model_card(manifest: Manifest) -> dict[str, Any]:
    """Return the members of a response that make its embeddings comparable with others."""
    return {"dim": manifest.dim, "model": manifest.name, "fingerprint": manifest.fingerprint}


def faults_of(errors: Iterable[Mapping[str, Any]], skip: int = 0) -> str:
    """Return pydantic's validation errors in one line, without the first `skip` parts of each location."""
    return "; ".join(f"{'.'.join(map(str, error['loc'][skip:]))}: {error['msg']}" for error in errors)
