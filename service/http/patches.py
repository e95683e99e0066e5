"""All patches of BentoML, uvicorn and OpenTelemetry. A request passes, from the outside in:

uvicorn's protocol           replaced by `heads.BoundedHeads`, which limits heads and unread responses
└── BentoML's app
    ├── OpenTelemetryMiddleware   left out unless traces are exported or logged
    ├── TimeoutMiddleware         left out: `limits.Exchange` enforces the deadlines
    ├── Envelope                  added by `service.bento`: ids, keys, limits, headers
    │   └── /v1/...               passed to the FastAPI app directly
    ├── ContextMiddleware
    └── router                    /livez, /readyz, /healthz, /docs.json
        └── everything else       the mounted FastAPI app, in `service.http.app`
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.server.http import traffic
from bentoml._internal.utils.circus import Arbiter
from opentelemetry.instrumentation import asgi
from starlette.types import ASGIApp
from uvicorn.config import HTTP_PROTOCOLS

from service.http.heads import BoundedHeads
from service.settings import Settings


def apply(settings: Settings) -> None:
    """Patch the frameworks. Must run before BentoML builds its app."""
    _separate_metrics()
    _replace_protocol(settings)
    _stop_listening_first(Arbiter)
    # It sets a timer for each request and never cancels it: 3.6 KB stay allocated for ten minutes, 200 MB
    # at a hundred requests a second (decision 13).
    traffic.TimeoutMiddleware = _left_out  # type: ignore[assignment,misc]
    if settings.otlp_url is None and settings.log_format == "text":  # JSON lines contain the trace id
        # It takes a quarter of the event loop's work, even for requests that are not traced.
        asgi.OpenTelemetryMiddleware = _left_out  # type: ignore[assignment,misc]


def tracing(settings: Settings) -> Any:
    """Return BentoML's tracing configuration: its own variable has no effect on a worker process."""
    if settings.otlp_url is None:
        return {"sample_rate": 0.0}
    otlp = {"protocol": "http", "endpoint": settings.otlp_url}
    return {"exporter_type": "otlp", "sample_rate": 1.0, "otlp": otlp}


def flush_traces() -> None:
    """Export the last traces: workers end without their exit handlers."""
    BentoMLContainer.tracer_provider.get().shutdown()


def _replace_protocol(settings: Settings) -> None:
    """Replace the protocol that uvicorn chooses by this table; BentoML leaves the choice to it."""

    class Protocol(BoundedHeads):
        keep_alive_s = settings.keep_alive_s

    HTTP_PROTOCOLS["auto"] = Protocol  # type: ignore[assignment]  # uvicorn also takes a class


def _stop_listening_first(arbiter: type[Arbiter]) -> None:
    """Close the supervisor's sockets before it stops its workers.

    The kernel would accept connections as long as the last worker finishes its requests, and reset them then.
    """
    stop_workers = arbiter.stop

    def stop(self: Arbiter) -> Any:
        self.sockets.close_all()
        return stop_workers(self)

    arbiter.stop = stop  # type: ignore[method-assign]


def _left_out(app: ASGIApp, **_: Any) -> ASGIApp:
    return app


def _separate_metrics() -> None:
    """Give each service its own folder of metrics.

    BentoML empties one folder for all services of a user at each start, so a second service would delete
    the metrics of the first. Workers inherit the variable; only the supervisor chooses the folder.
    """
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        folder = Path(tempfile.gettempdir()) / f"uie-metrics-{os.getpid()}"
        BentoMLContainer.prometheus_multiproc_dir.set(str(folder))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
