"""RFC 9457 responses of service errors."""

import json
import logging
from typing import Any

from starlette.responses import Response

from service.errors import ServiceError

_VENDOR_PATHS = ("/v1/embeddings", "/v1/models", "/v2/")  # of OpenAI's and Cohere's clients
_log = logging.getLogger(__name__)


def internal_error(error: Exception, request_id: str) -> ServiceError:
    """Log an unexpected error under the request id, and return what the client may see of it."""
    _log.error("request %s failed", request_id, exc_info=error)
    return ServiceError("internal error; see the server log for this request id")


def problem_response(error: ServiceError, path: str = "") -> Response:
    """Return the response to a request for `path`. It is an ASGI app as well."""
    problem = error.problem()
    if path.startswith(_VENDOR_PATHS):
        problem |= _vendor_members(error, "images" if path.startswith("/v2/") else "input")
    headers = {"content-type": "application/problem+json"}
    if "retry_after_s" in error.members:
        headers["retry-after"] = str(error.members["retry_after_s"])
    if "allow" in error.members:
        headers["allow"] = ", ".join(error.members["allow"])
    if error.status == 408:
        headers["connection"] = "close"  # the rest of the body is not awaited
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(json.dumps(problem), error.status, headers)


def _vendor_members(error: ServiceError, images: str) -> dict[str, Any]:
    """Return the members from which OpenAI's and Cohere's clients take the message of their exception."""
    index = error.members.get("index")
    message = error.detail if index is None else f"image {index}: {error.detail}"
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    param = None if index is None else f"{images}[{index}]"
    openai_error = {"message": message, "type": kind, "param": param, "code": error.slug}
    return {"message": message, "error": openai_error}
