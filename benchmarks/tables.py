"""Tables that are built once and rendered for the terminal or as Markdown, and counts in words."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text


@dataclass(frozen=True)
class Table:
    """Rows of text under their headings. The first column is left-aligned, the others are right-aligned."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    footer: Sequence[str] = ()  # a last row below a line, such as the mean
    wrapped: Sequence[str] = ()  # columns whose cells may wrap on a narrow terminal
    padding: int = 1  # between columns on the terminal

    def print(self, console: Console) -> None:
        """Print the table; cells are not parsed as markup."""
        columns = [
            Column(Text(name), justify="right", no_wrap=name not in self.wrapped, overflow="fold")
            for name in self.columns
        ]
        columns[0].justify, columns[0].overflow = "left", "ellipsis"
        table = RichTable(*columns, box=SIMPLE_HEAD, padding=(0, self.padding, 0, 0), show_edge=False)
        for row in self.rows:
            table.add_row(*map(Text, row))
        if self.footer:
            table.add_section()
            table.add_row(*map(Text, self.footer))
        console.print(table)

    def to_markdown(self) -> str:
        """The table in Markdown; cells are escaped."""
        rows = [self.columns, *self.rows, *([self.footer] if self.footer else [])]
        head, *body = ("| " + " | ".join(map(_cell, row)) + " |" for row in rows)
        return "\n".join([head, "| --- |" + " ---: |" * (len(self.columns) - 1), *body])


def count(value: int, singular: str, plural: str | None = None) -> str:
    """`1 query`, `2,059 queries`."""
    return f"{value:,} {singular if value == 1 else plural or singular + 's'}"


def escaped(text: str) -> str:
    """Text from data sets and services as one line without HTML."""
    return " ".join(text.replace("<", "&lt;").split())


def _cell(text: str) -> str:
    return escaped(text).replace("|", "\\|")
