"""Mean R@1 over the merged index of the validation splits: what chooses the best checkpoint (UnED)."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from benchmarks.scoring.evaluation import Vectors, score_vectors
from model_export.training.data import TrainingSet

_TRUST_SAMPLE = 2000  # queries of a domain, against all training pictures


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
