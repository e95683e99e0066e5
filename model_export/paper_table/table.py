"""The results as Markdown, CSV and one plot."""

import csv
import os
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
from model_export.folders import whole_file
from model_export.paper_table.run import ORACLE, Result

_MEASURES = ("R@1", "mMP@5")


def write_table(results: list[Result], data: Dataset, command: str, notes: str, folder: Path) -> Path:
    """`<data set>.md`, `.csv`, `.png` in `folder`; `notes` are of the strategies. Returns the Markdown."""
    name = data.root.resolve().name
    domains = [domain for domain in results[0].test if domain != "mean"]
    conditions = _conditions(results, data, domains, command)  # the commit, before it counts as changed
    with whole_file(folder / f"{name}.csv") as unfinished:
        _write_csv(results, unfinished)
    with whole_file(folder / f"{name}.png") as unfinished:
        _plot(results, unfinished)
    parts = [f"# The paper's systems on {name}", conditions]
    parts += [_unlike_uned(data), notes]
    for measure in _MEASURES:
        parts += [f"## {measure}, merged index, test split, in points", _markdown(results, domains, measure)]
    parts += [f"![mean R@1 of every system]({name}.png)", _reading(results)]
    file = folder / f"{name}.md"
    with whole_file(file) as unfinished:
        unfinished.write_text("\n\n".join(parts) + "\n")
    return file


def notes_on(data: Dataset, strategies: Path) -> str:
    """What is to be known of these strategies on this very data, if anything."""
    file = strategies / f"notes-{data.fingerprint[:16]}.md"
    return file.read_text() if file.exists() else ""


def chosen(results: list[Result]) -> Result:
    """The universal model with the best mean R@1 on the validation split; the test split has no say."""
    universal = [result for result in results if _is_universal(result)]
    return max(universal, key=lambda result: result.val_r_at_1)


def _is_universal(result: Result) -> bool:
    return result.cpu_s is not None and result.row != ORACLE and not result.row.startswith("specialist: ")


def _rows(results: list[Result]) -> dict[str, list[Result]]:
    rows: dict[str, list[Result]] = {}
    for result in results:
        rows.setdefault(result.row, []).append(result)
    return rows


def _cell(values: Iterable[float], scale: float = 100) -> str:
    """Mean, and from three seeds on the standard deviation."""
    found = scale * np.array(list(values))
    spread = f" ± {found.std(ddof=1):.1f}" if len(found) > 2 else ""
    return f"{found.mean():.1f}{spread}"


def _markdown(results: list[Result], domains: list[str], measure: str) -> str:
    heads = ["system", "seeds", *domains, "**mean**"]
    heads += ["val mean", "CPU s to train"] if measure == "R@1" else []
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row, of in _rows(results).items():
        cells = [row, str(len(of)) if of[0].seed is not None else "-"]
        cells += [_cell(one.test[domain][measure] for one in of) for domain in domains]
        cells.append(f"**{_cell(one.test['mean'][measure] for one in of)}**")
        if measure == "R@1":
            cells.append(_cell(one.val_r_at_1 for one in of))
            costs = [one.cpu_s for one in of if one.cpu_s is not None]
            cells.append(f"{np.mean(costs):,.0f}" if costs else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _conditions(results: list[Result], data: Dataset, domains: list[str], command: str) -> str:
    test = results[0].test
    counts = ", ".join(f"{domain} {test[domain]['queries']:.0f}" for domain in domains)
    asked = ["git", "describe", "--always", "--dirty"] if shutil.which("git") else ["true"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    cores = len(os.sched_getaffinity(0))
    return "\n".join(
        [
            f"`{command}`, {datetime.now(UTC).date()}, commit {commit or 'unknown'}, {cores} cores "
            f"({platform.machine()}), data {data.fingerprint[:16]}.",
            "",
            "R@1 and mMP@5 as UnED defines them (arXiv 2309.01858), exact search, the query itself left out. "
            f"± is the standard deviation over seeds. Test queries: {counts}.",
        ]
    )


def _unlike_uned(data: Dataset) -> str:
    pictures = sum(len(data.records(domain, "train")) for domain in data.domains)
    classes = sum(class_counts(data).values())
    queries = sum(len(data.queries(domain)) for domain in data.domains)
    gallery = sum(len(data.gallery(domain)) for domain in data.domains)
    rows = [
        ("domains", len(data.domains), 8),
        ("training pictures", pictures, 2_831_222),
        ("training classes", classes, 316_446),
        ("test queries", queries, 241_986),
        ("test gallery", gallery, 1_397_126),
    ]
    lines = [f"| {what} | {ours:,} | {theirs:,} |" for what, ours, theirs in rows]
    return "\n".join(["## The size of it", "", "| | here | UnED |", "|---|---|---|", *lines])


def _reading(results: list[Result]) -> str:
    best = chosen(results)
    return "\n".join(
        [
            "## How to read it",
            "",
            f"- **{ORACLE}** is an upper bound that no deployment can have: the true domain of each query "
            "and each gallery picture picks the specialist.",
            "- A specialist's other domains show what it unlearned or never knew.",
            f"- Chosen on validation: **{best.row}**, seed {best.seed} "
            f"(val mean R@1 {100 * best.val_r_at_1:.1f}, test {100 * best.test['mean']['R@1']:.1f}).",
            "- Cost is CPU time of the training steps; the frozen backbone's descriptors, of augmented "
            "views too, are computed once, kept, and not in it.",
        ]
    )


def _write_csv(results: list[Result], file: Path) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["system", "seed", "domain", *_MEASURES, "queries", "val mean R@1", "train CPU s"])
        for one in results:
            for domain, scores in one.test.items():
                measures = [scores[measure] for measure in _MEASURES]
                writer.writerow(
                    [one.row, one.seed, domain, *measures, scores.get("queries"), one.val_r_at_1, one.cpu_s]
                )


def _plot(results: list[Result], file: Path) -> None:
    rows = _rows(results)
    figure = Figure(figsize=(8, 0.32 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    for place, (row, of) in enumerate(reversed(rows.items())):
        values = [100 * one.test["mean"]["R@1"] for one in of]
        colour = "tab:green" if _is_universal(of[0]) else "tab:gray" if row == ORACLE else "tab:blue"
        axes.barh(place, np.mean(values), color=colour, alpha=0.5)
        axes.plot(values, [place] * len(values), ".", color="black", markersize=4)
        axes.text(1, place, f"{np.mean(values):.1f}", va="center", fontsize="small")
    axes.set_yticks(range(len(rows)), list(reversed(rows)))
    axes.set(xlabel="mean R@1 over domains, merged test index; a dot is a seed", ylim=(-0.6, len(rows) - 0.4))
    figure.savefig(file, format="png", dpi=110)
