"""Valid and invalid requests, mixed and sent concurrently; every response is compared with the contract.

Slow and disconnecting clients use raw connections: HTTP clients offer no such behaviour.
"""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray
from yarl import URL

from benchmarks.errors import TargetError
from benchmarks.soak.faults import Row, faults, valid

Vector = NDArray[np.float64]

_INVALID_SHARE = 0.1
_IMAGES = 60
_TOLERANCE = 1e-5
_TIMEOUT_S = 120
_CHUNK_BYTES = 1000
_PAUSE_S = 0.9  # between bytes; not a divisor of the timeout, so that no byte is in transit at its end


@dataclass(frozen=True)
class Outcome:
    """The outcome of one request."""

    row: Row
    wrong: str | None  # the difference from the contract


@dataclass(frozen=True)
class _Response:
    status: int
    content_type: str
    body: bytes


async def send_all(url: str, requests: int, concurrency: int, done: Callable[[Outcome], None]) -> None:
    """Send `requests`, a tenth of them invalid, in random order; `done` is called with each outcome.

    Raises TargetError if the service fails to embed an image without any load.
    """
    rows = valid(_IMAGES)
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
        references = [await _reference(session, row) for row in rows]
        waiting = _mixed(requests, list(zip(rows, references, strict=True)))

        async def worker() -> None:
            for row, reference in waiting:
                done(Outcome(row, await _checked(session, url, row, reference)))

        await asyncio.gather(*(worker() for _ in range(concurrency)))


def _mixed(requests: int, valid_rows: Sequence[tuple[Row, Vector]]) -> Iterator[tuple[Row, Vector | None]]:
    invalid_rows = itertools.cycle((row, None) for row in faults())
    valid_cycle = itertools.cycle(valid_rows)
    invalid = [number < requests * _INVALID_SHARE for number in range(requests)]
    for is_invalid in np.random.default_rng(0).permutation(invalid):
        yield next(invalid_rows if is_invalid else valid_cycle)


async def _reference(session: aiohttp.ClientSession, row: Row) -> Vector:
    response = await _send(session, row)
    if response.status != 200:
        raise TargetError(f"{row.name} failed ({response.status}): {response.body[:200]!r}")
    return np.asarray(json.loads(response.body)["embedding"])


async def _checked(
    session: aiohttp.ClientSession, url: str, row: Row, reference: Vector | None
) -> str | None:
    try:
        if row.manner in ("at once", "chunked"):
            response = await _send(session, row)
        else:
            response = await asyncio.wait_for(_misbehave(url, row), _TIMEOUT_S)
        return _difference(row, response, reference)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


async def _send(session: aiohttp.ClientSession, row: Row) -> _Response:
    data = _chunks(row.body) if row.manner == "chunked" else row.body
    headers = {"Content-Type": row.content_type, **row.headers}
    path = URL(row.path, encoded=True)
    async with session.request(row.method, path, data=data, headers=headers) as response:
        return _Response(response.status, response.headers.get("Content-Type", ""), await response.read())


async def _chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), _CHUNK_BYTES):
        yield body[start : start + _CHUNK_BYTES]


async def _misbehave(url: str, row: Row) -> _Response:
    target = URL(url)
    reader, writer = await asyncio.open_connection(target.host, target.port)
    lines = [f"{row.method} {row.path} HTTP/1.1", "Host: localhost", f"Content-Type: {row.content_type}"]
    head = "\r\n".join([*lines, f"Content-Length: {len(row.body)}", "", ""]).encode()
    try:
        if row.manner == "slowly":
            writer.write(head)
            return await _send_slowly(reader, writer, row.body)
        sent = row.body if row.manner == "abandoned" else row.body[: len(row.body) // 2]
        writer.write(head + sent)
        await writer.drain()
        await asyncio.sleep(0.01)  # the service has started to process it
        return _Response(0, "", b"")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _send_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> _Response:
    receiving = asyncio.create_task(_received(reader))
    try:
        for byte in body:
            writer.write(bytes([byte]))
            if (await asyncio.wait([receiving], timeout=_PAUSE_S))[0]:
                break
        head, _, content = (await receiving).partition(b"\r\n\r\n")
    finally:
        receiving.cancel()
    status, *headers = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in headers)}
    return _Response(int(status.split(" ")[1]), fields.get("content-type", ""), content)


async def _received(reader: asyncio.StreamReader) -> bytes:
    """Read until the service closes the connection, or resets it because a byte was in transit."""
    content = b""
    with contextlib.suppress(ConnectionResetError):
        while part := await reader.read(2**16):
            content += part
    return content


def _difference(row: Row, response: _Response, reference: Vector | None) -> str | None:
    if response.status != row.status:
        return f"{response.status} instead of {row.status}: {response.body[:200]!r}"
    if row.status == 0:
        return None
    body: dict[str, Any] = json.loads(response.body)
    if reference is None:
        is_problem = response.content_type == "application/problem+json" and body["status"] == row.status
        return None if is_problem and body["type"] == row.slug else f"not a {row.slug}: {body}"
    difference = float(np.abs(np.asarray(body["embedding"]) - reference).max())
    return None if difference <= _TOLERANCE else f"the embedding differs by {difference:.2g}"
