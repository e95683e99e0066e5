"""What every request passes through: request id, keys, readiness, the body's bounds, the answer's headers."""

import asyncio
import hmac
import json
import logging
import random
import re
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.core import Core
from service.errors import InvalidRequest, NotReady, ServiceError, Unauthorized
from service.http.body import FORM_SLACK_BYTES, MAX_JSON_BYTES
from service.http.intake import Exchange, Intake, Reservation
from service.inference.cache import Lookup
from service.inference.pipeline import Embedded
from service.logs import access_log, request_id

_ALWAYS = {"/livez", "/healthz", "/metrics"}  # answered even while the service is not serving
_OPEN_PATHS = _ALWAYS | {"/readyz"}  # and these without a key
# What a browser may take from where. Swagger's page is FastAPI's: a script of its own, the rest from a CDN.
_PAGES = {"/", "/docs", "/redoc"}
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; "
    "style-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; "
    "img-src 'self' blob: data: https://fastapi.tiangolo.com; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_ITEMS = "/v1/items/"
_DEADLINE = re.compile(r"[1-9][0-9]{0,6}")
_PRIORITY: tuple[Lookup, ...] = ("hit", "coalesced", "miss")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")  # what may be echoed in a header


@dataclass(slots=True)
class RequestState:
    """A request's identity, deadline and times, from the envelope to its route and back."""

    request_id: str
    fingerprint: str  # of the response's header: the default model's, unless the route sets another
    reservation: Reservation  # for the bytes of an image that the service fetches
    deadline: float | None = None  # the client's, in the event loop's time
    stages_ms: dict[str, float] = field(default_factory=dict)  # of several images, the longest of each stage
    cache: Lookup | None = None

    def record(self, embedded: Embedded) -> None:
        """Add an image's times and cache lookup. A hit outranks the rest: the times do not cover its work."""
        for stage, ms in embedded.stages_ms.items():
            self.stages_ms[stage] = max(ms, self.stages_ms.get(stage, 0))
        self.cache = next((lookup for lookup in _PRIORITY if lookup in (self.cache, embedded.cache)), None)


class Envelope:
    """ASGI middleware around the whole service, BentoML's own routes included."""

    def __init__(self, app: ASGIApp, core: Core) -> None:
        self._app = app
        self._core = core
        settings = core.settings
        self._intake = Intake(
            settings.max_bytes_in_flight,
            max(settings.max_request_bytes, settings.max_image_bytes + FORM_SLACK_BYTES, MAX_JSON_BYTES),
            settings.body_timeout_s,
            core.too_many_bytes,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        arrived = time.perf_counter()
        state = RequestState(
            _request_id(headers.get("x-request-id")),
            self._core.manifest.fingerprint,
            self._intake.reservation,
        )
        scope.setdefault("state", {})["request"] = state
        request_id.set(state.request_id)

        async def send_labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                answer["X-Content-Type-Options"] = "nosniff"
                answer["X-Request-Id"] = state.request_id
                answer["X-Model-Fingerprint"] = state.fingerprint
                total_ms = (time.perf_counter() - arrived) * 1e3
                answer["Server-Timing"] = server_timing({**state.stages_ms, "total": total_ms})
                if scope["path"] in _PAGES:
                    answer["Content-Security-Policy"] = _POLICY
                if self._core.stopping:
                    answer["Connection"] = "close"
                if state.cache:
                    answer["X-Cache"] = state.cache
                self._count(scope, message["status"], total_ms)
                if access_log.isEnabledFor(logging.INFO):
                    _log_access(scope, message["status"], {**state.stages_ms, "total": total_ms})
            await send(message)

        try:
            self._admit(scope["path"], headers)
            _keep_item_id(scope)
            state.deadline = _deadline(headers)
            with self._intake.body(headers, receive) as bounded:
                await Exchange(self._app, bounded, send_labelled, state.deadline).run(scope)
        except ServiceError as error:  # not from the app: it responds to its errors itself
            await send_problem(send_labelled, error)
        except ClientDisconnect:  # not received by the client, but counted in the metrics
            await Response(status_code=499)(scope, receive, send_labelled)

    def _admit(self, path: str, headers: Headers) -> None:
        core = self._core
        if path == "/livez" and not core.alive:
            raise NotReady("a thread of the service has died or hangs, or its model only fails")
        if path == "/readyz" and core.serving and not core.ready:
            raise NotReady("the golden image did not come out in time")
        if not core.serving and path not in _ALWAYS:
            raise NotReady("the service is starting or stopping, or its golden image did not come out right")
        keys = core.settings.api_keys
        if keys and path not in _OPEN_PATHS:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            given = token.strip().encode("latin-1")  # the header's own bytes
            # All keys are compared, each in constant time.
            matches = sum(hmac.compare_digest(given, key.get_secret_value().encode()) for key in keys)
            if scheme.lower() != "bearer" or not matches:
                raise Unauthorized("send one of the service's keys as `Authorization: Bearer KEY`")

    def _count(self, scope: Scope, status: int, total_ms: float) -> None:
        if self._core.serving or self._core.stopping:
            self._core.metrics.count_request(_route(scope), status, total_ms / 1e3)


def _route(scope: Scope) -> str:
    """The pattern, never the path: ids are the clients'."""
    return getattr(scope.get("route"), "path", "") or "other"


def _log_access(scope: Scope, status: int, stages_ms: dict[str, float]) -> None:
    said = {"method": scope["method"], "route": _route(scope), "status": status}
    times = {f"{stage}_ms": round(ms, 3) for stage, ms in stages_ms.items()}
    access_log.info("%(method)s %(route)s %(status)s", said, extra={**said, **times})


def server_timing(stages_ms: dict[str, float]) -> str:
    """The value of the Server-Timing header."""
    return ", ".join(f"{stage};dur={ms:.3f}" for stage, ms in stages_ms.items())


def problem_body(error: ServiceError) -> bytes:
    """The RFC 9457 body."""
    return json.dumps(error.problem()).encode()


def problem_headers(error: ServiceError) -> dict[str, str]:
    """The headers that go with it."""
    headers = {"content-type": "application/problem+json"}
    if "retry_after_s" in error.members:
        headers["retry-after"] = str(error.members["retry_after_s"])
    if "allow" in error.members:
        headers["allow"] = ", ".join(error.members["allow"])
    if error.status == 408:
        headers["connection"] = "close"  # the rest of that body is not waited for
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


async def send_problem(send: Send, error: ServiceError) -> None:
    """Answer outside of any framework."""
    raw: list[Any] = [(name.encode(), value.encode()) for name, value in problem_headers(error).items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": problem_body(error)})


def _keep_item_id(scope: Scope) -> None:
    """An id may hold any character; left percent-encoded, none of them means anything to a router."""
    if scope["path"].startswith(_ITEMS):
        try:
            path = unquote_to_bytes(scope["raw_path"].split(b"?")[0]).decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest("the id in the path is not UTF-8") from error
        scope["path"] = _ITEMS + quote(path.removeprefix(_ITEMS), safe="")


def _deadline(headers: Headers) -> float | None:
    """The client's `X-Deadline-Ms`, in the event loop's time. Raises InvalidRequest."""
    given = headers.get("x-deadline-ms")
    if given is None:
        return None
    if not _DEADLINE.fullmatch(given):
        raise InvalidRequest("X-Deadline-Ms must be a whole number of milliseconds from 1 to 9999999")
    return asyncio.get_running_loop().time() + int(given) / 1e3


def _request_id(given: str | None) -> str:
    if given and _REQUEST_ID.fullmatch(given):
        return given
    # Not a secret; and asking the system for randomness would give Python's lock away in the middle.
    return f"{random.getrandbits(128):032x}"
