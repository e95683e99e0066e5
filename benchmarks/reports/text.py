"""A run in words: what was measured, whether it is valid, how to repeat it; and the table of its domains."""

import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from benchmarks.replay.records import Accuracy, DomainSummary, ReplayRecord, RunSummary, Totals
from benchmarks.runs.latency import PERCENTILES
from benchmarks.runs.records import leaves
from benchmarks.scoring.measures import MEASURES
from benchmarks.tables import Table, count

_TO = " – "  # noqa: RUF001  (an en dash is the sign between numbers)


def points(share: float) -> str:
    """A share in [0, 1] as points."""
    return f"{share * 100:.1f}"


def interval(shares: Sequence[float]) -> str:
    """An interval of a share, in points."""
    return _TO.join(map(points, shares))


def interval_ms(ends_ms: Sequence[float | None]) -> str:
    """An interval of a latency; `?` is an end for which the sample is too small."""
    return _TO.join("?" if end_ms is None else ms(end_ms) for end_ms in ends_ms)


def ms(value: float) -> str:
    """Milliseconds with the digits that are significant: 7.9, 34, 1,204."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def when(started: str) -> str:
    """An ISO time, to the minute."""
    return f"{datetime.fromisoformat(started):%Y-%m-%d %H:%M %Z}".rstrip()


def model_name(record: ReplayRecord) -> str:
    """The model's name as the service reports it, or as `--model` names it."""
    return record.info.model.name or record.target.model or "unnamed model"


def data_name(record: ReplayRecord) -> str:
    """The name of the data set's folder."""
    return Path(record.data).name


def title(record: ReplayRecord) -> str:
    """The model and the data set."""
    return f"{model_name(record)} on {data_name(record)}"


def lede(record: ReplayRecord, summary: RunSummary) -> str:
    """The run in one sentence."""
    totals, is_merged = summary.totals, summary.scope == "merged"
    gallery = "one merged gallery" if is_merged else "the separate galleries of their domains,"
    return (
        f"{count(totals.queries, 'query', 'queries')} of {count(len(record.domains), 'domain')} against "
        f"{gallery} of {count(totals.gallery, 'image')}, through the live service: {scenario(record)}."
    )


def scenario(record: ReplayRecord) -> str:
    """The scenario's name, and the load."""
    load, processes = record.scenario, record.client.processes
    return _listed(
        load.name,
        f"{load.rate_per_s:g} queries/s" if record.open_loop else f"concurrency {load.streams * load.group}",
        f"{load.bulk} images per request" if load.bulk > 1 else None,
        f"from {processes} processes" if processes > 1 else None,
    )


def doubts(summary: RunSummary) -> list[str]:
    """Reasons for an invalid run, and checks that it is too short for, as sentences."""
    not_judged = [f"Not judged: {check}" for check in summary.not_judged]
    return [f"{doubt[:1].upper()}{doubt[1:]}." for doubt in (*summary.invalid_because, *not_judged)]


def confusion_columns(summary: RunSummary) -> list[str]:
    """The domains of first hits: first the queries' domains, then any other."""
    hit_domains = {domain for row in summary.confusion.values() for domain in row}
    return list(dict.fromkeys([*summary.confusion, *sorted(hit_domains)]))


def domain_table(summary: RunSummary, detailed: bool = False) -> Table:
    """One row per domain, then the means and totals; in detail, with intervals and the separate scope."""
    separate = summary.separate if detailed else None

    def cells(name: str, counts: DomainSummary | Totals, scores: Accuracy, own: Accuracy | None) -> list[str]:
        shares = [
            points(scores.share(measure)) + (f" ({interval(scores.interval(measure))})" if detailed else "")
            for measure in MEASURES
        ]
        shares += [points(own.share(measure)) for measure in MEASURES if own]
        sizes = [f"{counts.queries:,}", f"{counts.gallery:,}"]
        times = [ms(counts.percentile_ms(percent)) for percent in PERCENTILES]
        return [name, *sizes, *shares, *times, f"{counts.images_per_s:.0f}"]

    columns = ["domain", "queries", "gallery", *MEASURES]
    columns += [f"{measure} separate" for measure in MEASURES if separate]
    columns += [*(f"p{percent} ms" for percent in PERCENTILES), "images/s"]
    alone = separate.domains if separate else {}
    rows = [cells(name, row, row, alone.get(name)) for name, row in summary.domains.items()]
    mean = cells("mean", summary.totals, summary.mean, separate.mean if separate else None)
    return Table(columns, rows, footer=mean)


def facts(record: ReplayRecord) -> dict[str, str]:
    """The configuration of the run, by name."""
    service, machine, per_domain = record.info, record.machine, record.queries_per_domain
    model = service.model
    rows = {
        "Model": _listed(model_name(record), f"{model.dim}-d" if model.dim else None),
        "Fingerprint": model.fingerprint,
        "Precision": _listed(service.precision, service.provider),
        "Service": _listed(record.target.kind, service.version, record.url),
        "Search": _listed(_search(record), record.scope),
        "Scenario": scenario(record),
        "Data": _listed(data_name(record), record.split, record.data_fingerprint[:16]),
        "Subset": f"{per_domain:,} queries per domain, seed {record.subset_seed}" if per_domain else None,
        "Machine": _listed(machine.cpu, count(machine.cores, "core"), f"{machine.memory_gb:g} GB"),
        "GPU": machine.gpu or "none",
        "System": machine.system,
        "Versions": _listed(*(f"{name} {version}" for name, version in record.versions.items())),
        "Commit": record.commit,
        "Started": when(record.started),
    }
    return {name: value for name, value in rows.items() if value}


def _search(record: ReplayRecord) -> str:
    if not record.target.searches or record.scenario.name == "Offline":
        return "by the harness, exact"
    mode = "exact" if record.exact else f"HNSW, ef {record.ef or 'of the service'}"
    return _listed(record.info.index.backend, mode, f"k {record.k}")


def settings(record: ReplayRecord) -> dict[str, str]:
    """The service's description of itself, by dotted name; without `models` if that only repeats `model`."""
    repeated = ("models.",) if record.info.models == (record.info.model,) else ()
    return {
        name: ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in leaves(record.service)
        if value not in (None, {}) and not name.startswith(repeated)
    }


def repeat(record: ReplayRecord) -> list[str]:
    """Commands that repeat the run. DATA and RUN are the reader's own folders."""
    commit = record.commit.removesuffix("+")
    changed = "  # plus uncommitted changes" if commit != record.commit else ""
    index = f"python -m benchmarks index DATA --url {shlex.quote(record.url)} --split {record.split}"
    return [
        *([f"git checkout {commit}{changed}"] if commit else []),
        *([index] if record.target.searches else []),
        f"python -m benchmarks replay DATA --out RUN \\\n  {_replay_options(record)}",
        "python -m benchmarks report RUN",
    ]


def _replay_options(record: ReplayRecord) -> str:
    load, target, subset = record.scenario, record.target, record.queries_per_domain
    # Offline in bulk has a fixed concurrency.
    has_concurrency = load.name in ("ClosedLoop", "Offline") and load.bulk == 1
    options = {
        "url": record.url,
        "target": target.kind,
        "model": target.model or None,
        "body": target.body if target.kind == "post" else None,
        "vector": target.vector if target.kind == "post" else None,
        "scenario": load.name,
        "concurrency": load.streams if has_concurrency else None,
        "rate": load.rate_per_s,
        "seed": load.seed if load.name == "Server" else None,
        "processes": record.client.processes,
        "split": record.split,
        "scope": record.scope,
        "self-exclusion": record.self_exclusion,
        "ef": record.ef,
        "k": record.k,
        "queries-per-domain": subset,
        "subset-seed": record.subset_seed if subset else None,
    }
    words = [f"--{name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    return " ".join([*words, "--exact" if record.exact else "--no-exact"])


def _listed(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)
