"""How much may be in the service at a time: bytes of bodies, pixels being decoded."""

import contextlib
import threading
from collections.abc import Iterator


class Budget:
    """Thread-safe. What finds nothing else held always fits, so that nothing is refused for ever."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._changed = threading.Condition()

    def fits(self, amount: int) -> bool:
        """Whether it could be taken now."""
        with self._changed:
            return self._fits(amount)

    def take(self, amount: int) -> bool:
        """Whether there was room for it."""
        with self._changed:
            fits = self._fits(amount)
            self._held += amount if fits else 0
            return fits

    def give(self, amount: int) -> None:
        """What was taken comes back."""
        with self._changed:
            self._held -= amount
            self._changed.notify_all()

    @contextlib.contextmanager
    def holding(self, amount: int) -> Iterator[None]:
        """Waits for room; not for the event loop's thread."""
        with self._changed:
            self._changed.wait_for(lambda: self._fits(amount))
            self._held += amount
        try:
            yield
        finally:
            self.give(amount)

    def _fits(self, amount: int) -> bool:
        return not self._held or not amount or self._held + amount <= self._limit
