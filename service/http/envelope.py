"""The ASGI middleware around all routes: request id, API keys, readiness, body limits, response headers."""

import asyncio
import hmac
import logging
import random
import re
import time
from dataclasses import dataclass, field
from urllib.parse import quote, unquote_to_bytes

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.core import Core
from service.errors import InvalidRequest, NotReady, ServiceError, Unauthorized
from service.http.bentoml_guard import NATIVE_PATHS, checked_receive
from service.http.body import FORM_SLACK_BYTES, MAX_JSON_BYTES
from service.http.limits import Exchange, Intake, Reservation
from service.http.problems import internal_error, problem_response
from service.inference.batching import Embedded
from service.inference.cache import Lookup
from service.logs import access_log, request_id

_ALWAYS = {"/livez", "/healthz", "/metrics"}  # available even while the service is not serving
_OPEN_PATHS = _ALWAYS | {"/readyz"}  # available without a key
# The sources that a browser may load for a page. FastAPI's Swagger page has an inline script, and loads
# the rest from a CDN.
_PAGES = {"/", "/docs", "/redoc"}
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; "
    "style-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; "
    "img-src 'self' blob: data: https://fastapi.tiangolo.com; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_ITEMS = "/v1/items/"
_BASE64_PATHS = {"/v1/embeddings", "/v2/embed"}
_BASE64_WEIGHT = 1.75  # the body, and the images decoded from it
_DEADLINE = re.compile(r"[1-9][0-9]{0,6}")
_PRIORITY: tuple[Lookup, ...] = ("hit", "coalesced", "miss")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")  # safe to echo in a header


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
        """Add an image's times and cache lookup. A hit outranks a miss: the times do not cover its work."""
        for stage, ms in embedded.stages_ms.items():
            self.stages_ms[stage] = max(ms, self.stages_ms.get(stage, 0))
        self.cache = next((lookup for lookup in _PRIORITY if lookup in (self.cache, embedded.cache)), None)


class Envelope:
    """ASGI middleware around all routes, including BentoML's own."""

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
        arrived = time.perf_counter()
        headers = Headers(scope=scope)
        state = RequestState(
            _request_id(headers.get("x-request-id")),
            self._core.manifest.fingerprint,
            self._intake.reservation,
        )
        scope.setdefault("state", {})["request"] = state
        request_id.set(state.request_id)

        responding = False

        async def send_labelled(message: Message) -> None:
            nonlocal responding
            if message["type"] == "http.response.start":
                responding = True
                total_ms = (time.perf_counter() - arrived) * 1e3
                self._label(scope, message, {**state.stages_ms, "total": total_ms})
            await send(message)

        try:
            self._admit(scope["path"], headers)
            _keep_item_id(scope)
            state.deadline = _deadline(headers)
            weight = _BASE64_WEIGHT if scope["path"] in _BASE64_PATHS else 1
            with self._intake.body(headers, receive, weight) as bounded:
                await Exchange(self._route, bounded, send_labelled, state.deadline).run(scope)
        except ServiceError as error:  # not from FastAPI: its app responds to errors itself
            await problem_response(error, scope["path"])(scope, receive, send_labelled)
        except ClientDisconnect:  # the client does not receive it, but the metrics count it
            await Response(status_code=499)(scope, receive, send_labelled)
        except Exception as error:
            if responding:  # FastAPI's app has responded already, and raises for the server's log
                raise
            problem = internal_error(error, state.request_id)
            await problem_response(problem, scope["path"])(scope, receive, send_labelled)

    def _admit(self, path: str, headers: Headers) -> None:
        core = self._core
        if path == "/livez" and not core.alive:
            raise NotReady("a worker thread is dead or stalled, or every inference fails")
        if path == "/readyz" and core.serving and not core.ready:
            raise NotReady("the golden image has no recent result")
        if not core.serving and path not in _ALWAYS:
            raise NotReady("the service is starting or stopping, or its golden image has a wrong embedding")
        keys = core.settings.api_keys
        if keys and path not in _OPEN_PATHS:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            key = token.strip().encode("latin-1")  # the header's own bytes
            # All keys are compared, each in constant time.
            matches = sum(hmac.compare_digest(key, valid.get_secret_value().encode()) for valid in keys)
            if scheme.lower() != "bearer" or not matches:
                raise Unauthorized("a valid API key is required: `Authorization: Bearer KEY`")

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette's routes also match a path that ends in a line break.
        if scope["method"] == "POST" and scope["path"].rstrip("\n") in NATIVE_PATHS:
            receive = await checked_receive(scope, receive, self._core.settings.max_image_bytes)
        await self._app(scope, receive, send)

    def _label(self, scope: Scope, start: Message, stages_ms: dict[str, float]) -> None:
        """Set the headers of a response, and count it."""
        state: RequestState = scope["state"]["request"]
        headers = MutableHeaders(scope=start)
        headers["X-Content-Type-Options"] = "nosniff"
        headers["X-Request-Id"] = state.request_id
        headers["X-Model-Fingerprint"] = state.fingerprint
        headers["Server-Timing"] = ", ".join(f"{stage};dur={ms:.3f}" for stage, ms in stages_ms.items())
        if scope["path"] in _PAGES:
            headers["Content-Security-Policy"] = _POLICY
        if self._core.stopping:
            headers["Connection"] = "close"
        if state.cache:
            headers["X-Cache"] = state.cache
        # The route's pattern, never the path: ids are the clients'.
        route, status = getattr(scope.get("route"), "path", "") or "other", start["status"]
        if self._core.serving or self._core.stopping:
            self._core.metrics.count_request(route, status, stages_ms["total"] / 1e3)
        if access_log.isEnabledFor(logging.INFO):
            fields = {"method": scope["method"], "route": route, "status": status}
            times = {f"{stage}_ms": round(ms, 3) for stage, ms in stages_ms.items()}
            access_log.info("%(method)s %(route)s %(status)s", fields, extra={**fields, **times})


def _keep_item_id(scope: Scope) -> None:
    """Percent-encode an item id again: it may hold any character, and some are special to a router."""
    if scope["path"].startswith(_ITEMS):
        try:
            path = unquote_to_bytes(scope["raw_path"].split(b"?")[0]).decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest("the item id in the path is not valid UTF-8") from error
        scope["path"] = _ITEMS + quote(path.removeprefix(_ITEMS), safe="")


def _deadline(headers: Headers) -> float | None:
    """Return the client's `X-Deadline-Ms` in the event loop's time. Raises InvalidRequest."""
    value = headers.get("x-deadline-ms")
    if value is None:
        return None
    if not _DEADLINE.fullmatch(value):
        raise InvalidRequest("X-Deadline-Ms must be an integer from 1 to 9999999")
    return asyncio.get_running_loop().time() + int(value) / 1e3


def _request_id(value: str | None) -> str:
    """Return the client's request id, or a random one."""
    if value and _REQUEST_ID.fullmatch(value):
        return value
    # It is not a secret; and a system call for randomness would release Python's lock.
    return f"{random.getrandbits(128):032x}"
