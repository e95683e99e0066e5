"""RFC 9457 responses of service errors, for FastAPI and for plain ASGI."""

import json

from starlette.responses import Response

from service.errors import ServiceError


def problem_body(error: ServiceError) -> bytes:
    """Return the problem object as JSON."""
    return json.dumps(error.problem()).encode()


def problem_headers(error: ServiceError) -> dict[str, str]:
    """Return the headers of the response."""
    headers = {"content-type": "application/problem+json"}
    if "retry_after_s" in error.members:
        headers["retry-after"] = str(error.members["retry_after_s"])
    if "allow" in error.members:
        headers["allow"] = ", ".join(error.members["allow"])
    if error.status == 408:
        headers["connection"] = "close"  # the rest of the body is not awaited
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def problem_response(error: ServiceError) -> Response:
    """Return the response, which is an ASGI app as well."""
    return Response(problem_body(error), error.status, problem_headers(error))
