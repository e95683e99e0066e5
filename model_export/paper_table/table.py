"""The results as Markdown, CSV and a plot."""

import csv
import platform
import shutil
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.datasets.dataset import Dataset
from model_export.descriptors.images import class_counts
from model_export.folders import atomic_file
from model_export.paper_table.run import ORACLE, Result
from service.process import usable_cpus

_MEASURES = ("R@1", "mMP@5")


def write_table(results: list[Result], data: Dataset, command: str, notes: str, folder: Path) -> Path:
    """Write `<data set>.md`, `.csv` and `.png`, with `notes` on the strategies. Return the Markdown file."""
    name = data.root.resolve().name
    domains = [domain for domain in results[0].test if domain != "mean"]
    conditions = _conditions(results, data, domains, command)  # reads the commit before files change
    with atomic_file(folder / f"{name}.csv") as unfinished:
        _write_csv(results, unfinished)
    with atomic_file(folder / f"{name}.png") as unfinished:
        _plot(results, unfinished)
    parts = [f"# The paper's systems on {name}", conditions, _size(data), notes]
    for measure in _MEASURES:
        parts += [f"## {measure}, merged index, test split, in points", _markdown(results, domains, measure)]
    parts += [f"![mean R@1 of every system]({name}.png)", _reading(results)]
    file = folder / f"{name}.md"
    with atomic_file(file) as unfinished:
        unfinished.write_text("\n\n".join(parts) + "\n")
    return file


def strategy_notes(data: Dataset, strategies: Path) -> str:
    """Return the notes on these strategies for exactly this data, if there are any."""
    file = strategies / f"notes-{data.fingerprint[:16]}.md"
    return file.read_text() if file.exists() else ""


def best_on_validation(results: list[Result]) -> Result:
    """Return the universal model with the highest mean R@1 on the validation split."""
    universal = [result for result in results if _is_universal(result)]
    return max(universal, key=lambda result: result.val_r_at_1)


def _is_universal(result: Result) -> bool:
    return result.cpu_s is not None and result.row != ORACLE and not result.row.startswith("specialist: ")


def _by_row(results: list[Result]) -> dict[str, list[Result]]:
    rows: dict[str, list[Result]] = {}
    for result in results:
        rows.setdefault(result.row, []).append(result)
    return rows


def _cell(values: Iterable[float]) -> str:
    """Format the mean in percent, with the standard deviation from three seeds on."""
    percent = 100 * np.array(list(values))
    spread = f" ± {percent.std(ddof=1):.1f}" if len(percent) > 2 else ""
    return f"{percent.mean():.1f}{spread}"


def _markdown(results: list[Result], domains: list[str], measure: str) -> str:
    heads = ["system", "seeds", *domains, "**mean**"]
    heads += ["val mean", "CPU s to train"] if measure == "R@1" else []
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row, seeds in _by_row(results).items():
        cells = [row, str(len(seeds)) if seeds[0].seed is not None else "-"]
        cells += [_cell(result.test[domain][measure] for result in seeds) for domain in domains]
        cells.append(f"**{_cell(result.test['mean'][measure] for result in seeds)}**")
        if measure == "R@1":
            cells.append(_cell(result.val_r_at_1 for result in seeds))
            costs = [result.cpu_s for result in seeds if result.cpu_s is not None]
            cells.append(f"{np.mean(costs):,.0f}" if costs else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _conditions(results: list[Result], data: Dataset, domains: list[str], command: str) -> str:
    test = results[0].test
    counts = ", ".join(f"{domain} {test[domain]['queries']:.0f}" for domain in domains)
    describe = ["git", "describe", "--always", "--dirty"] if shutil.which("git") else ["true"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    return (
        f"`{command}`, {datetime.now(UTC).date()}, commit {commit or 'unknown'}, {usable_cpus()} cores "
        f"({platform.machine()}), data {data.fingerprint[:16]}.\n\n"
        "R@1 and mMP@5 as UnED defines them (arXiv 2309.01858), exact search, the query itself left out. "
        f"± is the standard deviation over seeds. Test queries: {counts}."
    )


def _size(data: Dataset) -> str:
    rows = [
        ("domains", len(data.domains), 8),
        ("training images", sum(len(data.records(domain, "train")) for domain in data.domains), 2_831_222),
        ("training classes", sum(class_counts(data).values()), 316_446),
        ("test queries", sum(len(data.queries(domain)) for domain in data.domains), 241_986),
        ("test gallery", sum(len(data.gallery(domain)) for domain in data.domains), 1_397_126),
    ]
    lines = [f"| {name} | {here:,} | {uned:,} |" for name, here, uned in rows]
    return "\n".join(["## Size of the data set", "", "| | here | UnED |", "|---|---|---|", *lines])


def _reading(results: list[Result]) -> str:
    best = best_on_validation(results)
    return "\n".join(
        [
            "## How to read it",
            "",
            f"- **{ORACLE}** is an upper bound that no deployment can reach: the true domain of each query "
            "and each gallery image selects the specialist.",
            "- A specialist's results on other domains show what it forgot or never learned.",
            f"- Chosen on validation: **{best.row}**, seed {best.seed} "
            f"(val mean R@1 {100 * best.val_r_at_1:.1f}, test {100 * best.test['mean']['R@1']:.1f}).",
            "- Cost is the CPU time of the training steps. Descriptors of the frozen backbone, of augmented "
            "views too, are computed once, cached, and not included.",
        ]
    )


def _write_csv(results: list[Result], file: Path) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["system", "seed", "domain", *_MEASURES, "queries", "val mean R@1", "train CPU s"])
        for result in results:
            for domain, scores in result.test.items():
                measures = [scores[measure] for measure in _MEASURES]
                training = [scores.get("queries"), result.val_r_at_1, result.cpu_s]
                writer.writerow([result.row, result.seed, domain, *measures, *training])


def _plot(results: list[Result], file: Path) -> None:
    rows = _by_row(results)
    figure = Figure(figsize=(8, 0.32 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    for position, (row, seeds) in enumerate(reversed(rows.items())):
        values = [100 * result.test["mean"]["R@1"] for result in seeds]
        colour = "tab:green" if _is_universal(seeds[0]) else "tab:gray" if row == ORACLE else "tab:blue"
        axes.barh(position, np.mean(values), color=colour, alpha=0.5)
        axes.plot(values, [position] * len(values), ".", color="black", markersize=4)
        axes.text(1, position, f"{np.mean(values):.1f}", va="center", fontsize="small")
    axes.set_yticks(range(len(rows)), list(reversed(rows)))
    axes.set(xlabel="mean R@1 over domains, merged test index; a dot is a seed", ylim=(-0.6, len(rows) - 0.4))
    figure.savefig(file, format="png", dpi=110)
