"""The paper's systems side by side, all loaded in one live service; and the oracle, made of specialists.

Specialist+Oracle takes, for each query and each gallery picture, the embedding of the specialist of its true
domain (arXiv 2309.01858): an upper bound that no deployment can have, since nobody tells it the domain. So it
is no service of its own, but put together of what the specialists answered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.errors import RunError
from benchmarks.load.scenarios import scenario_row
from benchmarks.operating_points.claim import manifest_of
from benchmarks.operating_points.point import (
    Workplace,
    asked_of,
    begin,
    finish,
    invalid_of,
    is_whole,
    port_of,
    print_invalid,
    summary_of,
)
from benchmarks.replay.replay import Protocol, replay
from benchmarks.runs.run import Run, to_line
from benchmarks.targets.process import SERVICE, running_service
from benchmarks.targets.target import Target

ORACLE = "specialist+oracle"


@dataclass(frozen=True, slots=True)
class Systems:
    """Model folders: universal ones, and specialists by their domain."""

    universal: Sequence[Path]
    specialists: Mapping[str, Path]

    @property
    def folders(self) -> list[Path]:
        """All, each once, whole paths."""
        folders = [*self.universal, *self.specialists.values()]
        return list(dict.fromkeys(folder.resolve() for folder in folders))


def replay_systems(systems: Systems, place: Workplace) -> dict[str, Run]:
    """Whole runs by the systems' names; what is measured already is not measured again.

    Every picture is embedded by every model through one service, in bulk, and ranked exactly.

    Raises RunError where two models have one name, and what `measure` raises.
    """
    lacking = sorted(set(place.data.domains) - systems.specialists.keys())
    if systems.specialists and lacking:
        raise RunError(f"the oracle needs a specialist of each domain; there is none of {', '.join(lacking)}")
    manifests = [manifest_of(folder) for folder in systems.folders]
    runs = {said["name"]: Run(place.folder / said["name"]) for said in manifests}
    if len(runs) < len(manifests):
        raise RunError(f"two models have one name: {', '.join(said['name'] for said in manifests)}")
    for said in manifests:
        begin(runs[said["name"]], {"model": said["fingerprint"], **asked_of(place)})
    missing = {name: run for name, run in runs.items() if not is_whole(run)}
    if missing:
        settings = {
            "model": ",".join(str(folder) for folder in systems.folders),
            "data_dir": str(place.folder / "index" / manifests[0]["fingerprint"]),
        }
        log, port = place.folder / "service.log", port_of(missing.values())
        with running_service(log, port, SERVICE, **settings) as service:
            for name, run in missing.items():
                _replay(Target("uie", service.url, name), run, place)
    if systems.specialists:
        runs[ORACLE] = _oracle(systems.specialists, runs, place)
    return runs


_REST = ("mean R@1", "95 %", "mMP@5", "images/s")


def print_systems(runs: Mapping[str, Run], console: Console) -> None:
    """The means, then R@1 of each domain, against the merged gallery; names are whole on 80 columns."""
    split = 1 + len(_domains(runs))
    for first, names, cells in (
        ("system", _REST, slice(split, None)),
        ("R@1", _domains(runs), slice(1, split)),
    ):
        table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
        table.add_column(first, no_wrap=True)
        for name in names:
            table.add_column(name, justify="right", overflow="fold")
        for row in _rows(runs):
            table.add_row(row[0], *row[cells])
        console.print(table)
    print_invalid(invalid_of(runs.values()), console)


def to_markdown(runs: Mapping[str, Run]) -> str:
    """The same as a page."""
    head = ["system", *_domains(runs), *_REST]
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *_rows(runs)]
    invalid = [f"\ninvalid: {name}: {why}" for name, why in invalid_of(runs.values()).items()]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), *invalid]) + "\n"


def to_json(runs: Mapping[str, Run]) -> dict[str, Any]:
    """The means, and why a system's must not be believed."""
    invalid = invalid_of(runs.values())
    return {
        name: {**summary_of(run)["mean"], "invalid_because": invalid.get(run.folder.name)}
        for name, run in runs.items()
    }


def _domains(runs: Mapping[str, Run]) -> list[str]:
    return list(summary_of(next(iter(runs.values())))["domains"])


def _rows(runs: Mapping[str, Run]) -> list[list[str]]:
    invalid = invalid_of(runs.values())
    rows = []
    for name, run in runs.items():
        summary = summary_of(run)
        mean = summary["mean"]
        low, high = mean["R@1_interval"]
        rows.append(
            [
                name + ("!" if run.folder.name in invalid else ""),
                *(f"{100 * summary['domains'][domain]['R@1']:.1f}" for domain in _domains(runs)),
                f"{100 * mean['R@1']:.1f}",
                f"[{100 * low:.1f}, {100 * high:.1f}]",
                f"{100 * mean['mMP@5']:.1f}",
                "" if name == ORACLE else f"{summary['all']['images_per_s']:.0f}",
            ]
        )
    return rows


def _replay(target: Target, run: Run, place: Workplace) -> None:
    protocol = Protocol(queries_per_domain=place.queries_per_domain)
    offline = scenario_row("Offline", 1, None, 0)
    replay(place.data, target, protocol, offline, run.folder, place.client, place.console)
    finish(run, place)


def _oracle(specialists: Mapping[str, Path], runs: Mapping[str, Run], place: Workplace) -> Run:
    manifests = {domain: manifest_of(folder) for domain, folder in specialists.items()}
    run = Run(place.folder / ORACLE)
    fingerprints = {domain: said["fingerprint"] for domain, said in manifests.items()}
    begin(run, {"specialists": fingerprints, **asked_of(place)})
    if is_whole(run):
        return run
    of_domain = {domain: runs[said["name"]] for domain, said in manifests.items()}
    said = of_domain[min(of_domain)].said()
    made_of = {domain: one["name"] for domain, one in manifests.items()}
    run.begin({**said, "target": {**said["target"], "model": ORACLE}, "made_of": made_of})
    try:
        with (run.folder / "observations-000-00.jsonl").open("w") as stream:
            for number, (domain, one) in enumerate(of_domain.items()):
                stream.writelines(
                    # Clocks of their own, so segments of their own: times add up, and do not overlap.
                    to_line(replace(seen, segment=seen.segment * len(of_domain) + number))
                    for seen in one.observations()
                    if seen.domain == domain
                )
    except OSError as error:
        raise RunError(f"{run.folder} cannot be written: {error.strerror}") from error
    run.pack()
    finish(run, place)
    return run
