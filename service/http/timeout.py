"""BentoML's middleware for timeouts is left out: the envelope enforces them.

BentoML's sets a timer for each request and lets it run out, however soon the answer was there: 3.6 KB stay
for ten minutes, 200 MB at a hundred requests a second (decision 13).
"""

from typing import Any

from bentoml._internal.server.http import traffic
from starlette.types import ASGIApp


def _passed_by(app: ASGIApp, **_: Any) -> ASGIApp:
    return app


def leave_out_timeouts() -> None:
    """To be called before BentoML builds its app."""
    traffic.TimeoutMiddleware = _passed_by  # type: ignore[assignment,misc]
