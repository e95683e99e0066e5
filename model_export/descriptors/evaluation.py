"""R@1 and mMP@5 of descriptors against the merged gallery, by domain."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.dataset import Dataset
from benchmarks.scoring.evaluation import Vectors, score_vectors
from benchmarks.scoring.measures import DomainScore
from model_export.errors import SourceError

Embed = Callable[[str, str], NDArray[np.float32]]  # (domain, split) -> (N, dim), rows in the split's order


def evaluate(
    data: Dataset, domains: list[str], split: str, embed: Embed | Mapping[str, Embed]
) -> dict[str, DomainScore]:
    """Score the queries of `split` (val or test) against the merged gallery of the domains.

    A mapping gives each domain its own embedding, selected by an image's true domain: the oracle.
    """
    queries, gallery = {}, {}
    for domain in domains:
        embed_domain = embed[domain] if isinstance(embed, Mapping) else embed
        queries[domain] = Vectors(data.records(domain, split), embed_domain(domain, split))
        gallery_split = data.gallery_split(domain, split)
        gallery[domain] = (
            queries[domain]
            if gallery_split == split
            else Vectors(data.records(domain, gallery_split), embed_domain(domain, gallery_split))
        )
    return score_vectors(queries, gallery)


def domains_with_queries(data: Dataset, domains: list[str], split: str) -> list[str]:
    """Return the domains that have queries in `split`."""
    return [domain for domain in domains if data.records(domain, split)]


def require_queries(data: Dataset, split: str) -> list[str]:
    """Return all domains that have queries. Raises SourceError if there are none."""
    domains = domains_with_queries(data, data.domains, split)
    if not domains:
        raise SourceError(f"{data.root}: no {split} queries, so nothing can be scored")
    return domains
