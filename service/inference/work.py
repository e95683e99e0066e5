"""Plain data of the batcher: an image in work, its result, and moving averages of measured times."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.errors import ServiceError
from service.inference.cache import Lookup

_log = logging.getLogger(__name__)
_LATEST_WEIGHT = 0.1  # of the latest measurement in a moving average

Decode = Callable[[], NDArray[np.uint8]]
ReadHeader = Callable[[bytes], tuple[int, Decode]]  # returns the number of pixels


@dataclass(frozen=True, slots=True)
class Embedded:
    """An image's embedding and the milliseconds of each stage.

    `queue` is the wait for a thread to decode, then for an inference to start; `infer` is the time of the
    complete batch.
    """

    embedding: NDArray[np.float32]  # (dim,), unit norm
    stages_ms: dict[str, float]  # (fetch,) decode, queue, infer; the last three not for a cache hit
    cache: Lookup | None = None  # None: the cache is off


Outcome = Embedded | ServiceError


@dataclass(slots=True, eq=False)
class Image:
    """An image from its submission to its result."""

    data: bytes
    read_header: ReadHeader
    alone: bool  # in a batch of one, and outside the budget
    future: asyncio.Future[Embedded]
    waiting_since: float
    deadline: float | None  # the client's; None after it disconnected
    data_bytes: int
    budget_px: int = 0
    decode: Decode | None = None  # after reading the header
    pixels: NDArray[np.uint8] | None = None  # (H, W, 3), once decoded
    decode_ms: float = 0.0
    queue_ms: float = 0.0

    def embedded(self, row: NDArray[np.float32], start: float, infer_ms: float) -> Embedded:
        """Return the result of a batch that started at `start`."""
        queue_ms = self.queue_ms + (start - self.waiting_since) * 1e3
        stages_ms = {"decode": self.decode_ms, "queue": queue_ms, "infer": infer_ms}
        # A copy, because a view that is kept (by a cache) would keep the complete batch in memory.
        return Embedded(row.copy(), stages_ms)


def settle(images: list[Image], outcomes: list[Outcome]) -> None:
    """Set the futures' results, on the event loop."""
    for image, outcome in zip(images, outcomes, strict=True):
        with contextlib.suppress(asyncio.InvalidStateError):  # cancelled meanwhile
            if isinstance(outcome, Embedded):
                image.future.set_result(outcome)
            else:
                image.future.set_exception(outcome)


def service_error(error: Exception, stage: str, kind: type[ServiceError]) -> ServiceError:
    """Return the error of an image, after logging it if it is unexpected."""
    if isinstance(error, ServiceError):
        return error
    _log.exception("%s failed", stage)
    return kind(f"{stage} failed: {type(error).__name__}")


class MeasuredTime:
    """The time of a piece of work as a fixed part and a part per unit: a line through the latest ones.

    As long as all had one size, the complete time counts as the fixed part.
    """

    def __init__(self) -> None:
        self._units = self._seconds = 0.0  # moving averages
        self._variance = self._covariance = 0.0  # of the units; of units and seconds

    def add(self, units: int, seconds: float) -> None:
        """Add a measurement."""
        weight = _LATEST_WEIGHT if self._units else 1
        more, longer = units - self._units, seconds - self._seconds
        self._units += weight * more
        self._seconds += weight * longer
        self._variance = (1 - weight) * (self._variance + weight * more * more)
        self._covariance = (1 - weight) * (self._covariance + weight * more * longer)

    def of(self, units: int) -> float:
        """Return the expected seconds."""
        per_unit = max(0.0, self._covariance / self._variance) if self._variance else 0.0
        return max(0.0, self._seconds + per_unit * (units - self._units))


def average(previous: float, latest: float) -> float:
    """Return the moving average with the latest measurement, which is the first one if `previous` is 0."""
    return previous + (latest - previous) * (_LATEST_WEIGHT if previous else 1)
