"""A run in words: what was measured, whether it counts, how to repeat it. For HTML and Markdown alike."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

JSON = Mapping[str, Any]


def points(share: float) -> str:
    """A share in [0, 1] as it is read: in points."""
    return f"{share * 100:.1f}"


def interval(shares: Sequence[float]) -> str:
    """Of a share, in points."""
    return _between([points(one) for one in shares])


def interval_ms(ends: Sequence[float | None]) -> str:
    """Of a time; an end that the sample is too small for is `?`."""
    return _between(["?" if one is None else ms(one) for one in ends])


def ms(value: float) -> str:
    """Milliseconds, as exact as they are worth: 7.9, 34, 1,204."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def count(value: int, one: str, more: str | None = None) -> str:
    """`1 query`, `2,059 queries`."""
    return f"{value:,} {one if value == 1 else more or one + 's'}"


def model_name(said: JSON) -> str:
    """As the service reports it, else as it was asked for."""
    return str(said["service"].get("model", {}).get("name") or said["target"]["model"] or "a model unnamed")


def data_name(said: JSON) -> str:
    """The data set's folder."""
    return Path(said["data"]).name


def title(said: JSON) -> str:
    """The model and the data set."""
    return f"{model_name(said)} on {data_name(said)}"


def lede(said: JSON, summary: JSON) -> str:
    """What the run did, in one sentence."""
    whole = summary["all"]
    gallery = "one merged gallery" if summary["scope"] == "merged" else "the galleries of their own domains,"
    return (
        f"{count(whole['queries'], 'query', 'queries')} of {count(len(said['domains']), 'domain')} against "
        f"{gallery} of {count(whole['gallery'], 'picture')}, through the live service: {scenario(said)}."
    )


def scenario(said: JSON) -> str:
    """MLPerf's name, and the load."""
    load = said["scenario"]
    parts = [load["name"], f"{load['streams'] * load['group']} at a time"]
    if load["rate_per_s"] is not None:
        parts[1] = f"{load['rate_per_s']:g} queries/s"
    if load["bulk"] > 1:
        parts.append(f"{load['bulk']} pictures a request")
    if said["client"]["processes"] > 1:
        parts.append(f"from {said['client']['processes']} processes")
    return ", ".join(parts)


def doubts(summary: JSON) -> list[str]:
    """Reasons why the run is invalid, and checks that it is too short for, as sentences."""
    unjudged = [f"Not judged: {check}" for check in summary["not_judged"]]
    return [f"{one[:1].upper()}{one[1:]}." for one in (*summary["invalid_because"], *unjudged)]


def facts(said: JSON) -> dict[str, str]:
    """What was measured, by name."""
    service, machine, model = said["service"], said["machine"], said["service"].get("model", {})
    asked = said["queries_per_domain"]
    found = {
        "Model": _listed(model_name(said), f"{model['dim']}-d" if "dim" in model else ""),
        "Fingerprint": model.get("fingerprint", ""),
        "Precision": _listed(service.get("precision", ""), service.get("provider", "")),
        "Service": _listed(said["target"]["kind"], service.get("version", ""), said["url"]),
        "Search": _listed(_searched(said), said["scope"]),
        "Scenario": scenario(said),
        "Data": _listed(data_name(said), said["split"], said["data_fingerprint"][:16]),
        "Subset": f"{asked:,} queries a domain, seed {said['subset_seed']}" if asked else "",
        "Machine": _listed(machine["cpu"], count(machine["cores"], "core"), f"{machine['memory_gb']:g} GB"),
        "GPU": machine["gpu"] or "none",
        "System": machine["system"],
        "Versions": _listed(*(f"{name} {version}" for name, version in said["versions"].items())),
        "Commit": said["commit"],
        "Started": when(said["started"]),
    }
    return {name: value for name, value in found.items() if value}


def _searched(said: JSON) -> str:
    if said["target"]["kind"] != "uie" or said["scenario"]["name"] == "Offline":
        return "the harness's own, exact"
    by = "exact" if said["exact"] else f"HNSW, ef {said['ef'] or 'as the service has it'}"
    return _listed(said["service"].get("index", {}).get("backend", ""), by, f"k {said['k']}")


def when(started: str) -> str:
    """An ISO time, to the minute."""
    return f"{datetime.fromisoformat(started):%Y-%m-%d %H:%M %Z}".rstrip()


def settings(said: JSON) -> dict[str, str]:
    """What the service reports of itself, one value a dotted name."""
    service = dict(said["service"])
    if service.get("models") == [service.get("model")]:
        service.pop("models")  # said already
    return dict(_flat(service))


def repeat(said: JSON) -> list[str]:
    """Commands that make the run again. DATA and RUN are the reader's own folders."""
    commit = said["commit"].removesuffix("+")
    changed = "  # and what was changed and not committed" if commit != said["commit"] else ""
    index = f"python -m benchmarks index DATA --url {shlex.quote(said['url'])} --split {said['split']}"
    return [
        *([f"git checkout {commit}{changed}"] if commit else []),
        *([index] if said["target"]["kind"] == "uie" else []),
        f"python -m benchmarks replay DATA --out RUN \\\n  {_replay_options(said)}",
        "python -m benchmarks report RUN",
    ]


def _replay_options(said: JSON) -> str:
    load, target, subset = said["scenario"], said["target"], said["queries_per_domain"]
    # Offline in bulk is always of as many at a time.
    has_concurrency = load["name"] in ("ClosedLoop", "Offline") and load["bulk"] == 1
    options = {
        "url": said["url"],
        "target": target["kind"],
        "model": target["model"] or None,
        "body": target["body"] if target["kind"] == "post" else None,
        "vector": target["vector"] if target["kind"] == "post" else None,
        "scenario": load["name"],
        "concurrency": load["streams"] if has_concurrency else None,
        "rate": load["rate_per_s"],
        "seed": load["seed"] if load["name"] == "Server" else None,
        "processes": said["client"]["processes"],
        "split": said["split"],
        "scope": said["scope"],
        "self-exclusion": said["self_exclusion"],
        "ef": said["ef"],
        "k": said["k"],
        "queries-per-domain": subset,
        "subset-seed": said["subset_seed"] if subset else None,
    }
    asked = [f"--{name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    return " ".join([*asked, "--exact" if said["exact"] else "--no-exact"])


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{name}.{number}")
    elif isinstance(value, list):
        yield name, ", ".join(str(one) for one in value)
    elif value is not None:
        yield name, str(value)


def _between(ends: Sequence[str]) -> str:
    return " – ".join(ends)  # noqa: RUF001  (an en dash is what stands between numbers)


def _listed(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
