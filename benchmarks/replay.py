"""The test queries through the live service, each once, over HTTP."""

import asyncio
import time
from pathlib import Path
from typing import TextIO

from rich.console import Console

from benchmarks.client import Answer, Target, connect
from benchmarks.dataset import Dataset, Record
from benchmarks.errors import DataError, TargetError
from benchmarks.progress import progress_bar
from benchmarks.runs import Observation, Run, to_line


async def replay(data: Dataset, url: str, out: Path, concurrency: int, k: int, console: Console) -> None:
    """Closed loop: `concurrency` queries at a time. Observations go to `out`; a second call resumes.

    Raises TargetError where the service's gallery is not this data set's, RunError, DataError.
    """
    async with connect(url, concurrency) as target:
        info = await _check_gallery(data, target)
        run = Run(out)
        done = run.begin(
            {
                "url": url,
                "data": str(data.root.resolve()),
                "data_fingerprint": data.fingerprint,
                "domains": data.domains,
                "left_out": data.left_out,
                "concurrency": concurrency,
                "k": k,
                "exact": True,
                "service": info,
            }
        )
        seen = {observation.query_id for observation in done if observation.status == 200}
        segment = 1 + max((observation.segment for observation in done), default=-1)
        queries = [query for domain in data.domains for query in data.queries(domain) if query.id not in seen]
        with run.writer() as stream, progress_bar(console) as progress:
            bar = progress.add_task("replaying the queries", total=len(queries))
            replayer = _Replayer(data, target, k, segment, stream)
            waiting = iter(queries)

            async def worker() -> None:
                for query in waiting:  # shared: each query is taken once
                    await replayer.ask(query)
                    progress.advance(bar)

            await asyncio.gather(*(worker() for _ in range(concurrency)))


class _Replayer:
    """One segment of a run."""

    def __init__(self, data: Dataset, target: Target, k: int, segment: int, stream: TextIO) -> None:
        self._data = data
        self._target = target
        self._k = k
        self._segment = segment
        self._stream = stream
        self._start = time.perf_counter()

    async def ask(self, query: Record) -> None:
        try:
            image = self._data.image(query).read_bytes()
        except OSError as error:
            raise DataError(f"{self._data.image(query)} cannot be read: {error.strerror}") from error
        params = [("k", str(self._k)), ("exact", "true")]
        if self._data.gallery_split(query.domain) == "test":
            params.append(("exclude", query.id))
        sent_s = time.perf_counter() - self._start
        answer = await self._target.search(image, params)
        done_s = time.perf_counter() - self._start
        self._stream.write(to_line(self._observation(query, answer, sent_s, done_s)))

    def _observation(self, query: Record, answer: Answer, sent_s: float, done_s: float) -> Observation:
        ok = answer.status == 200
        return Observation(
            query_id=query.id,
            domain=query.domain,
            status=answer.status,
            hit_ids=[hit["id"] for hit in answer.body["hits"]] if ok else [],
            scheduled_s=sent_s,  # a closed loop sends as soon as it may
            sent_s=sent_s,
            done_s=done_s,
            server_ms=answer.server_ms,
            cache=answer.cache,
            segment=self._segment,
            error=None if ok else str(answer.body),
        )


async def _check_gallery(data: Dataset, target: Target) -> dict[str, object]:
    """What is indexed must be the merged test index, whole and alone; else R@1 means something else."""
    found = {row["name"]: row["items"] for row in (await target.get("/v1/domains"))["domains"]}
    wanted = {domain: len(data.gallery(domain)) for domain in data.domains}
    if found != wanted:
        raise TargetError(f"the service's gallery is not this data set's: it has {found}, wanted {wanted}")
    info: dict[str, object] = await target.get("/v1/info")
    return info
