"""RFC 9457 responses of service errors."""

import json

from starlette.responses import Response

from service.errors import ServiceError


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
