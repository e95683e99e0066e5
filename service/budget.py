"""How much may be in the service at a time: bytes of bodies, pixels being decoded."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from service.errors import Overloaded


class Budget:
    """Thread-safe. What finds nothing else held always fits, so that no request is refused for ever."""

    def __init__(self, limit: int, refusal: Callable[[], Overloaded]) -> None:
        self._limit = limit
        self._refusal = refusal
        self._held = 0
        self._lock = threading.Lock()

    def take(self, amount: int) -> None:
        """Raises Overloaded where there is no room for it."""
        with self._lock:
            if self._held and amount and self._held + amount > self._limit:
                raise self._refusal()
            self._held += amount

    def give(self, amount: int) -> None:
        """What was taken comes back."""
        with self._lock:
            self._held -= amount

    @contextlib.contextmanager
    def holding(self, amount: int) -> Iterator[None]:
        """Raises Overloaded."""
        self.take(amount)
        try:
            yield
        finally:
            self.give(amount)
