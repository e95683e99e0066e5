"""The BentoML service: the mounted FastAPI app.

`bentoml serve service.bento:service`
"""

import atexit
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bentoml

from service.core import Core
from service.errors import StartupError
from service.http import patches
from service.http.app import create_app
from service.http.envelope import Envelope
from service.http.limits import MAX_REQUEST_S
from service.index.process import IndexProcess
from service.logs import configure
from service.manifest import Manifest
from service.process import announce_supervisor, raise_descriptor_limit, stop_without_supervisor
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
            if settings.qdrant_url is None:
                _start_index_process(settings, core.manifest)
            _check_in_subprocess()

        @bentoml.on_shutdown
        def flush_traces(self) -> None:
            patches.flush_traces()

    service: bentoml.Service[Any] = UniversalImageEmbedding
    service.add_asgi_middleware(Envelope, core=core, routes=routes)
    return service


def _check_in_subprocess() -> None:
    # So that the supervisor holds neither a GPU nor the index. A built bento is not in the working folder.
    search_path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "service", "check"]
    environment = {**os.environ, "PYTHONPATH": search_path}
    # Its "ready" is not that of this service.
    if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False).returncode:
        sys.exit(1)


def _start_index_process(settings: Settings, manifest: Manifest) -> None:
    """Start the process that all workers share. It ends after them."""
    try:
        process = IndexProcess.of(settings, manifest)
    except StartupError as refusal:
        sys.exit(f"service: {refusal}")
    process.announce()
    atexit.register(process.stop)


sys.setswitchinterval(_SWITCH_S)
try:
    _settings = load_settings()
    patches.apply(_settings)
    configure(_settings)
    if bentoml.server_context.worker_index is None:
        announce_supervisor()
    else:
        raise_descriptor_limit()
        stop_without_supervisor(_settings.stop_timeout_s)
    service = build_service(_settings)
except StartupError as refusal:
    sys.exit(f"service: {refusal}")
