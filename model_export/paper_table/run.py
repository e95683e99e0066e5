"""Train what is missing, score everything on the merged test index, write the results."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.datasets.dataset import Dataset
from model_export.descriptors.evaluation import Embed, evaluate, require_queries, with_queries
from model_export.descriptors.images import require_images, require_training_images
from model_export.descriptors.splits import splits_for
from model_export.errors import ConfigError, SourceError
from model_export.networks.backbones import Backbone, backbone_named
from model_export.paper_table.systems import Training, off_the_shelf, trained, trainings
from model_export.training.cache import DescriptorCache
from model_export.training.loop import train
from model_export.training.run_folder import Summary

ORACLE = "Specialist+Oracle"


@dataclass(frozen=True)
class Result:
    """One system with one seed."""

    row: str
    seed: int | None  # None: nothing was drawn at random
    val_r_at_1: float  # mean over domains, merged validation index
    test: dict[str, dict[str, float]]  # domain -> R@1, mMP@5, queries, ...; and "mean"
    cpu_s: float | None  # of the training; None where there was none


def compare(
    data: Dataset, strategies: Path, runs: Path, cache_dir: Path, seeds: int, console: Console
) -> list[Result]:
    """Everything in the table, in its order. What is done already is not done again.

    Raises ConfigError, SourceError or TrainingError.
    """
    plan = trainings(data, strategies, seeds)
    row, weights = _one_backbone(plan, strategies)
    _check(data)
    cache = DescriptorCache(cache_dir, row, weights, data)
    results = [_scored(name, None, embed, data, None) for name, embed in off_the_shelf(data, cache).items()]
    specialists: dict[int, dict[str, tuple[Embed, Summary]]] = {}
    universal = []
    for number, one in enumerate(plan, start=1):
        console.print(f"{number}/{len(plan)} {one.row}, seed {one.seed}")
        summary = train(one.strategy, data, runs / one.folder, cache_dir)
        embed = trained(runs / one.folder, cache)
        result = _scored(one.row, one.seed, embed, data, summary.cpu_s)
        if one.strategy.domains:
            specialists.setdefault(one.seed, {})[one.strategy.domains[0]] = embed, summary
            results.append(result)
        else:
            universal.append(result)
    for seed, of in specialists.items():
        cpu_s = sum(summary.cpu_s for _, summary in of.values())
        oracle = {domain: embed for domain, (embed, _) in of.items()}
        results.append(_scored(ORACLE, seed, oracle, data, cpu_s))
    return results + universal


def _one_backbone(plan: list[Training], strategies: Path) -> tuple[Backbone, str]:
    found = list(dict.fromkeys((one.strategy.backbone, one.strategy.weights) for one in plan))
    if len(found) > 1:
        named = ", ".join(f"{backbone} ({weights})" for backbone, weights in found)
        raise ConfigError(f"{strategies}: the systems of a table share one backbone, these have {named}")
    return backbone_named(found[0][0]), found[0][1]


def _check(data: Dataset) -> None:
    """Raises SourceError for what would stop the comparison later, after hours."""
    require_training_images(data, data.domains)
    trained = [(domain, "train") for domain in data.domains]
    require_images(data, dict.fromkeys([*trained, *splits_for(data, "val"), *splits_for(data, "test")]))
    require_queries(data, "test")
    unseen = sorted(set(data.domains) - set(with_queries(data, data.domains, "val")))
    if unseen:
        raise SourceError(
            f"{data.root}: no validation queries in {', '.join(unseen)}, to choose a specialist"
        )


def _scored(
    row: str, seed: int | None, embed: Embed | dict[str, Embed], data: Dataset, cpu_s: float | None
) -> Result:
    val = evaluate(data, with_queries(data, data.domains, "val"), "val", embed)
    test = evaluate(data, with_queries(data, data.domains, "test"), "test", embed)
    scores = {domain: score.to_json() for domain, score in test.domains.items()}
    return Result(row, seed, val.mean["R@1"], {**scores, "mean": test.mean}, cpu_s)
