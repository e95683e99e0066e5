"""The FastAPI app: routes, error answers, and the life of the core."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match

from service import __version__
from service.core import Core
from service.errors import InvalidRequest, MethodNotAllowed, NotFound, ServiceError
from service.http import embed, info, items, openai, search
from service.http.envelope import problem_body, problem_headers
from service.http.schemas import PROBLEMS

_REFUSALS_S = 0.5
_REST = "/v1/{rest:path}"
_METHODS = ["DELETE", "GET", "PATCH", "POST", "PUT"]
_log = logging.getLogger(__name__)


def create_app(core: Core) -> FastAPI:
    """The app that BentoML mounts; `core` lives as long as it does."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await core.start()
        _refuse_before_stopping(core)
        yield
        await asyncio.to_thread(core.close)

    app = FastAPI(title="Universal image embedding", version=__version__, lifespan=lifespan)
    app.state.core = core
    for router in (embed.router, openai.router, search.router, items.router, info.router):
        app.include_router(router, responses=PROBLEMS, dependencies=[Depends(_known_parameters)])
    app.openapi()  # made once, before the first request that has parameters
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_bug)
    # In the place of BentoML's own page, which loads a tracker.
    app.add_api_route("/", _front, include_in_schema=False)
    app.add_api_route(_REST, _no_such_route, methods=_METHODS, include_in_schema=False)
    return app


def _refuse_before_stopping(core: Core) -> None:
    """On SIGTERM uvicorn closes every connection that has no request in the app, one that it has not read
    yet among them. With half a second of refusals first, each of those gets its answer.
    """
    loop, stop = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)
    assert callable(stop), "uvicorn listens to SIGTERM before the app starts"

    def refuse(number: int, _: object) -> None:
        core.stop_admission()
        loop.call_soon_threadsafe(loop.call_later, _REFUSALS_S, stop, number, None)

    signal.signal(signal.SIGTERM, refuse)


async def _known_parameters(request: Request) -> None:
    """A parameter that is misspelt would go unnoticed: `domian=food` would search everywhere."""
    if not request.query_params:
        return
    operation = request.app.openapi()["paths"][request.scope["route"].path_format][request.method.lower()]
    known = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
    unknown = sorted(request.query_params.keys() - set(known))
    if unknown:
        raise InvalidRequest(
            f"no such parameter: {', '.join(unknown)[:200]}; there are: {', '.join(known) or 'none'}"
        )


def problem_response(error: ServiceError) -> Response:
    """The RFC 9457 answer."""
    return Response(problem_body(error), error.status, problem_headers(error))


def _on_service_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return problem_response(error)


def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in error.errors()]
    return problem_response(InvalidRequest("; ".join(faults)))


def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return problem_response(_not_routed(request))
    return problem_response(InvalidRequest(error.detail))  # a form that cannot be parsed


def _on_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the metrics count it


def _on_bug(request: Request, error: Exception) -> Response:
    _log.error("request %s failed", request.state.request_id, exc_info=error)
    return problem_response(ServiceError("an error of ours; the log has it under the request's id"))


async def _front() -> Response:
    return RedirectResponse("/docs")


async def _no_such_route(request: Request) -> None:
    raise _not_routed(request)


def _not_routed(request: Request) -> NotFound | MethodNotAllowed:
    path = request.url.path
    routes = [route for route in request.app.routes if getattr(route, "path", "") != _REST]

    def taken(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in routes)

    allowed = [method for method in _METHODS if taken(method)]
    if not allowed:
        return NotFound(f"there is no {path}")
    return MethodNotAllowed(f"{path} does not take {request.method}", allow=allowed)
