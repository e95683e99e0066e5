"""The FastAPI app: routes, error responses, and the lifespan of the core."""

import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match

from service import __version__
from service.core import Core
from service.errors import InvalidRequest, MethodNotAllowed, NotFound, ServiceError
from service.http import embed, info, items, openai, search
from service.http.handling import App, check_parameters, faults_of
from service.http.problems import internal_error, problem_response
from service.http.schemas import PROBLEMS, complete
from service.http.stopping import refuse_before_stopping

_UNKNOWN = "/v1/{rest:path}"
_METHODS = ["DELETE", "GET", "PATCH", "POST", "PUT"]  # HEAD is answered as GET: `envelope`
_YOUNG_OBJECTS = (
    10_000  # between two collections of the youngest, a millisecond each; Python's default is 700
)
_log = logging.getLogger(__name__)


def create_app(core: Core) -> FastAPI:
    """Return the app that BentoML mounts. It starts and closes `core`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await core.start()
        # A full collection takes 45 ms on the event loop, most of it for what the imports left.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG_OBJECTS)
        refuse_before_stopping(core)
        yield
        await core.close()

    app = App(title="Universal image embedding", version=__version__, lifespan=lifespan)
    app.state.core = core
    app.direct = {route.path: route for route in embed.router.routes if isinstance(route, APIRoute)}
    for router in (embed.router, openai.router, search.router, items.router, info.router):
        app.include_router(router, responses=PROBLEMS, dependencies=[Depends(check_parameters)])
    for kind in (ServiceError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _respond_to_error)
    # Instead of BentoML's own page, which loads a tracker.
    app.add_api_route("/", _start_page, include_in_schema=False)
    app.add_api_route(_UNKNOWN, _no_such_route, methods=_METHODS, include_in_schema=False)
    complete(app.openapi())  # computed once, after the last route, for `check_parameters`
    return app


def _respond_to_error(request: Request, error: Exception) -> Response:
    match error:
        case ServiceError():
            problem = error
        case RequestValidationError():
            problem = InvalidRequest(faults_of(error.errors(), skip=1))  # `query` or `path`
        case HTTPException(status_code=404 | 405):
            problem = _not_routed(request)
        case HTTPException():
            problem = InvalidRequest(error.detail)  # a form that cannot be parsed
        case _:
            problem = internal_error(error, request.state.request.request_id)
    return problem_response(problem, request.scope["path"])


async def _start_page() -> Response:
    return RedirectResponse("/docs")


async def _no_such_route(request: Request) -> None:
    raise _not_routed(request)


def _not_routed(request: Request) -> NotFound | MethodNotAllowed:
    path = request.url.path
    routes = [route for route in request.app.routes if getattr(route, "path", "") != _UNKNOWN]

    def supports(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in routes)

    allowed = [method for method in _METHODS if supports(method)]
    if not allowed:
        return NotFound(f"no such route: {path}")
    if "GET" in allowed:
        allowed.append("HEAD")
    return MethodNotAllowed(f"{path} does not support {request.method}", allow=sorted(allowed))
