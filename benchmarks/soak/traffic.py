"""Good and broken requests mixed, sent side by side; every answer is held against the contract.

The connections of clients that drip or leave are opened by hand: no HTTP client behaves so badly.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray
from yarl import URL

from benchmarks.errors import TargetError
from benchmarks.soak.faults import Row, faults, good

Vector = NDArray[np.float64]

_BROKEN_SHARE = 0.1
_PICTURES = 60
_TOLERANCE = 1e-5
_TIMEOUT_S = 120
_CHUNK_BYTES = 1000
# Not a whole second: a byte that is on its way while the service closes the connection resets it, and the
# answer is lost with it. That is TCP's, and nothing that the service could say better.
_DRIP_S = 0.9


@dataclass(frozen=True)
class Outcome:
    """What became of one request."""

    row: Row
    wrong: str | None  # what was otherwise than the contract says


@dataclass(frozen=True)
class _Answer:
    status: int
    content_type: str
    body: bytes


async def send_all(
    url: str, requests: int, concurrency: int, done: Callable[[Outcome], None], seed: int = 0
) -> None:
    """`requests` of which a tenth is broken, all kinds in turn, in a random order; `done` hears of each.

    Raises TargetError where the service does not embed a picture that nothing else disturbs.
    """
    rows = good(_PICTURES)
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
        unloaded = [await _unloaded(session, row) for row in rows]
        waiting = _mixed(requests, list(zip(rows, unloaded, strict=True)), seed)

        async def worker() -> None:
            for row, wanted in waiting:
                done(Outcome(row, await _judged(session, url, row, wanted)))

        await asyncio.gather(*(worker() for _ in range(concurrency)))


def _mixed(
    requests: int, goods: Sequence[tuple[Row, Vector]], seed: int
) -> Iterator[tuple[Row, Vector | None]]:
    catalogue = faults()
    broken = [number < requests * _BROKEN_SHARE for number in range(requests)]
    bad, fine = 0, 0
    for is_broken in np.random.default_rng(seed).permutation(broken):
        if is_broken:
            yield catalogue[bad % len(catalogue)], None
            bad += 1
        else:
            yield goods[fine % len(goods)]
            fine += 1


async def _unloaded(session: aiohttp.ClientSession, row: Row) -> Vector:
    answer = await _ask(session, row)
    if answer.status != 200:
        raise TargetError(f"{row.name} failed ({answer.status}): {answer.body[:200]!r}")
    return np.asarray(json.loads(answer.body)["embedding"])


async def _judged(session: aiohttp.ClientSession, url: str, row: Row, wanted: Vector | None) -> str | None:
    try:
        if row.manner in ("whole", "chunked"):
            answer = await _ask(session, row)
        else:
            answer = await asyncio.wait_for(_misbehave(url, row), _TIMEOUT_S)
        return _difference(row, answer, wanted)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


async def _ask(session: aiohttp.ClientSession, row: Row) -> _Answer:
    data = _chunks(row.body) if row.manner == "chunked" else row.body
    headers = {"Content-Type": row.content_type, **row.headers}
    path = URL(row.path, encoded=True)
    async with session.request(row.method, path, data=data, headers=headers) as response:
        return _Answer(response.status, response.headers.get("Content-Type", ""), await response.read())


async def _chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), _CHUNK_BYTES):
        yield body[start : start + _CHUNK_BYTES]


async def _misbehave(url: str, row: Row) -> _Answer:
    target = URL(url)
    reader, writer = await asyncio.open_connection(target.host, target.port)
    lines = [f"{row.method} {row.path} HTTP/1.1", "Host: x", f"Content-Type: {row.content_type}"]
    head = "\r\n".join([*lines, f"Content-Length: {len(row.body)}", "", ""]).encode()
    try:
        if row.manner == "drips":
            writer.write(head)
            return await _drip(reader, writer, row.body)
        sent = row.body if row.manner == "leaves late" else row.body[: len(row.body) // 2]
        writer.write(head + sent)
        await writer.drain()
        await asyncio.sleep(0.01)  # the service has begun with it
        return _Answer(0, "", b"")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> _Answer:
    heard = asyncio.create_task(reader.read())  # until the service closes the connection
    try:
        for byte in body:
            writer.write(bytes([byte]))
            if (await asyncio.wait([heard], timeout=_DRIP_S))[0]:
                break
        head, _, content = (await heard).partition(b"\r\n\r\n")
    finally:
        heard.cancel()
    status, *headers = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in headers)}
    return _Answer(int(status.split(" ")[1]), fields.get("content-type", ""), content)


def _difference(row: Row, answer: _Answer, wanted: Vector | None) -> str | None:
    if answer.status != row.status:
        return f"{answer.status} in the place of {row.status}: {answer.body[:200]!r}"
    if row.status == 0:
        return None
    said: dict[str, Any] = json.loads(answer.body)
    if wanted is None:
        is_problem = answer.content_type == "application/problem+json" and said["status"] == row.status
        return None if is_problem and said["type"] == row.slug else f"not a {row.slug}: {said}"
    off = float(np.abs(np.asarray(said["embedding"]) - wanted).max())
    return None if off <= _TOLERANCE else f"the embedding is off by {off:.2g}"
