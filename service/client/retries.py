"""Retries of a call, and its pages, until its deadline."""

import random
import time
from typing import Any, Generic, TypeVar, cast

import httpx

from service.client.calls import Call, Problem
from service.client.deadline import TIMEOUT

T = TypeVar("T")

_RETRIED = (429, 503)
_FIRST_WAIT_S = 0.1
_MAX_DEADLINE_MS = 9_999_999  # that the service accepts


class Retries(Generic[T]):
    """The deadline, the back-off and the results of a call."""

    def __init__(self, call: Call[T], timeout_s: float) -> None:
        self._call = call
        self._remaining = call  # without the rows that have a final result; or the next page
        self._rows: list[Any] | None = None  # results of a bulk request
        self._refused: list[int] = []
        self.ends = time.monotonic() + timeout_s
        self._wait_s = _FIRST_WAIT_S

    @property
    def left_s(self) -> float:
        """The remaining time. Raises httpx.ReadTimeout if there is none."""
        left_s = self.ends - time.monotonic()
        if left_s <= 0:
            raise httpx.ReadTimeout(TIMEOUT)
        return left_s

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of httpx's `request`, with the remaining time as timeout and deadline."""
        call, left_s = self._remaining, self.left_s
        deadline_ms = int(min(_MAX_DEADLINE_MS, max(1, left_s * 1e3)))
        headers = {**call.arguments.get("headers", {}), "X-Deadline-Ms": str(deadline_ms)}
        target = {"method": call.method, "url": call.path, "timeout": left_s}
        return {**call.arguments, **target, "headers": headers}

    def wait_s(self, response: httpx.Response) -> float | None:
        """Return the seconds to wait before a retry, or None if there is none."""
        if response.is_success and self._call.only:
            self._collect(cast("list[Any]", self._remaining.read(response)))
            if not self._refused:
                return None
            self._remaining = self._call.only(self._refused)
        elif response.is_success and self._remaining.next_page:
            following = self._remaining.next_page(response)
            self._remaining, self._wait_s = following or self._remaining, _FIRST_WAIT_S
            return 0 if following else None
        elif response.status_code not in _RETRIED:
            return None
        retry_after = response.headers.get("retry-after", "")
        wait_s = max(self._wait_s, float(retry_after) if retry_after.isdecimal() else 0)
        wait_s *= random.uniform(1, 1.5)  # noqa: S311 (jitter)
        self._wait_s *= 2
        return wait_s if time.monotonic() + wait_s < self.ends else None

    def _collect(self, results: list[Any]) -> None:
        """Keep the results of the rows that were sent, and the numbers of those that were refused."""
        if self._rows is None:
            self._rows, self._refused = results, list(range(len(results)))
        for row, result in zip(self._refused, results, strict=True):
            self._rows[row] = result
        self._refused = [
            row
            for row in self._refused
            if isinstance(self._rows[row], Problem) and self._rows[row].status in _RETRIED
        ]

    def result(self, response: httpx.Response) -> T:
        """Return the result of the call after its last response."""
        return _result(self._remaining, response) if self._rows is None else cast("T", self._rows)

    def partial_result(self, error: Exception) -> T:
        """Return the rows that have a result, the others as problems. Raises httpx.TransportError if none."""
        if self._rows is not None:
            return cast("T", self._rows)
        if isinstance(error, TimeoutError):
            raise httpx.ReadTimeout(TIMEOUT) from error
        raise error


def _result(call: Call[T], response: httpx.Response) -> T:
    if response.is_success:
        return call.read(response)
    try:
        members = response.json()
    except ValueError:  # not JSON: a proxy's page
        members = None
    if not isinstance(members, dict) or "type" not in members:
        members = {"type": "", "detail": response.text[:200]}
    raise Problem({**members, "status": response.status_code})
