"""Train the missing systems and score all of them on the merged test index."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.datasets.dataset import Dataset
from benchmarks.scoring.measures import mean_over_domains
from model_export.descriptors.evaluation import Embed, domains_with_queries, evaluate, require_queries
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
    """Scores of a system with one seed."""

    row: str
    seed: int | None  # None: the system is deterministic
    val_r_at_1: float  # mean over domains, merged validation index
    test: dict[str, dict[str, float]]  # domain -> R@1, mMP@5, queries, ...; and "mean"
    cpu_s: float | None  # CPU time of the training; None without training


def compare(
    data: Dataset, strategies: Path, runs: Path, cache_dir: Path, seeds: int, console: Console
) -> list[Result]:
    """Return all results in the table's order. Finished runs are not repeated.

    Raises ConfigError, SourceError or TrainingError.
    """
    plan = trainings(data, strategies, seeds)
    row, weights = _shared_backbone(plan, strategies)
    _require_complete(data)
    cache = DescriptorCache(cache_dir, row, weights, data)
    results = [_scored(name, None, embed, data, None) for name, embed in off_the_shelf(data, cache).items()]
    specialists: dict[int, dict[str, tuple[Embed, Summary]]] = {}
    universal = []
    for number, training in enumerate(plan, start=1):
        console.print(f"{number}/{len(plan)} {training.row}, seed {training.seed}")
        summary = train(training.strategy, data, runs / training.folder, cache_dir)
        embed = trained(runs / training.folder, cache)
        result = _scored(training.row, training.seed, embed, data, summary.cpu_s)
        if training.strategy.domains:
            specialists.setdefault(training.seed, {})[training.strategy.domains[0]] = embed, summary
            results.append(result)
        else:
            universal.append(result)
    for seed, by_domain in specialists.items():
        cpu_s = sum(summary.cpu_s for _, summary in by_domain.values())
        oracle = {domain: embed for domain, (embed, _) in by_domain.items()}
        results.append(_scored(ORACLE, seed, oracle, data, cpu_s))
    return results + universal


def _shared_backbone(plan: list[Training], strategies: Path) -> tuple[Backbone, str]:
    pairs = {(training.strategy.backbone, training.strategy.weights): None for training in plan}
    if len(pairs) > 1:
        names = ", ".join(f"{backbone} ({weights})" for backbone, weights in pairs)
        raise ConfigError(f"{strategies}: the systems of a table must share one backbone, these have {names}")
    ((backbone, weights),) = pairs
    return backbone_named(backbone), weights


def _require_complete(data: Dataset) -> None:
    """Raise SourceError for incomplete data, which would otherwise stop the comparison after hours."""
    require_training_images(data, data.domains)
    train_splits = [(domain, "train") for domain in data.domains]
    require_images(data, dict.fromkeys([*train_splits, *splits_for(data, "val"), *splits_for(data, "test")]))
    require_queries(data, "test")
    if missing := sorted(set(data.domains) - set(domains_with_queries(data, data.domains, "val"))):
        raise SourceError(
            f"{data.root}: no validation queries in {', '.join(missing)}, needed to choose a specialist"
        )


def _scored(
    row: str, seed: int | None, embed: Embed | dict[str, Embed], data: Dataset, cpu_s: float | None
) -> Result:
    val, test = (
        evaluate(data, domains_with_queries(data, data.domains, split), split, embed)
        for split in ("val", "test")
    )
    scores = {domain: score.to_json() for domain, score in test.items()}
    val_r_at_1 = mean_over_domains(val)["R@1"]
    return Result(row, seed, val_r_at_1, {**scores, "mean": mean_over_domains(test)}, cpu_s)
