"""The BentoML service: the mounted FastAPI app, and two native endpoints for BentoML's own clients.

`bentoml serve service.bento:service`
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import bentoml
from pydantic import Field

from service.core import Core
from service.errors import ServiceError, StartupError
from service.http import patches
from service.http.app import create_app
from service.http.envelope import Envelope
from service.http.handling import model_card
from service.http.limits import MAX_REQUEST_S
from service.http.problems import problem_response
from service.http.search import hits_json
from service.index import Query
from service.logs import configure
from service.settings import Settings, load_settings

# How long a computing thread waits for Python's lock while the event loop holds it (decision 01).
_SWITCH_S = 0.0005
_ROOT = Path(__file__).resolve().parent.parent


def build_service(settings: Settings) -> bentoml.Service[Any]:
    """Return the BentoML service. Raises StartupError."""
    core = Core(settings)
    routes = create_app(core)

    @bentoml.service(
        name="universal-image-embedding",
        workers=settings.workers,
        traffic={"timeout": MAX_REQUEST_S},
        logging={"access": {"enabled": False}},  # a line per request costs more than the route itself
        metrics={"enabled": False},  # BentoML's own create twenty series per path, including item ids
        tracing=patches.tracing(settings),
    )
    @bentoml.asgi_app(routes)
    class UniversalImageEmbedding:
        @bentoml.on_deployment
        def check() -> None:
            """Check the settings once in the supervisor: a worker that fails to start is only restarted."""
            _check_in_subprocess()

        @bentoml.on_shutdown
        def flush_traces(self) -> None:
            patches.flush_traces()

        @bentoml.api
        async def embed(self, image: Path) -> dict[str, Any]:
            """Embed one image."""
            try:
                embedded = await core.model().pipeline.embed(await _content(image))
            except ServiceError as error:
                return _native_problem(error)
            return {"embedding": embedded.embedding.tolist(), **model_card(core.manifest)}

        @bentoml.api
        async def search(
            self, image: Path, k: Annotated[int, Field(ge=1, le=100)] = 10, domain: str | None = None
        ) -> dict[str, Any]:
            """Return the k nearest items of one image, of one domain or of all."""
            try:
                embedded = await core.model().pipeline.embed(await _content(image))
                query = Query(embedded.embedding, k, (domain,) if domain else ())
                hits, _ = await core.timed_search(query)
            except ServiceError as error:
                return _native_problem(error)
            return {**hits_json(hits), **model_card(core.manifest)}

    service: bentoml.Service[Any] = UniversalImageEmbedding
    service.add_asgi_middleware(Envelope, core=core, routes=routes)
    return service


def _check_in_subprocess() -> None:
    # So that the supervisor holds neither a GPU nor the index. A built bento is not in the working folder.
    search_path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "service", "check"]
    if subprocess.run(command, env={**os.environ, "PYTHONPATH": search_path}, check=False).returncode:
        sys.exit(1)


async def _content(file: Path) -> bytes:
    return await asyncio.to_thread(file.read_bytes)  # BentoML's temporary copy of the upload


def _native_problem(error: ServiceError) -> dict[str, Any]:
    # BentoML rewrites the errors that an endpoint raises, but passes on a Response that it returns.
    return cast("dict[str, Any]", problem_response(error))


sys.setswitchinterval(_SWITCH_S)
try:
    _settings = load_settings()
    patches.apply(_settings)
    configure(_settings)
    service = build_service(_settings)
except StartupError as refusal:
    sys.exit(f"service: {refusal}")
