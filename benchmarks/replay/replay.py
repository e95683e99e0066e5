"""The queries through the live service, each once, over HTTP: a run.

Where the target is this service, each query is a search in its index. Of any other it is an embedding, and
so is each picture of the gallery; the harness then searches exactly.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from benchmarks.datasets.dataset import Dataset, Record, Split
from benchmarks.datasets.subset import subset
from benchmarks.errors import DataError, TargetError
from benchmarks.load.driver import Client, Load, drive
from benchmarks.load.requests import LoadRequest, QueryImage, in_bulk
from benchmarks.load.scenarios import Scenario
from benchmarks.runs.provenance import provenance
from benchmarks.runs.run import Observation, Run
from benchmarks.scoring.evaluation import SelfExclusion
from benchmarks.targets.gallery import payload_of
from benchmarks.targets.service import Service, connect
from benchmarks.targets.target import Target

Scope = Literal["merged", "separate"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """What is asked; UnED's own by default (arXiv 2309.01858)."""

    split: Split = "test"
    scope: Scope = "merged"  # separate: each query searches its own domain only
    self_exclusion: SelfExclusion = "id"  # position: k + 1 are asked for and the first is dropped
    exact: bool = True
    ef: int | None = None  # of HNSW, where it is not exact; None: the service's
    k: int = 10
    queries_per_domain: int | None = None
    subset_seed: int = 0


def replay(
    data: Dataset,
    target: Target,
    protocol: Protocol,
    scenario: Scenario,
    out: Path,
    client: Client,
    console: Console,
) -> Run:
    """Every query that has no answer in `out` yet; a second call resumes.

    Raises TargetError where the service's gallery is not this data set's, and what `drive` raises.
    """
    searches = target.searches and scenario.name != "Offline"
    if not searches and not (protocol.exact and protocol.ef is None):
        raise TargetError(
            "--no-exact and --ef are for a target that searches; of embeddings the harness searches, exactly"
        )
    info = asyncio.run(_info(data, target, protocol, searches, client.key))
    run = Run(out)
    done = run.begin(_said(data, target, protocol, scenario, client, info))
    answered = {one.query_id for one in done if one.status == 200}
    records = asked_records(data, protocol, searches)
    asks = _asks(data, [one for one in records if one.id not in answered], protocol, scenario, searches)
    if asks:
        segment = 1 + max((one.segment for one in done), default=-1)
        load = Load(target, scenario, asks)
        drive(load, client, run.folder, segment, "replaying the queries", console)
    else:
        console.print(f"{out} is whole: nothing was asked again", highlight=False)
    run.pack()
    return run


def asked_records(data: Dataset, protocol: Protocol, searches: bool) -> list[Record]:
    """What is sent: the queries, by domain; where the harness searches, the gallery's pictures too."""
    queries = {domain: data.queries(domain, protocol.split) for domain in data.domains}
    if empty := [domain for domain, some in queries.items() if not some]:
        raise DataError(f"{empty[0]} has no queries in {protocol.split}.json")
    if protocol.queries_per_domain is not None:
        queries = subset(queries, protocol.queries_per_domain, protocol.subset_seed)
    asked = {one.id: one for records in queries.values() for one in records}
    if not searches:
        for domain in data.domains:
            asked.update((one.id, one) for one in data.gallery(domain, protocol.split))
    return list(asked.values())


def _asks(
    data: Dataset, records: Sequence[Record], protocol: Protocol, scenario: Scenario, searches: bool
) -> list[LoadRequest]:
    pictures = [QueryImage(one.id, one.domain, data.image(one)) for one in records]
    if not searches:
        if scenario.bulk > 1:
            return in_bulk(pictures, scenario.bulk)
        return [LoadRequest("embed", (picture,)) for picture in pictures]
    alone = {domain: data.gallery_split(domain, protocol.split) != protocol.split for domain in data.domains}
    return [LoadRequest("search", (one,), _params(one, protocol, not alone[one.domain])) for one in pictures]


def _params(picture: QueryImage, protocol: Protocol, in_gallery: bool) -> tuple[tuple[str, str], ...]:
    by_position = in_gallery and protocol.self_exclusion == "position"
    params = [("k", str(protocol.k + by_position)), ("exact", str(protocol.exact).lower())]
    if in_gallery and not by_position:
        params.append(("exclude", picture.id))
    if protocol.scope == "separate":
        params.append(("domain", picture.domain))
    if protocol.ef is not None and not protocol.exact:
        params.append(("ef", str(protocol.ef)))
    return tuple(params)


async def _info(
    data: Dataset, target: Target, protocol: Protocol, searches: bool, key: str | None
) -> dict[str, Any]:
    """What our service says of itself."""
    if not target.searches:
        return {}
    async with connect(target.url, key) as service:
        if searches:
            await _check_gallery(data, service, protocol.split)
        return await service.info()


async def _check_gallery(data: Dataset, service: Service, split: Split) -> None:
    """What is indexed must be the merged gallery, whole and alone. Raises TargetError."""
    found = await service.domains()
    wanted = {domain: len(data.gallery(domain, split)) for domain in data.domains}
    if found != wanted:
        differences = [
            f"{found.get(domain, 0):,} items of {domain}, not {wanted.get(domain, 0):,}"
            for domain in sorted({**found, **wanted})
            if found.get(domain, 0) != wanted.get(domain, 0)
        ]
        raise TargetError(
            f"the service's gallery is not this data set's: {'; '.join(differences)}. "
            "`index` adds what is missing; what is too much has to be deleted, or served apart (UIE_DATA_DIR)"
        )
    for domain in data.domains:
        gallery = data.gallery(domain, split)
        # A smaller data set takes the first places; where `index` was cut short, the last are old.
        for record in (gallery[0], gallery[-1]):
            item = await service.item(record.id)
            if item is None or item.payload != payload_of(data, record):
                raise TargetError(f"the service's gallery of {domain} is of another data set: index again")


def _said(
    data: Dataset,
    target: Target,
    protocol: Protocol,
    scenario: Scenario,
    client: Client,
    info: dict[str, Any],
) -> dict[str, Any]:
    """All that is needed to repeat it; no key."""
    return {
        "kind": "replay",
        **provenance(),
        "url": target.url,
        "target": asdict(target),
        "data": str(data.root.resolve()),
        "data_fingerprint": data.fingerprint,
        "domains": data.domains,
        "left_out": data.left_out,
        **asdict(protocol),
        "scenario": asdict(scenario),
        "client": {"processes": client.processes, "warm_up": client.warm_up},
        "service": info,
    }


def queries_of(data: Dataset, said: Mapping[str, Any]) -> dict[str, list[Record]]:
    """The queries of a run, by domain, from what its `run.json` says."""
    queries = {domain: data.queries(domain, said["split"]) for domain in said["domains"]}
    per_domain = said["queries_per_domain"]
    return subset(queries, per_domain, said["subset_seed"]) if per_domain is not None else queries


def latest_of(observations: Sequence[Observation]) -> dict[str, Observation]:
    """By query; where one was asked again, the last answer counts."""
    return {one.query_id: one for one in observations}
