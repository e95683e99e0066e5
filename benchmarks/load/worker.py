"""One client process: sends its share of the requests when their time has come, and writes down each.

In an open loop the time a request should have been sent is given; in a closed one it is when its stream
got to it. Latency counts from there, so a client that is late, or a service that makes others wait, is
seen (no coordinated omission).
"""

import asyncio
import base64
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TextIO

import numpy as np
import uvloop
from numpy.typing import NDArray

from benchmarks.errors import DataError, TargetError
from benchmarks.load.requests import Ask, read, request_of
from benchmarks.load.scenarios import Scenario
from benchmarks.runs.run import Observation, to_line
from benchmarks.targets.service import Answer, send, session_for
from benchmarks.targets.target import Target, vector_of

_Act = Callable[[Ask, list[bytes], float], Awaitable[bool]]

_GONE_AFTER_S = 10  # without any answer, while requests fail
_GONE_AFTER = 5  # of them, one after another: one that is dropped is not the service's end
_PAUSE_S = 0.5  # of a stream whose request had no answer: a worker that died comes back


@dataclass(frozen=True, slots=True)
class Share:
    """A process's part of a run."""

    target: Target
    scenario: Scenario
    asks: Sequence[Ask]
    times_s: Sequence[float] | None  # when each should be sent; None: a closed loop
    streams: int
    segment: int
    key: str | None
    seconds: float | None = None  # a closed loop stops after these


@dataclass(frozen=True, slots=True)
class Clock:
    """What a process shares with the one that started it."""

    begin: Callable[[], float]  # waits until the common start, and returns it, on the monotonic clock
    stopped: Callable[[], bool]
    count: Callable[[int], None]  # requests that are done


@dataclass(frozen=True, slots=True)
class _Result:
    """What came of one picture."""

    status: int
    hit_ids: list[str] = field(default_factory=list)
    embedding: str = ""  # base64 of float32
    error: str | None = None


def run_share(share: Share, warm_up: int, stream: TextIO, clock: Clock) -> None:
    """All of it. Raises DataError, TargetError where the service is gone, OSError of `stream`."""
    uvloop.run(_Client(share, stream, clock).run(warm_up))


class _Client:
    def __init__(self, share: Share, stream: TextIO, clock: Clock) -> None:
        self._share = share
        self._stream = stream
        self._clock = clock
        self._start = self._last_answer = time.monotonic()
        self._unanswered = 0  # since then
        self._nonce = os.urandom(8)

    async def run(self, warm_up: int) -> None:
        share = self._share
        async with session_for(share.key) as self._session:
            await self._warm_up(_as_warm_up(share.asks, warm_up))
            self._start = self._last_answer = self._clock.begin()
            if share.times_s is None:
                await self._closed(self._asks(), share.streams, self._observe)
            else:
                await self._open(share.times_s)

    def _asks(self) -> Iterator[Ask]:
        until = self._start + (self._share.seconds or float("inf"))
        for ask in self._share.asks:
            if self._clock.stopped() or time.monotonic() >= until:
                return
            yield ask

    async def _closed(self, asks: Iterator[Ask], streams: int, act: _Act) -> None:
        async def stream() -> None:
            while group := list(itertools.islice(asks, self._share.scenario.group)):
                data = [_read(ask, self._nonce) for ask in group]
                at = time.monotonic()
                ok = await asyncio.gather(*(act(ask, one, at) for ask, one in zip(group, data, strict=True)))
                if not all(ok):
                    await asyncio.sleep(_PAUSE_S)

        await _all_or_the_first_error([stream() for _ in range(streams)])

    async def _open(self, times_s: Sequence[float]) -> None:
        acts: set[asyncio.Task[bool]] = set()
        try:
            for ask, at_s in zip(self._asks(), times_s, strict=False):
                data = _read(ask, self._nonce)  # before its time has come
                await asyncio.sleep(self._start + at_s - time.monotonic())
                acts.add(asyncio.create_task(self._observe(ask, data, self._start + at_s)))
                for done in [one for one in acts if one.done()]:
                    acts.remove(done)
                    done.result()
        finally:
            await asyncio.gather(*acts)

    async def _warm_up(self, asks: Sequence[Ask]) -> None:
        results: list[_Result] = []

        async def act(ask: Ask, data: list[bytes], _: float) -> bool:
            results.extend(self._results(ask, await self._ask(ask, data)))
            return True

        await self._closed(iter(asks), max(1, self._share.streams), act)
        # What is left of a run that is resumed may be just what fails.
        if results and not self._share.segment and not any(one.status == 200 for one in results):
            raise TargetError(f"no request of the warm-up went well, the last: {results[-1].error}")

    async def _observe(self, ask: Ask, data: list[bytes], at: float) -> bool:
        """Whether there was an answer, of any status."""
        sent = time.monotonic()
        answer = await self._ask(ask, data)
        done = time.monotonic()
        for line in self._lines(ask, answer, at, sent, done):
            self._stream.write(line)
        self._clock.count(len(ask.pictures))
        if answer.status:
            self._last_answer, self._unanswered = done, 0
            return True
        self._unanswered += 1
        if self._unanswered >= _GONE_AFTER and done - self._last_answer > _GONE_AFTER_S:
            raise TargetError(f"the service is gone, nothing came for {_GONE_AFTER_S} s: {answer.detail}")
        return False

    async def _ask(self, ask: Ask, data: list[bytes]) -> Answer:
        request = request_of(self._share.target, ask, data)
        return await send(self._session, request.method, request.url, **request.body)

    def _results(self, ask: Ask, answer: Answer) -> list[_Result]:
        """One a picture; an answer of 200 that is not what was asked for is none."""
        if answer.status != 200:
            why = f"status {answer.status}: {answer.detail}"
            return [_Result(answer.status, error=why)] * len(ask.pictures)
        try:
            results = self._read_results(ask, answer.body)
        except (TargetError, KeyError, TypeError, ValueError, OverflowError) as error:
            why = str(error) if isinstance(error, TargetError) else repr(error)
            return [_Result(0, error=f"the answer is not that of a {ask.kind}: {why}")] * len(ask.pictures)
        return results

    def _read_results(self, ask: Ask, body: Any) -> list[_Result]:
        target = self._share.target
        match ask.kind:
            case "search":
                return [_Result(200, [str(hit["id"]) for hit in body["hits"]])]
            case "embed":
                return [_Result(200, embedding=_base64(vector_of(target, body)))]
            case "bulk":
                pairs = zip(ask.pictures, body["results"], strict=True)
                return [_of_bulk(target, one) for _, one in pairs]
            case "index" | "delete":
                return [_Result(200)]

    def _lines(self, ask: Ask, answer: Answer, at: float, sent: float, done: float) -> Iterator[str]:
        for picture, result in zip(ask.pictures, self._results(ask, answer), strict=True):
            yield to_line(
                Observation(
                    query_id=picture.id,
                    domain=picture.domain,
                    kind=ask.kind,
                    status=result.status,
                    hit_ids=result.hit_ids,
                    embedding=result.embedding,
                    scheduled_s=at - self._start,
                    sent_s=sent - self._start,
                    done_s=done - self._start,
                    server_ms=answer.server_ms,
                    cache=answer.cache,
                    segment=self._share.segment,
                    error=result.error,
                )
            )


async def _all_or_the_first_error(streams: Sequence[Awaitable[None]]) -> None:
    tasks = [asyncio.ensure_future(stream) for stream in streams]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _as_warm_up(asks: Sequence[Ask], count: int) -> list[Ask]:
    """Of the first ones those that change nothing, with bytes that will not come again."""
    some = (ask for ask in asks[:count] if ask.kind not in ("index", "delete"))
    return [replace(ask, salt=-number - 1) for number, ask in enumerate(some)]


def _read(ask: Ask, nonce: bytes) -> list[bytes]:
    try:
        return read(ask, nonce)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error


def _of_bulk(target: Target, result: dict[str, Any]) -> _Result:
    if "error" in result:
        return _Result(int(result["error"]["status"]), error=str(result["error"]["detail"]))
    return _Result(200, embedding=_base64(vector_of(target, result)))


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
