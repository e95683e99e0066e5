"""One client process: sends its share of the requests as scheduled, and writes an observation of each.

In an open loop the schedule is given; in a closed loop a request is scheduled when its stream reaches it.
Latency counts from the scheduled time, so that a late client and a service that delays later requests are
visible (no coordinated omission).
"""

import asyncio
import base64
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TextIO

import numpy as np
import uvloop
from numpy.typing import NDArray

from benchmarks.errors import TargetError
from benchmarks.load.requests import Load, LoadRequest, http_request, read
from benchmarks.runs.run import Observation, to_line
from benchmarks.targets.http import Response, send, session_for
from benchmarks.targets.target import Target, vector_of

# Sends a request with its image bytes, at its scheduled time; returns True if there was a response.
_Send = Callable[[LoadRequest, list[bytes], float], Awaitable[bool]]

_LEAD_S = 0.2  # from the end of the last warm-up to the start
# The service is unreachable after this time and this many consecutive requests without a response.
_UNREACHABLE_S = 10
_UNREACHABLE_REQUESTS = 5
_PAUSE_S = 0.5  # of a stream after a request without a response: a crashed worker is restarted


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a load that one process sends."""

    number: int  # of the process
    load: Load
    times_s: Sequence[float] | None  # scheduled times; None: a closed loop
    streams: int
    warm_up: int  # requests
    segment: int
    key: str | None


@dataclass(frozen=True, slots=True)
class Shared:
    """Synchronisation objects of `multiprocessing` that all client processes share."""

    barrier: Any
    started: Any  # double: the common start on the monotonic clock
    stopped: Any
    done: Any  # images, by process
    cpu_s: Any  # by process
    wall_s: Any  # by process
    errors: Any


@dataclass(frozen=True, slots=True)
class _Result:
    """The outcome for one image."""

    status: int
    hit_ids: list[str] = field(default_factory=list)
    embedding: str = ""  # base64 of float32
    error: str | None = None


def run_share(share: Share, stream: TextIO, shared: Shared) -> None:
    """Send all requests. Raises DataError, TargetError, BrokenBarrierError, and OSError of `stream`."""
    uvloop.run(_Worker(share, stream, shared).run())


class _Worker:
    def __init__(self, share: Share, stream: TextIO, shared: Shared) -> None:
        self._share = share
        self._load = share.load
        self._stream = stream
        self._shared = shared
        self._parent = os.getppid()
        self._start = self._last_response = time.monotonic()
        self._unanswered = 0  # requests since the last response
        self._nonce = os.urandom(8)

    async def run(self) -> None:
        share, shared = self._share, self._shared
        async with session_for(share.key) as self._session:
            await self._warm_up()
            self._start = self._last_response = self._common_start()
            # Both clocks start here: CPU time divided by another interval is not a share.
            cpu_s, wall_s = time.process_time(), time.monotonic()
            if share.times_s is None:
                await self._closed_loop(self._remaining(), share.streams, self._observe)
            else:
                await self._open_loop(share.times_s)
        shared.cpu_s[share.number] = time.process_time() - cpu_s
        shared.wall_s[share.number] = time.monotonic() - wall_s

    def _common_start(self) -> float:
        """Wait for all processes; returns the common start on the monotonic clock."""
        if self._shared.barrier.wait() == 0:
            self._shared.started.value = time.monotonic() + _LEAD_S
        self._shared.barrier.wait()
        time.sleep(max(0.0, self._shared.started.value - time.monotonic()))
        return float(self._shared.started.value)

    def _remaining(self) -> Iterator[LoadRequest]:
        until = self._start + (self._load.seconds or float("inf"))
        for request in self._load.requests:
            # The parent is another process if it was killed.
            if self._shared.stopped.is_set() or os.getppid() != self._parent or time.monotonic() >= until:
                return
            yield request

    async def _closed_loop(self, requests: Iterator[LoadRequest], streams: int, send_one: _Send) -> None:
        async def stream() -> None:
            while group := list(itertools.islice(requests, self._load.scenario.group)):
                contents = [read(request, self._nonce) for request in group]
                at = time.monotonic()
                responded = await asyncio.gather(
                    *(send_one(request, data, at) for request, data in zip(group, contents, strict=True))
                )
                if not all(responded):
                    await asyncio.sleep(_PAUSE_S)

        tasks = [asyncio.create_task(stream()) for _ in range(streams)]
        try:
            await asyncio.gather(*tasks)
        finally:  # the first error cancels the other streams
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _open_loop(self, times_s: Sequence[float]) -> None:
        tasks: set[asyncio.Task[bool]] = set()
        try:
            for request, at_s in zip(self._remaining(), times_s, strict=False):
                contents = read(request, self._nonce)  # before its scheduled time
                await asyncio.sleep(self._start + at_s - time.monotonic())
                tasks.add(asyncio.create_task(self._observe(request, contents, self._start + at_s)))
                for done in [task for task in tasks if task.done()]:
                    tasks.remove(done)
                    done.result()
        finally:
            await asyncio.gather(*tasks)

    async def _warm_up(self) -> None:
        """Send the first requests, except those that change something, with bytes that do not recur."""
        first = self._load.requests[: self._share.warm_up]
        reads = (request for request in first if request.kind not in ("index", "delete"))
        salted = (replace(request, salt=-number - 1) for number, request in enumerate(reads))
        results: list[_Result] = []

        async def send_one(request: LoadRequest, contents: list[bytes], _: float) -> bool:
            results.extend(self._results(request, await self._send(request, contents)))
            return True

        await self._closed_loop(salted, max(1, self._share.streams), send_one)
        # A resumed run may consist of failing requests only.
        if results and not self._share.segment and not any(result.status == 200 for result in results):
            raise TargetError(f"all requests of the warm-up failed, the last with: {results[-1].error}")

    async def _observe(self, request: LoadRequest, contents: list[bytes], at: float) -> bool:
        sent = time.monotonic()
        response = await self._send(request, contents)
        done = time.monotonic()
        for image, result in zip(request.images, self._results(request, response), strict=True):
            observation = Observation(
                query_id=image.id,
                domain=image.domain,
                kind=request.kind,
                scheduled_s=at - self._start,
                sent_s=sent - self._start,
                done_s=done - self._start,
                server_ms=response.server_ms,
                cache=response.cache,
                segment=self._share.segment,
                **asdict(result),
            )
            self._stream.write(to_line(observation))
        self._shared.done[self._share.number] += len(request.images)
        if response.status:
            self._last_response, self._unanswered = done, 0
            return True
        self._unanswered += 1
        if self._unanswered >= _UNREACHABLE_REQUESTS and done - self._last_response > _UNREACHABLE_S:
            raise TargetError(
                f"the service is unreachable, no response for {_UNREACHABLE_S} s: {response.detail}"
            )
        return False

    async def _send(self, request: LoadRequest, contents: list[bytes]) -> Response:
        method, url, arguments = http_request(self._load.target, request, contents)
        return await send(self._session, method, url, **arguments)

    def _results(self, request: LoadRequest, response: Response) -> list[_Result]:
        """Return the outcome for each image; an unexpected body of a 200 counts as no response."""
        if response.status != 200:
            failed = _Result(response.status, error=f"status {response.status}: {response.detail}")
        else:
            try:
                return self._parse(request, response.body)
            except (TargetError, KeyError, TypeError, ValueError, OverflowError) as error:
                reason = str(error) if isinstance(error, TargetError) else repr(error)
                failed = _Result(0, error=f"not a valid {request.kind} response: {reason}")
        return [failed] * len(request.images)

    def _parse(self, request: LoadRequest, body: Any) -> list[_Result]:
        target = self._load.target
        match request.kind:
            case "search":
                return [_Result(200, [str(hit["id"]) for hit in body["hits"]])]
            case "embed":
                return [_Result(200, embedding=_base64(vector_of(target, body)))]
            case "bulk":
                pairs = zip(request.images, body["results"], strict=True)
                return [_bulk_result(target, result) for _, result in pairs]
            case "index" | "delete":
                return [_Result(200)]


def _bulk_result(target: Target, result: dict[str, Any]) -> _Result:
    if "error" in result:
        return _Result(int(result["error"]["status"]), error=str(result["error"]["detail"]))
    return _Result(200, embedding=_base64(vector_of(target, result)))


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
