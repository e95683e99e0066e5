"""The gallery into the service: bulk uploads, and nothing that is there already."""

import asyncio
import json
from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress, TaskID

from benchmarks.datasets.dataset import Dataset, Record, Split
from benchmarks.errors import DataError, TargetError
from benchmarks.progress import progress_bar
from benchmarks.targets.service import Service, connect

_IMAGES_PER_REQUEST = 64
_UPLOADS = 2  # at a time: one is read and sent while the other is embedded
_CHECKS = 32


async def index_gallery(
    data: Dataset, url: str, console: Console, split: Split = "test", key: str | None = None
) -> int:
    """Upload what is missing of the merged index of `split`; returns how many pictures that were.

    Raises TargetError at the first refusal; what was uploaded stays, and a second run goes on from there.
    """
    async with connect(url, _CHECKS, key) as target:
        known = await target.domains()
        with progress_bar(console) as progress:
            missing, taken = list[Record](), 0
            for domain in data.domains:
                records = data.gallery(domain, split)
                if known.get(domain):
                    records, others = await _not_indexed(data, target, records, progress)
                    taken += others
                missing += records
            if taken:
                console.print(f"{taken:,} take the place of pictures of another data set under the same ids")
            bar = progress.add_task("indexing the gallery", total=len(missing))
            await _upload_all(data, target, missing, progress, bar)
    return len(missing)


async def index_fits(data: Dataset, url: str) -> bool:
    """Whether the service's index may become this gallery: the served model's, with nothing else in it."""
    async with connect(url, 1) as target:
        info, domains = await target.info(), await target.domains()
    sizes = {domain: len(data.gallery(domain)) for domain in data.domains}
    alone = all(items <= sizes.get(domain, 0) for domain, items in domains.items())
    return alone and info["index"]["fingerprint"] == info["model"]["fingerprint"]


async def _not_indexed(
    data: Dataset, target: Service, records: Sequence[Record], progress: Progress
) -> tuple[list[Record], int]:
    """And how many of them stand there as pictures of something else."""
    bar = progress.add_task(f"already indexed? {records[0].domain}", total=len(records))
    places = asyncio.Semaphore(_CHECKS)

    async def stands(record: Record) -> bool | None:
        async with places:
            item = await target.item(record.id)
        progress.advance(bar)
        return None if item is None else item["payload"] == payload_of(data, record)

    found = await asyncio.gather(*(stands(record) for record in records))
    progress.remove_task(bar)
    return [record for record, right in zip(records, found, strict=True) if not right], found.count(False)


async def _upload_all(
    data: Dataset, target: Service, records: Sequence[Record], progress: Progress, bar: TaskID
) -> None:
    places = asyncio.Semaphore(_UPLOADS)

    async def upload(chunk: Sequence[Record]) -> None:
        async with places:
            described = [
                {
                    "id": record.id,
                    "domain": record.domain,
                    "label": data.label(record),
                    "payload": payload_of(data, record),
                }
                for record in chunk
            ]
            images = [(record.id, _read(data, record)) for record in chunk]
            results = await target.upload(json.dumps(described), images)
        failed = [result for result in results if "error" in result]
        if failed:
            raise TargetError(f"{failed[0]['id']} was refused: {failed[0]['error']['detail']}")
        progress.advance(bar, len(chunk))

    starts = range(0, len(records), _IMAGES_PER_REQUEST)
    await asyncio.gather(*(upload(records[start : start + _IMAGES_PER_REQUEST]) for start in starts))


def payload_of(data: Dataset, record: Record) -> dict[str, str]:
    """Of a gallery's item: by it an item is known to be of this data set, as it is now."""
    return {"path": record.path, "data": data.fingerprint[:12]}


def _read(data: Dataset, record: Record) -> bytes:
    try:
        return data.image(record).read_bytes()
    except OSError as error:
        raise DataError(f"{data.image(record)} cannot be read: {error.strerror}") from error
