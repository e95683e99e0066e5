"""The documentation: links resolve, paths exist, tables list what the code has."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
# First folders of paths that are checked; `runs/` and `data/` are made by commands.
PATH = re.compile(
    r"\.?(?:service|benchmarks|model_export|tests|tools|docs|docker|requirements)/[\w./*<>{}-]*"
    r"|(?:Makefile|Dockerfile|pyproject\.toml|bentofile\.yaml)"
)
PLACEHOLDER = re.compile(r"[*<>{}]")


def _pages() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return sorted(name for name in listed if (ROOT / name).exists())


PAGES = _pages()


@cache
def _prose(page: Path) -> str:
    """The page without fenced code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.replace("`", "")) for heading in headings)
    return {heading.strip().lower().replace(" ", "-") for heading in kept}


def _broken_links(page: Path) -> list[str]:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        inside = target.exists() and target.is_relative_to(ROOT)
        if not inside or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    return broken


def _missing_paths(page: Path) -> list[str]:
    spans = re.findall(r"`([^`]+)`", _prose(page).replace("\n", " "))
    words = [word for span in spans for word in span.split() if PATH.fullmatch(word)]
    return [word for word in words if not PLACEHOLDER.search(word) and not (ROOT / word).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_resolve(page: str) -> None:
    assert _broken_links(ROOT / page) == []


@pytest.mark.parametrize("page", PAGES)
def test_repository_paths_exist(page: str) -> None:
    assert _missing_paths(ROOT / page) == []


def test_planted_faults_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A b\n[x](gone.md) [y](#a-b) [z](#c) `service/gone.py` `service/` `tests/<name>.py`\n")
    assert _broken_links(page) == ["gone.md", "#a-b", "#c"]  # outside of the repository
    assert _anchors(page) == {"a-b"}
    assert _missing_paths(page) == ["service/gone.py"]


def test_every_page_is_reachable_from_the_readme() -> None:
    reached, pending = set(), [ROOT / "README.md"]
    while pending:
        page = pending.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        names = (link.partition("#")[0] for link in re.findall(r"\]\(([^)\s:]+)\)", _prose(page)))
        pending += [(page.parent / name).resolve() for name in names if name]
    lost = {name for name in PAGES if ROOT / name not in reached}
    assert {name for name in lost if not name.startswith("model_export/strategies/")} == set()


def test_readme_is_one_short_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_settings_page_lists_every_setting() -> None:
    rows = re.findall(r"^\| `(UIE_\w+)` \|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(f"UIE_{name.upper()}" for name in Settings.model_fields)


def _lines(block: str) -> list[list[str]]:
    """The words of each line."""
    return [line.split() for line in block.strip().splitlines()]


def test_contributing_shows_the_layers_that_are_enforced() -> None:
    source = (ROOT / "tests/repo/test_architecture.py").read_text()
    layers = re.findall(r'"(\w+)": """\n(.*?)"""', source, re.DOTALL)
    shown = re.findall(r"^(\w+):\n\n```\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.M)
    assert layers
    assert [(name, _lines(block)) for name, block in shown] == [
        (name, _lines(block)) for name, block in layers
    ]


@cache
def _tests_in(file: Path) -> set[str]:
    """Names of the functions that pytest collects."""
    collected = file.name.startswith("test_") and file.is_file()
    body = ast.parse(file.read_text()).body if collected else []
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {name for name in functions if name.startswith("test")}


def test_each_promise_has_its_test() -> None:
    rows = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/reliability.md").read_text())
    assert len(rows) > 40
    assert not [row for row in rows if row[1] not in _tests_in(ROOT / row[0])]


def test_only_collected_functions_count_as_tests(tmp_path: Path) -> None:
    file = tmp_path / "test_a.py"
    file.write_text("def test_a(): 1\nasync def test_b(): 1\ndef c():\n    def test_d(): 1\n")
    assert _tests_in(file) == {"test_a", "test_b"}
    assert _tests_in(file.rename(tmp_path / "a.py")) == set()
