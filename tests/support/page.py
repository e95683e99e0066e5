"""An HTML page as a browser parses it."""

from html.parser import HTMLParser
from pathlib import Path

_VOID = {"meta", "link", "img", "polyline", "line"}


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text. Tags must be well nested."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self._text = ""
        self._open: list[str] = []
        self.feed(file.read_text())
        assert not self._open, self._open

    @property
    def text(self) -> str:
        """The text with single spaces."""
        return " ".join(self._text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self._text += f"{data} "
