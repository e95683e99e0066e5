"""Upload of a data set's gallery to the service; images that are already indexed are skipped."""

import asyncio
from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress

from benchmarks.datasets.dataset import Dataset, Record, Split
from benchmarks.progress import progress_bar
from benchmarks.tables import count
from benchmarks.targets.service import PREFLIGHT_S, Service, connect
from service.client import NewItem

_IMAGES_PER_REQUEST = 64
_UPLOADS = 2  # in flight: one is read and sent while the other is embedded
_CHECKS = 32  # in flight


async def index_gallery(
    data: Dataset, url: str, console: Console, split: Split = "test", key: str | None = None
) -> int:
    """Upload the missing images of the merged index of `split`; returns their number.

    Raises DataError, and TargetError at the first rejection. Uploaded images stay: a second call resumes.
    """
    async with connect(url, key) as service:
        counts = await service.domains()
        with progress_bar(console) as progress:
            missing, replaced = list[Record](), 0
            for domain in data.domains:
                records = data.gallery(domain, split)
                if counts.get(domain):
                    records, others = await _not_indexed(data, service, records, progress)
                    replaced += others
                missing += records
            if replaced:
                console.print(f"{count(replaced, 'item')} of another data set with the same ids: replaced")
            await _upload_all(data, service, missing, progress)
    return len(missing)


async def index_fits(data: Dataset, url: str) -> bool:
    """Return True if the index holds nothing but this gallery, or part of it, for the served model."""
    async with connect(url, timeout_s=PREFLIGHT_S) as service:
        info, counts = await service.info(), await service.domains()
    sizes = {domain: len(data.gallery(domain)) for domain in data.domains}
    alone = all(items <= sizes.get(domain, 0) for domain, items in counts.items())
    return alone and info["index"]["fingerprint"] == info["model"]["fingerprint"]


async def _not_indexed(
    data: Dataset, service: Service, records: Sequence[Record], progress: Progress
) -> tuple[list[Record], int]:
    """Return the missing images, and how many of their ids are indexed with another payload."""
    bar = progress.add_task(f"checking the index: {records[0].domain}", total=len(records))
    slots = asyncio.Semaphore(_CHECKS)

    async def is_indexed(record: Record) -> bool | None:
        """None if the id is new, False if the item is from another data set."""
        async with slots:
            item = await service.item(record.id)
        progress.advance(bar)
        return None if item is None else item.payload == payload_of(data, record)

    indexed = await asyncio.gather(*map(is_indexed, records))
    progress.remove_task(bar)
    missing = [record for record, is_there in zip(records, indexed, strict=True) if not is_there]
    return missing, indexed.count(False)


async def _upload_all(data: Dataset, service: Service, records: Sequence[Record], progress: Progress) -> None:
    bar = progress.add_task("indexing the gallery", total=len(records))
    slots = asyncio.Semaphore(_UPLOADS)

    async def upload(chunk: Sequence[Record]) -> None:
        async with slots:
            await service.upload([_item(data, record) for record in chunk])
        progress.advance(bar, len(chunk))

    starts = range(0, len(records), _IMAGES_PER_REQUEST)
    await asyncio.gather(*(upload(records[start : start + _IMAGES_PER_REQUEST]) for start in starts))


def payload_of(data: Dataset, record: Record) -> dict[str, str]:
    """Return the payload of a gallery item, which ties it to this version of the data set."""
    return {"path": record.path, "data": data.fingerprint[:12]}


def _item(data: Dataset, record: Record) -> NewItem:
    return NewItem(record.id, data.read(record), record.domain, data.label(record), payload_of(data, record))
