"""Downloads of Debian packages without root or changes to the system: apt-get with a private state."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from benchmarks.datasets.octet.tools import OnBytes, only_file, run_command
from benchmarks.errors import SourceUnavailable

SUITE = "bookworm"  # the Debian release whose versions are pinned


class Apt:
    """apt-get with the machine's sources, and then with `SUITE` of the same mirrors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._options: dict[str | None, list[str]] = {}
        self._update_failure = ""

    def download(self, name: str, version: str, into: Path, on_bytes: OnBytes) -> Path:
        """Download a package and return its file. Raises SourceUnavailable."""
        if shutil.which("apt-get") is None:
            raise SourceUnavailable("apt-get is not installed")
        for suite in (None, SUITE):
            command = ["apt-get", *self._with_lists(suite), "download", f"{name}={version}"]
            try:
                run_command(command, into, on_bytes)
            except SourceUnavailable as error:
                failure = f"{error}{self._update_failure}"
            else:
                return only_file(into, "*.deb")
        raise SourceUnavailable(failure)

    def _with_lists(self, suite: str | None) -> list[str]:
        """Options for the machine's package lists (None) or those of `suite`, which are fetched once."""
        if suite not in self._options:
            folder = self.folder / (suite or "machine")
            options = _private_state(folder)
            if suite is not None:
                options += _private_sources(folder, suite)
            try:
                run_command(["apt-get", *options, "update"], folder)
            except SourceUnavailable as error:
                # `update` fails if any repository fails; `download` shows if that one was needed.
                self._update_failure = f" (before that, update: {error})"
            self._options[suite] = options
        return self._options[suite]


def _private_state(folder: Path) -> list[str]:
    state, cache = folder / "state", folder / "cache"
    (state / "lists" / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    (state / "status").touch()
    values = {
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": cache,
        "Acquire::Languages": "none",
        "Acquire::Retries": 1,
        # By default `update` succeeds even if no server answers, and the reason is lost.
        "APT::Update::Error-Mode": "any",
        # By default root delegates downloads to a user without access to this folder.
        "APT::Sandbox::User": "root",
    }
    return _as_options(values)


def _private_sources(folder: Path, suite: str) -> list[str]:
    parts = folder / "sources"
    parts.mkdir()
    for number, path in enumerate(_machine_source_files()):
        (parts / f"{number}{path.suffix}").write_text(with_suite(path.read_text(), path.suffix, suite))
    return _as_options({"Dir::Etc::sourcelist": os.devnull, "Dir::Etc::sourceparts": parts})


def _as_options(values: dict[str, object]) -> list[str]:
    return [word for key, value in values.items() for word in ("-o", f"{key}={value}")]


def _machine_source_files() -> list[Path]:
    """Files that describe the machine's sources, as reported by apt-config."""
    command = ["apt-config", "shell", "one", "Dir::Etc::sourcelist/f", "parts", "Dir::Etc::sourceparts/d"]
    shell = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    paths = dict(line.split("=", 1) for line in shlex.split(shell))
    files = [Path(paths["one"])] if "one" in paths else []
    if "parts" in paths:
        files += sorted(Path(paths["parts"]).glob("*.*"))
    return [path for path in files if path.suffix in (".list", ".sources") and path.is_file()]


def with_suite(text: str, suffix: str, suite: str) -> str:
    """Rewrite a sources file: keep only its main Debian archives, with `suite` as their suite."""
    return _deb822_with_suite(text, suite) if suffix == ".sources" else _list_with_suite(text, suite)


def _list_with_suite(text: str, suite: str) -> str:
    lines = []
    for line in text.splitlines():
        match = re.fullmatch(r"\s*deb\s+(\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]+)(#.*)?", line)
        if match and _is_main_archive([match[3]], match[4].split()):
            lines.append(f"deb {match[1] or ''}{match[2]} {suite} main\n")
    return "".join(lines)


def _deb822_with_suite(text: str, suite: str) -> str:
    uncommented = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    stanzas = []
    for stanza in re.split(r"\n\s*\n", uncommented):
        # A field continues on lines that start with a space, as a key in Signed-By does.
        fields = dict(re.findall(r"^([\w-]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.MULTILINE))
        words = {key.lower(): value.split() for key, value in fields.items()}
        if "deb" not in words.get("types", []) or words.get("enabled") == ["no"]:
            continue
        if _is_main_archive(words.get("suites", []), words.get("components", [])):
            fixed = {"types": " deb", "suites": f" {suite}", "components": " main"}
            lines = [f"{key}:{fixed.get(key.lower(), value)}\n" for key, value in fields.items()]
            stanzas.append("".join(lines))
    return "\n".join(stanzas)


def _is_main_archive(suites: list[str], components: list[str]) -> bool:
    """False for updates, security and backports ("trixie-updates"), and for most third-party repositories."""
    return "main" in components and any("-" not in suite and "/" not in suite for suite in suites)
