"""A limit on an amount in flight: bytes of request bodies, or pixels being decoded."""

import contextlib
import threading
from collections.abc import Iterator


class Budget:
    """Thread-safe. An amount above the limit is granted while nothing else is held, so it can always run."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._changed = threading.Condition()  # reentrant

    def fits(self, amount: int) -> bool:
        """Return True if `amount` could be acquired now."""
        with self._changed:
            return not self._held or not amount or self._held + amount <= self._limit

    def acquire(self, amount: int) -> bool:
        """Acquire `amount` and return True, or return False if it does not fit."""
        with self._changed:
            fits = self.fits(amount)
            self._held += amount if fits else 0
            return fits

    def release(self, amount: int) -> None:
        """Return an amount that was acquired."""
        with self._changed:
            self._held -= amount
            self._changed.notify_all()

    @contextlib.contextmanager
    def acquired(self, amount: int) -> Iterator[None]:
        """Wait until `amount` fits, and hold it. Blocks: not for the event loop's thread."""
        with self._changed:
            self._changed.wait_for(lambda: self.fits(amount))
            self._held += amount
        try:
            yield
        finally:
            self.release(amount)
