"""Mean R@1 over the merged index of the validation splits: what chooses the best checkpoint (UnED)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.dataset import Dataset
from benchmarks.metrics import DomainScore, mean_over_domains
from benchmarks.offline import Vectors, score_vectors
from model_export.errors import SourceError
from model_export.training.data import TrainingSet

_TRUST_SAMPLE = 2000  # queries of a domain, against all training pictures

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


def trusted(images: TrainingSet, descriptors: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    """R@1 of the frozen backbone among the training pictures: how far an anchor may hold each domain."""
    if not descriptors:
        return {}
    known = {domain: Vectors(images.records[domain], rows) for domain, rows in descriptors.items()}
    asked = {}
    for domain, one in known.items():
        step = max(1, len(one.records) // _TRUST_SAMPLE)
        asked[domain] = Vectors(one.records[::step], one.rows[::step])
    return {domain: score.r_at_1 for domain, score in score_vectors(asked, known).items()}


def with_queries(data: Dataset, domains: list[str], split: str) -> list[str]:
    """The domains that have any."""
    return [domain for domain in domains if data.records(domain, split)]


def require_queries(data: Dataset, split: str) -> list[str]:
    """All domains that have any. Raises SourceError where none has."""
    domains = with_queries(data, data.domains, split)
    if not domains:
        raise SourceError(f"{data.root}: no {split} queries, so nothing can be scored")
    return domains
