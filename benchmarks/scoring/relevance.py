"""The relevance rule of UnED: an item is relevant to a query of its domain if they share a class."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item", str, int)


class Relevance(Generic[Item]):
    """The rule over the gallery of one domain, whose items are ids or row numbers."""

    def __init__(self, gallery: Iterable[tuple[Item, Iterable[int]]]) -> None:
        """Index `(item, class ids)` pairs by class."""
        self._items_of: dict[int, set[Item]] = defaultdict(set)
        for item, class_ids in gallery:
            for class_id in class_ids:
                self._items_of[class_id].add(item)

    def items(self, class_ids: Iterable[int]) -> set[Item]:
        """Items that have at least one of a query's classes; the query itself too if it is in the gallery."""
        return set[Item]().union(*(self._items_of.get(class_id, ()) for class_id in class_ids))
