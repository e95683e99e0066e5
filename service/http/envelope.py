"""The ASGI middleware around all routes: hosts, API keys, readiness, body limits, response headers."""

import asyncio
import hmac
import logging
import random
import re
import time
from dataclasses import dataclass, field
from functools import lru_cache, partial
from urllib.parse import quote, unquote_to_bytes

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.core import Core
from service.errors import (
    CrossSite,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    NotReady,
    ServiceError,
    Unauthorized,
    UnknownHost,
)
from service.hosts import is_addressed, is_cross_site
from service.http.body import FORM_SLACK_BYTES, MAX_JSON_BYTES
from service.http.limits import Body, Exchange, Intake
from service.http.problems import internal_error, problem_response
from service.inference.cache import Lookup
from service.inference.work import Embedded
from service.logs import access_log, request_id

_ALWAYS = {"/livez", "/healthz", "/metrics"}  # available even while the service is not serving
# Available without a key, and under any Host: probes and Prometheus address a pod by its IP.
_OPEN_PATHS = _ALWAYS | {"/readyz"}
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
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
_MAX_PARAMETERS = 1000  # in a query string
_MAX_ITEM_PATH_BYTES = 6500  # 512 characters of four percent-encoded bytes each, and the start of the path
_PRIORITY: tuple[Lookup, ...] = ("hit", "coalesced", "miss")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")  # safe to echo in a header


@dataclass(slots=True)
class RequestState:
    """A request's identity, deadline and times, from the envelope to its route and back."""

    request_id: str
    method: str  # the client's: the routes see GET for HEAD
    fingerprint: str  # of the response's header: the default model's, unless the route sets another
    body: Body
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

    def __init__(self, app: ASGIApp, core: Core, routes: ASGIApp | None = None) -> None:
        """`routes` answers the paths of the API (None: `app` does), and `app` all others."""
        self._app = app
        self._core = core
        self._routes = routes or app
        settings = core.settings
        self._keys = settings.api_keys
        # Without a key nothing else stops a web page whose name resolves to this machine (DNS rebinding).
        self._checks_hosts = bool(settings.allowed_hosts or not settings.api_keys)
        self._is_addressed = lru_cache(16)(partial(is_addressed, settings.allowed_hosts))
        self._intake = Intake(
            settings.max_bytes_in_flight,
            max(
                settings.max_request_bytes,
                settings.max_image_bytes + FORM_SLACK_BYTES,
                settings.max_base64_bytes,
                MAX_JSON_BYTES,
            ),
            settings.body_timeout_s,
            core.too_many_bytes,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived = time.perf_counter()
        headers = Headers(scope=scope)
        weight = _BASE64_WEIGHT if scope["path"] in _BASE64_PATHS else 1
        state = RequestState(
            _request_id(headers.get("x-request-id")),
            scope["method"],
            self._core.manifest.fingerprint,
            Body(self._intake, headers, receive, weight),
        )
        scope.setdefault("state", {})["request"] = state
        request_id.set(state.request_id)
        if state.method == "HEAD":  # the server, which has the other scope, drops the body
            scope = {**scope, "method": "GET"}

        responding = False

        async def send_labelled(message: Message) -> None:
            nonlocal responding
            if message["type"] == "http.response.start":
                _check_routed(scope, message)
                responding = True
                state.body.release()  # not after the client has read the response
                total_ms = (time.perf_counter() - arrived) * 1e3
                self._label(scope, message, {**state.stages_ms, "total": total_ms})
            await send(message)

        try:
            self._check_source(state.method, scope, headers)
            self._admit(scope["path"], headers)
            _check_query(scope)
            _keep_item_id(scope)
            state.deadline = _deadline(headers)
            # Past BentoML's middleware and router, a tenth of the work.
            app = self._routes if scope["path"].startswith(("/v1/", "/v2/")) else self._app
            with state.body as body:
                await Exchange(app, body.receive, send_labelled, state.deadline).run(scope)
        except ServiceError as error:  # not from FastAPI: its app responds to errors itself
            await problem_response(error, scope["path"])(scope, receive, send_labelled)
        except ClientDisconnect:  # the client does not receive it, but the metrics count it
            await Response(status_code=499)(scope, receive, send_labelled)
        except Exception as error:
            if responding:  # FastAPI's app has responded already, and raises for the server's log
                raise
            problem = internal_error(error, state.request_id)
            await problem_response(problem, scope["path"])(scope, receive, send_labelled)

    def _check_source(self, method: str, scope: Scope, headers: Headers) -> None:
        """Refuse a request for another host, or for a web page of another site."""
        hosts = headers.getlist("host")
        if len(hosts) > 1 or (not hosts and scope.get("http_version") == "1.1"):  # RFC 9112, 3.2
            raise InvalidRequest("a request must have one Host header", got=len(hosts))
        host = hosts[0] if hosts else ""  # HTTP/1.0 without one: not from a browser
        if hosts and self._checks_hosts and scope["path"] not in _OPEN_PATHS and not self._is_addressed(host):
            raise UnknownHost(
                "the Host header is not a loopback name, and the service's UIE_ALLOWED_HOSTS does not list it"
            )
        # No page of another site has a key: browsers send none by themselves.
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")  # of browsers only
        writes_without_key = method not in _SAFE_METHODS and not self._keys
        if writes_without_key and (site or origin) and is_cross_site(site, origin, host):
            raise CrossSite("a web page of another site sent this request: see Sec-Fetch-Site and Origin")

    def _admit(self, path: str, headers: Headers) -> None:
        core = self._core
        if path == "/livez" and not core.alive:
            raise NotReady("a worker thread is dead or stalled, or every inference fails")
        if path == "/readyz" and core.serving and not core.ready:
            raise NotReady("the golden image has no recent result")
        if not core.serving and path not in _ALWAYS:
            raise NotReady("the service is starting or stopping, or its golden image has a wrong embedding")
        if self._keys and path not in _OPEN_PATHS:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            key = token.strip().encode("latin-1")  # the header's own bytes
            # All keys are compared, each in constant time.
            matches = sum(hmac.compare_digest(key, valid.get_secret_value().encode()) for valid in self._keys)
            if scheme.lower() != "bearer" or not matches:
                raise Unauthorized("a valid API key is required: `Authorization: Bearer KEY`")

    def _label(self, scope: Scope, start: Message, stages_ms: dict[str, float]) -> None:
        """Set the headers of a response, and count it."""
        state: RequestState = scope["state"]["request"]
        timing = ", ".join([f"{stage};dur={ms:.3f}" for stage, ms in stages_ms.items()])
        headers = {
            "x-content-type-options": "nosniff",
            "x-request-id": state.request_id,
            "x-model-fingerprint": state.fingerprint,
            "server-timing": timing,
        }
        if scope["path"] in _PAGES:
            headers["content-security-policy"] = _POLICY
        if state.cache:
            headers["x-cache"] = state.cache
        # Appended as bytes: Starlette's headers look for each name in all others first.
        start["headers"] = [
            *start["headers"],
            *[(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
        ]
        if self._core.stopping:
            MutableHeaders(scope=start)["connection"] = "close"
        # The route's pattern, never the path: ids are the clients'.
        route, status = getattr(scope.get("route"), "path", "") or "other", start["status"]
        self._core.count_request(route, status, stages_ms["total"] / 1e3)
        if access_log.isEnabledFor(logging.INFO):
            fields = {"method": state.method, "route": route, "status": status}
            times = {f"{stage}_ms": round(ms, 3) for stage, ms in stages_ms.items()}
            access_log.info("%(method)s %(route)s %(status)s", fields, extra={**fields, **times})


def _check_query(scope: Scope) -> None:
    """Raise InvalidRequest for a query string of very many parameters, or one that is not UTF-8.

    FastAPI would parse the first, and replace the characters of the second.
    """
    query: bytes = scope["query_string"]
    got = query.count(b"&") + 1
    if got > _MAX_PARAMETERS:
        raise InvalidRequest("the query string has too many parameters", limit=_MAX_PARAMETERS, got=got)
    if b"%" in query:
        try:
            unquote_to_bytes(query).decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest("the query string is not valid UTF-8") from error


def _check_routed(scope: Scope, start: Message) -> None:
    """Raise a problem instead of a response of BentoML's router, which has a plain text."""
    if start["status"] in (404, 405):
        headers = Headers(raw=start["headers"])
        if headers.get("content-type") != "application/problem+json":
            path = scope["path"]
            if start["status"] == 404:
                raise NotFound(f"no such route: {path}")
            allowed = headers.get("allow", "GET, HEAD").split(", ")
            raise MethodNotAllowed(f"{path} does not support {scope['method']}", allow=sorted(allowed))


def _keep_item_id(scope: Scope) -> None:
    """Percent-encode an item id again: it may hold any character, and some are special to a router."""
    if scope["path"].startswith(_ITEMS):
        if len(scope["raw_path"]) > _MAX_ITEM_PATH_BYTES:
            raise InvalidRequest("the item id has too many characters", limit=512)
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
