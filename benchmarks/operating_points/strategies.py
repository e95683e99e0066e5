"""The paper's systems, all loaded in one live service, and the oracle made of the specialists.

Specialist+Oracle takes, for each query and each gallery image, the embedding of the specialist of its true
domain (arXiv 2309.01858): an upper bound that no deployment can reach, since the domain is not known there.
It is not served, but composed of the specialists' embeddings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.errors import RunError
from benchmarks.files import write_atomically
from benchmarks.load.scenarios import scenario_row
from benchmarks.operating_points.inputs import manifest_of
from benchmarks.operating_points.point import (
    Workspace,
    begin,
    finish,
    invalid_of,
    port_of,
    print_invalid,
    summary_of,
)
from benchmarks.replay.records import Protocol, ReplayRecord
from benchmarks.replay.replay import replay
from benchmarks.runs.records import to_json
from benchmarks.runs.run import Run, to_line
from benchmarks.tables import Table
from benchmarks.targets.process import running_service
from benchmarks.targets.target import Target

ORACLE = "specialist+oracle"


@dataclass(frozen=True, slots=True)
class Systems:
    """Model folders: universal ones, and specialists by domain."""

    universal: Sequence[Path]
    specialists: Mapping[str, Path]

    @property
    def folders(self) -> list[Path]:
        """The absolute paths of all folders, without duplicates."""
        folders = [*self.universal, *self.specialists.values()]
        return list(dict.fromkeys(folder.resolve() for folder in folders))


def replay_systems(systems: Systems, workspace: Workspace) -> dict[str, Run]:
    """Complete runs by the names of the systems; complete runs are reused.

    One service embeds every image with every model, in bulk, and the harness searches exactly.

    Raises RunError if two models have the same name, and what `measure` raises.
    """
    lacking = sorted(set(workspace.data.domains) - systems.specialists.keys())
    if systems.specialists and lacking:
        raise RunError(f"the oracle needs a specialist for each domain; missing: {', '.join(lacking)}")
    manifests = [manifest_of(folder) for folder in systems.folders]
    runs = {manifest.name: Run(workspace.folder / manifest.name) for manifest in manifests}
    if len(runs) < len(manifests):
        names = ", ".join(manifest.name for manifest in manifests)
        raise RunError(f"two models have the same name: {names}")
    missing = {
        manifest.name: runs[manifest.name]
        for manifest in manifests
        if not begin(runs[manifest.name], {"model": manifest.fingerprint}, workspace)
    }
    if missing:
        settings = {
            "model": ",".join(str(folder) for folder in systems.folders),
            "data_dir": str(workspace.folder / "index" / manifests[0].fingerprint),
        }
        log, port = workspace.folder / "service.log", port_of(missing.values())
        protocol = Protocol(queries_per_domain=workspace.queries_per_domain)
        bulk = scenario_row("Offline", 1, None, 0)
        with running_service(log, port, **settings) as service:
            for name, run in missing.items():
                target = Target("uie", service.url, name)
                out, client, console = run.folder, workspace.client, workspace.console
                replay(workspace.data, target, protocol, bulk, out, client, console)
                finish(run, workspace)
    if systems.specialists:
        runs[ORACLE] = _oracle(systems.specialists, runs, workspace)
    return runs


def print_systems(runs: Mapping[str, Run], console: Console) -> None:
    """Print the means, then R@1 by domain, in the merged gallery; system names fit into 80 columns."""
    means, domains = _tables(runs)
    means.print(console)
    domains.print(console)
    print_invalid(invalid_of(runs.values()), console)


def to_markdown(runs: Mapping[str, Run]) -> str:
    """The systems in Markdown, one row each."""
    means, domains = _tables(runs)
    rows = [[*row, *mean[1:]] for row, mean in zip(domains.rows, means.rows, strict=True)]
    table = Table(("system", *domains.columns[1:], *means.columns[1:]), rows).to_markdown()
    invalid = [f"\ninvalid: {name}: {reason}" for name, reason in invalid_of(runs.values()).items()]
    return "\n".join([table, *invalid]) + "\n"


def strategies_to_json(runs: Mapping[str, Run]) -> dict[str, Any]:
    """The means of each system, and the reason if it is invalid."""
    invalid = invalid_of(runs.values())
    return {
        name: {**to_json(summary_of(run).mean), "invalid_because": invalid.get(run.folder.name)}
        for name, run in runs.items()
    }


def _tables(runs: Mapping[str, Run]) -> tuple[Table, Table]:
    """The means, and R@1 by domain; an invalid system is marked with `!`."""
    means, domains = [], []
    for name, run in runs.items():
        summary = summary_of(run)
        mean, marked = summary.mean, name if summary.valid else f"{name}!"
        low, high = mean.r_at_1_interval
        accuracy = (f"{100 * mean.r_at_1:.1f}", f"[{100 * low:.1f}, {100 * high:.1f}]")
        rate = "" if run.folder.name == ORACLE else f"{summary.totals.images_per_s:.0f}"
        means.append([marked, *accuracy, f"{100 * mean.mmp_at_5:.1f}", rate])
        domains.append([marked, *(f"{100 * row.r_at_1:.1f}" for row in summary.domains.values())])
    names = tuple(summary.domains)
    return (
        Table(("system", "mean R@1", "95 %", "mMP@5", "images/s"), means, padding=0),
        Table(("R@1", *names), domains, wrapped=names, padding=0),
    )


def _oracle(specialists: Mapping[str, Path], runs: Mapping[str, Run], workspace: Workspace) -> Run:
    manifests = {domain: manifest_of(folder) for domain, folder in specialists.items()}
    run = Run(workspace.folder / ORACLE)
    fingerprints = {domain: manifest.fingerprint for domain, manifest in manifests.items()}
    if begin(run, {"specialists": fingerprints}, workspace):
        return run
    run_of = {domain: runs[manifest.name] for domain, manifest in manifests.items()}
    record = run_of[min(run_of)].record(ReplayRecord)
    made_of = {domain: manifest.name for domain, manifest in manifests.items()}
    run.begin(replace(record, target=replace(record.target, model=ORACLE), made_of=made_of))
    lines = [
        # Each run has a separate clock, so each gets separate segments: their times add up.
        to_line(replace(observation, segment=observation.segment * len(run_of) + number))
        for number, (domain, specialist) in enumerate(run_of.items())
        for observation in specialist.observations()
        if observation.domain == domain
    ]
    write_atomically(run.folder / "observations-000-00.jsonl", "".join(lines))
    run.pack()
    finish(run, workspace)
    return run
