"""Scores of descriptors against the merged gallery, as R@1 and mMP@5 by domain."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.dataset import Dataset
from benchmarks.scoring.evaluation import Vectors, score_vectors
from benchmarks.scoring.measures import DomainScore, mean_over_domains
from model_export.errors import SourceError

Embed = Callable[[str, str], NDArray[np.float32]]  # (domain, split) -> (N, dim), rows in the split's order


@dataclass(frozen=True)
class Scores:
    """Of every domain, and their mean, as shares in [0, 1]."""

    domains: dict[str, DomainScore]

    @property
    def mean(self) -> dict[str, float]:
        """`R@1` and `mMP@5`."""
        return mean_over_domains(self.domains)


def evaluate(data: Dataset, domains: list[str], split: str, embed: Embed | Mapping[str, Embed]) -> Scores:
    """Queries of `split` (val or test) against the merged gallery of the domains.

    With one embedding for each domain, a picture's true domain picks its own: the oracle.
    """
    queries, gallery = {}, {}
    for domain in domains:
        chosen = embed[domain] if isinstance(embed, Mapping) else embed
        queries[domain] = Vectors(data.records(domain, split), chosen(domain, split))
        where = data.gallery_split(domain, split)
        gallery[domain] = (
            queries[domain] if where == split else Vectors(data.records(domain, where), chosen(domain, where))
        )
    return Scores(score_vectors(queries, gallery))


def with_queries(data: Dataset, domains: list[str], split: str) -> list[str]:
    """The domains that have any."""
    return [domain for domain in domains if data.records(domain, split)]


def require_queries(data: Dataset, split: str) -> list[str]:
    """All domains that have any. Raises SourceError where none has."""
    domains = with_queries(data, data.domains, split)
    if not domains:
        raise SourceError(f"{data.root}: no {split} queries, so nothing can be scored")
    return domains
