"""Replay: each query is sent once to the live service, over HTTP.

If the target is this service, each query is a search in its index. From any other target the harness requests
embeddings of the queries and of the gallery, and searches exactly.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.datasets.dataset import Dataset, Record, Split, subset
from benchmarks.errors import DataError, TargetError
from benchmarks.load.driver import Client, drive
from benchmarks.load.requests import Load, LoadRequest, QueryImage, in_bulk
from benchmarks.load.scenarios import Scenario
from benchmarks.replay.records import ClientRecord, Protocol, ReplayRecord
from benchmarks.runs.provenance import provenance
from benchmarks.runs.run import Observation, Run
from benchmarks.tables import count
from benchmarks.targets.gallery import payload_of
from benchmarks.targets.service import PREFLIGHT_S, Service, connect
from benchmarks.targets.target import Target


def replay(
    data: Dataset,
    target: Target,
    protocol: Protocol,
    scenario: Scenario,
    out: Path,
    client: Client,
    console: Console,
) -> Run:
    """Send every query that has no answer in `out` yet; a second call resumes.

    Raises TargetError if the service's gallery is not this data set's, and what `drive` raises.
    """
    searches = target.searches and scenario.name != "Offline"
    if not searches and not (protocol.exact and protocol.ef is None):
        raise TargetError(
            "--no-exact and --ef require a target that searches; the harness itself searches exactly"
        )
    run = Run(out)
    record = ReplayRecord(
        **vars(provenance()),
        **asdict(protocol),
        url=target.url,
        target=target,
        data=str(data.root.resolve()),
        data_fingerprint=data.fingerprint,
        domains=data.domains,
        left_out=data.left_out,
        scenario=scenario,
        client=ClientRecord(client.processes, client.warm_up, client.limits),
        service=asyncio.run(_info(data, target, protocol, searches, client.key)),
    )
    observations = run.begin(record)
    answered = {observation.query_id for observation in observations if observation.status == 200}
    records = [image for image in records_to_send(data, protocol, searches) if image.id not in answered]
    requests = _requests(data, records, protocol, scenario, searches)
    if requests:
        segment = 1 + max((observation.segment for observation in observations), default=-1)
        drive(Load(target, scenario, requests), client, run.folder, segment, "replaying the queries", console)
    else:
        console.print(f"{out} is complete; no queries sent", highlight=False)
    run.pack()
    return run


def records_to_send(data: Dataset, protocol: Protocol, searches: bool) -> list[Record]:
    """The queries, by domain, and the gallery too if the harness searches."""
    queries = queries_of(data, protocol, data.domains)
    if empty := [domain for domain, records in queries.items() if not records]:
        raise DataError(f"{empty[0]} has no queries in {protocol.split}.json")
    galleries = [] if searches else [data.gallery(domain, protocol.split) for domain in data.domains]
    by_id = {record.id: record for records in [*queries.values(), *galleries] for record in records}
    return list(by_id.values())


def _requests(
    data: Dataset, records: Sequence[Record], protocol: Protocol, scenario: Scenario, searches: bool
) -> list[LoadRequest]:
    images = [QueryImage(record.id, record.domain, data.image(record)) for record in records]
    if not searches and scenario.bulk > 1:
        return in_bulk(images, scenario.bulk)
    if not searches:
        return [LoadRequest("embed", (image,)) for image in images]
    in_gallery = {
        domain: data.gallery_split(domain, protocol.split) == protocol.split for domain in data.domains
    }
    return [
        LoadRequest("search", (image,), _params(image, protocol, in_gallery[image.domain]))
        for image in images
    ]


def _params(image: QueryImage, protocol: Protocol, in_gallery: bool) -> tuple[tuple[str, str], ...]:
    by_position = in_gallery and protocol.self_exclusion == "position"
    params = [("k", str(protocol.k + by_position)), ("exact", str(protocol.exact).lower())]
    if in_gallery and not by_position:
        params.append(("exclude", image.id))
    if protocol.scope == "separate":
        params.append(("domain", image.domain))
    if protocol.ef is not None and not protocol.exact:
        params.append(("ef", str(protocol.ef)))
    return tuple(params)


async def _info(
    data: Dataset, target: Target, protocol: Protocol, searches: bool, key: str | None
) -> dict[str, Any]:
    """The service's `GET /v1/info`; empty for another target."""
    if not target.searches:
        return {}
    async with connect(target.url, key, PREFLIGHT_S) as service:
        if searches:
            await _check_gallery(data, service, protocol.split)
        return await service.info()


async def _check_gallery(data: Dataset, service: Service, split: Split) -> None:
    """Check that the index holds the merged gallery and nothing else. Raises TargetError."""
    indexed = await service.domains()
    expected = {domain: len(data.gallery(domain, split)) for domain in data.domains}
    differences = [
        f"{count(indexed.get(domain, 0), 'item')} of {domain}, not {expected.get(domain, 0):,}"
        for domain in sorted({**indexed, **expected})
        if indexed.get(domain, 0) != expected.get(domain, 0)
    ]
    if differences:
        raise TargetError(
            f"the service's gallery is not this data set's: {'; '.join(differences)}. "
            "`index` uploads missing items; delete the others, or serve from another UIE_DATA_DIR"
        )
    for domain in data.domains:
        gallery = data.gallery(domain, split)
        # The first item differs if a smaller data set was indexed, the last if `index` was interrupted.
        for record in (gallery[0], gallery[-1]):
            item = await service.item(record.id)
            if item is None or item.payload != payload_of(data, record):
                raise TargetError(f"the service's gallery of {domain} is of another data set: index again")


def queries_of(data: Dataset, protocol: Protocol, domains: Sequence[str]) -> dict[str, list[Record]]:
    """The queries of a run, by domain."""
    queries = {domain: data.queries(domain, protocol.split) for domain in domains}
    if protocol.queries_per_domain is None:
        return queries
    return subset(queries, protocol.queries_per_domain, protocol.subset_seed)


def latest_of(observations: Sequence[Observation]) -> dict[str, Observation]:
    """The last observation of each query: if it was sent again, only the last response counts."""
    return {observation.query_id: observation for observation in observations}
