"""The BentoML service: the FastAPI app mounted on it, and two endpoints for BentoML's own clients.

`bentoml serve service.bento:service`
"""

import asyncio
import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, cast

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer
from pydantic import Field

from service.core import Core
from service.errors import ServiceError, StartupError
from service.http.app import create_app, problem_response
from service.http.envelope import Envelope
from service.http.handling import model_card
from service.http.heads import bound_heads
from service.http.intake import MAX_REQUEST_S
from service.http.native import FilesOnly
from service.http.search import hits_json
from service.http.timeout import leave_out_timeouts
from service.http.untraced import leave_out_tracing
from service.index import Query
from service.logs import configure
from service.settings import Settings, load_settings

# How long a computing thread waits for Python's lock while the event loop has it, at most (decision 01).
_SWITCH_S = 0.0005
_ROOT = Path(__file__).resolve().parent.parent


def build_service(settings: Settings) -> bentoml.Service[Any]:
    """One service, one model, one index. Raises StartupError."""
    core = Core(settings)

    @bentoml.service(
        name="universal-image-embedding",
        workers=settings.workers,
        traffic={"timeout": MAX_REQUEST_S},
        logging={"access": {"enabled": False}},  # a line a request costs more than the route itself
        metrics={"enabled": False},  # BentoML's own make twenty series of every path, ids included
        tracing=_tracing(settings),
    )
    @bentoml.asgi_app(create_app(core))
    class UniversalImageEmbedding:
        @bentoml.on_deployment
        def check() -> None:
            """Refuse in the supervisor, once: a worker that refuses is only started again."""
            _check_in_a_process_of_its_own()

        @bentoml.on_shutdown
        def send_last_traces(self) -> None:
            """They are sent every few seconds, and the process ends without its exit handlers."""
            BentoMLContainer.tracer_provider.get().shutdown()

        @bentoml.api
        async def embed(self, image: Path) -> dict[str, Any]:
            """One image to its embedding."""
            try:
                embedded = await core.model().pipeline.embed(await _content(image))
            except ServiceError as error:
                return _native_problem(error)
            return {"embedding": embedded.embedding.tolist(), **model_card(core.manifest)}

        @bentoml.api
        async def search(
            self, image: Path, k: Annotated[int, Field(ge=1, le=100)] = 10, domain: str | None = None
        ) -> dict[str, Any]:
            """One image to its k nearest items, of one domain or of all."""
            try:
                embedded = await core.model().pipeline.embed(await _content(image))
                query = Query(embedded.embedding, k, (domain,) if domain else ())
                hits, _ = await core.timed_search(query)
            except ServiceError as error:
                return _native_problem(error)
            return {**hits_json(hits), **model_card(core.manifest)}

    built: bentoml.Service[Any] = UniversalImageEmbedding
    built.add_asgi_middleware(Envelope, core=core)
    built.add_asgi_middleware(FilesOnly, max_bytes=settings.max_image_bytes)
    return built


def _tracing(settings: Settings) -> Any:
    """Given with the service: what BentoML's own variable says of tracing is lost as a worker starts."""
    if settings.otlp_url is None:
        return {"sample_rate": 0.0}
    otlp = {"protocol": "http", "endpoint": settings.otlp_url}
    return {"exporter_type": "otlp", "sample_rate": 1.0, "otlp": otlp}


def _keep_metrics_apart() -> None:
    """BentoML empties one folder for all services of a user at each start: a second service on the machine
    would take the first one's metrics away. Workers are told the folder, so only the supervisor chooses it.
    """
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        folder = Path(tempfile.gettempdir()) / f"uie-metrics-{os.getpid()}"
        BentoMLContainer.prometheus_multiproc_dir.set(str(folder))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def _check_in_a_process_of_its_own() -> None:
    # So that the supervisor holds no GPU and no lock on the index. A built bento is not where we stand.
    search_path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "service", "check"]
    if subprocess.run(command, env={**os.environ, "PYTHONPATH": search_path}, check=False).returncode:
        sys.exit(1)


async def _content(file: Path) -> bytes:
    return await asyncio.to_thread(file.read_bytes)  # BentoML's temporary copy of the upload


def _native_problem(error: ServiceError) -> dict[str, Any]:
    # BentoML rewrites the errors that an endpoint raises, but passes on a Response that it returns,
    # whatever the endpoint's own type is.
    return cast("dict[str, Any]", problem_response(error))


sys.setswitchinterval(_SWITCH_S)
_keep_metrics_apart()
leave_out_timeouts()
bound_heads()
try:
    _settings = load_settings()
    configure(_settings)
    if _settings.otlp_url is None and _settings.log_format == "text":  # JSON lines have the trace's id
        leave_out_tracing()
    service = build_service(_settings)
except StartupError as refusal:
    sys.exit(f"service: {refusal}")
