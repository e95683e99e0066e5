"""The paper's systems side by side, all loaded in one live service; and the oracle, made of specialists.

Specialist+Oracle takes, for each query and each gallery picture, the embedding of the specialist of its true
domain (arXiv 2309.01858): an upper bound that no deployment can have, since nobody tells it the domain. So it
is no service of its own, but put together of what the specialists answered.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.errors import RunError
from benchmarks.load.scenarios import scenario_row
from benchmarks.points.point import Workplace, is_whole, summary_of
from benchmarks.replay import Protocol, replay
from benchmarks.report import write_summary
from benchmarks.runs import Run, to_line
from benchmarks.service_process import SERVICE, running_service
from benchmarks.summary import summarise
from benchmarks.targets import Target

ORACLE = "specialist+oracle"


@dataclass(frozen=True, slots=True)
class Systems:
    """Model folders: universal ones, and specialists by their domain."""

    universal: Sequence[Path]
    specialists: Mapping[str, Path]

    @property
    def folders(self) -> list[Path]:
        """All, each once."""
        return list(dict.fromkeys([*self.universal, *self.specialists.values()]))


def replay_systems(systems: Systems, place: Workplace) -> dict[str, dict[str, Any]]:
    """Summaries by the systems' names; what is measured already is not measured again.

    Every picture is embedded by every model through one service, in bulk, and ranked exactly.
    """
    runs = {name: Run(place.folder / name) for name in map(_name, systems.folders)}
    if not all(is_whole(run) for run in runs.values()):
        settings = {
            "model": ",".join(str(folder.resolve()) for folder in systems.folders),
            "data_dir": str(place.folder / "index"),
        }
        with running_service(place.folder / "service.log", None, SERVICE, **settings) as service:
            for name, run in runs.items():
                _replay(Target("uie", service.url, name), run, place)
    if systems.specialists:
        specialists = {domain: runs[_name(folder)] for domain, folder in systems.specialists.items()}
        runs[ORACLE] = _oracle(specialists, place)
    return {name: summary_of(run) for name, run in runs.items()}


def print_systems(summaries: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """R@1 of each domain and the mean, then the mean of mMP@5; the merged gallery."""
    domains = list(next(iter(summaries.values()))["domains"])
    table = Table("system", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in (*domains, "mean R@1", "95 %", "mMP@5", "images/s"):
        table.add_column(name, justify="right")
    for name, summary in summaries.items():
        mean = summary["mean"]
        low, high = mean["R@1_interval"]
        table.add_row(
            name,
            *(f"{100 * summary['domains'][domain]['R@1']:.1f}" for domain in domains),
            f"{100 * mean['R@1']:.1f}",
            f"[{100 * low:.1f}, {100 * high:.1f}]",
            f"{100 * mean['mMP@5']:.1f}",
            "" if name == ORACLE else f"{summary['all']['images_per_s']:.0f}",
        )
    console.print(table)


def _replay(target: Target, run: Run, place: Workplace) -> None:
    if is_whole(run):
        return
    protocol = Protocol(queries_per_domain=place.queries_per_domain)
    offline = scenario_row("Offline", 1, None, 0)
    replay(place.data, target, protocol, offline, run.folder, place.client, place.console)
    write_summary(run.folder, summarise(place.data, run))


def _oracle(specialists: Mapping[str, Run], place: Workplace) -> Run:
    missing = sorted(set(place.data.domains) - specialists.keys())
    if missing:
        raise RunError(f"the oracle needs a specialist of each domain; there is none of {', '.join(missing)}")
    run = Run(place.folder / ORACLE)
    if is_whole(run):
        return run
    said = next(iter(specialists.values())).said()
    made_of = {domain: one.said()["target"]["model"] for domain, one in specialists.items()}
    run.begin({**said, "target": {**said["target"], "model": ORACLE}, "made_of": made_of})
    with (run.folder / "observations-000-00.jsonl").open("w") as stream:
        for domain, one in specialists.items():
            stream.writelines(to_line(seen) for seen in one.observations() if seen.domain == domain)
    run.pack()
    write_summary(run.folder, summarise(place.data, run))
    return run


def _name(folder: Path) -> str:
    """As the model's card says it, which is what the service calls it."""
    try:
        return str(json.loads((folder / "manifest.json").read_text())["name"])
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{folder} is not a model folder: {error}") from error
