"""A limit on an amount in flight: bytes of request bodies, or pixels being decoded."""

import threading
from collections import deque


class Budget:
    """Thread-safe. An amount above the limit is granted while nothing else is held, so it can always run."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._lock = threading.RLock()
        self._tickets: deque[object] = deque()  # of refused amounts, the first one is next
        self._conditions: list[threading.Condition] = []

    def condition(self) -> threading.Condition:
        """Return a condition with this budget's lock, notified when a refused amount may fit."""
        self._conditions.append(threading.Condition(self._lock))
        return self._conditions[-1]

    def fits(self, amount: int, ticket: object = None, own: int = 0) -> bool:
        """Return True if `amount` could be acquired now, by a caller that holds `own` already."""
        with self._lock:
            first = not self._tickets or self._tickets[0] is ticket
            return not amount or (first and (self._held == own or self._held + amount <= self._limit))

    def acquire(self, amount: int, ticket: object = None, own: int = 0, spare: int = 0) -> bool:
        """Acquire `amount` and return True, or return False if it does not fit.

        `own` is held by the caller already; `spare` must stay free for others beside the amount.
        A refused amount with a ticket is next after those refused before it: later ones do not fit until it
        has been acquired with the same ticket, or the ticket is withdrawn.
        """
        with self._lock:
            if fits := self.fits(amount + spare, ticket, own):
                self._held += amount
                self.withdraw(ticket)
            elif ticket is not None and ticket not in self._tickets:
                self._tickets.append(ticket)
            return fits

    def exceed(self, amount: int) -> None:
        """Acquire `amount` even if it does not fit."""
        with self._lock:
            self._held += amount

    def withdraw(self, ticket: object) -> None:
        """Give up a refused amount, if there is one with this ticket."""
        with self._lock:
            if ticket in self._tickets:
                self._tickets.remove(ticket)
                self._notify()

    def release(self, amount: int) -> None:
        """Return an amount that was acquired."""
        with self._lock:
            self._held -= amount
            self._notify()

    def _notify(self) -> None:
        for condition in self._conditions if self._tickets else ():
            condition.notify_all()
