"""RFC 9457 responses of service errors."""

import json
import logging

from starlette.responses import Response

from service.errors import ServiceError

_log = logging.getLogger(__name__)


def internal_error(error: Exception, request_id: str) -> ServiceError:
    """Log an unexpected error under the request id, and return what the client may see of it."""
    _log.error("request %s failed", request_id, exc_info=error)
    return ServiceError("internal error; see the server log for this request id")


def problem_response(error: ServiceError) -> Response:
    """Return the response, which is an ASGI app as well."""
    headers = {"content-type": "application/problem+json"}
    if "retry_after_s" in error.members:
        headers["retry-after"] = str(error.members["retry_after_s"])
    if "allow" in error.members:
        headers["allow"] = ", ".join(error.members["allow"])
    if error.status == 408:
        headers["connection"] = "close"  # the rest of the body is not awaited
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(json.dumps(error.problem()), error.status, headers)
