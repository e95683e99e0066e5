from pathlib import Path

import pytest

from benchmarks.datasets.octet.apt import Apt, with_suite
from benchmarks.errors import SourceUnavailable
from tests.benchmarks.octet.fakes import calls, write_tool

DEB822 = """\
# Comment
Types: deb deb-src
URIs: mirror://here
Suites: trixie trixie-updates
Components: main contrib
Signed-By:
 -----BEGIN KEY-----
 .
 -----END KEY-----

Types: deb
URIs: mirror://security
Suites: trixie-security
Components: main

Enabled: no
Types: deb
URIs: mirror://off
Suites: trixie
Components: main

Types: deb-src
URIs: mirror://source
Suites: trixie
Components: main

Types: deb
URIs: mirror://other
Suites: stable
Components: nightly
"""

ONE_LINE = """\
# deb mirror://commented trixie main
deb mirror://here trixie main contrib  # ours
deb-src mirror://here trixie main
deb [arch=amd64 signed-by=/a/key] mirror://there sid main
deb mirror://security trixie-security main
deb mirror://flat ./
deb mirror://other stable nightly
"""


def test_deb822_sources_keep_the_mirror_and_its_key() -> None:
    assert with_suite(DEB822, ".sources", "bookworm") == (
        "Types: deb\nURIs: mirror://here\nSuites: bookworm\nComponents: main\n"
        "Signed-By:\n -----BEGIN KEY-----\n .\n -----END KEY-----\n"
    )


def test_one_line_sources_keep_the_mirror_and_its_options() -> None:
    assert with_suite(ONE_LINE, ".list", "bookworm") == (
        "deb mirror://here bookworm main\ndeb [arch=amd64 signed-by=/a/key] mirror://there bookworm main\n"
    )


@pytest.fixture
def machine_sources(tmp_path: Path, tools: Path) -> Path:
    """A machine whose apt-config reports this folder of sources."""
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "debian.sources").write_text(DEB822)
    (folder / "old.list").write_text(ONE_LINE)
    (folder / "notes.txt").write_text("no sources")
    write_tool(tools, "apt-config", f"print(\"one='{folder}/none.list'\\nparts='{folder}'\")")
    return folder


def only_offered_by(sources: str) -> str:
    """An apt-get whose `download` succeeds only with the given sources."""
    return f"""
from pathlib import Path
options = dict(word.split("=", 1) for word in sys.argv if "=" in word)
if sys.argv[-2] == "download":
    parts = Path(options.get("Dir::Etc::sourceparts", "none"))
    if not any({sources!r} in path.read_text() for path in parts.glob("*")):
        sys.exit("E: Version '1.0-1' was not found")
    Path("kiwi_1.0-1_all.deb").write_text(sys.argv[-1])
"""


def ignore(n_bytes: int) -> None:
    """Discard the progress."""
    del n_bytes


def download(tmp_path: Path) -> Path:
    into = tmp_path / "into"
    into.mkdir(exist_ok=True)
    return Apt(tmp_path / "apt").download("kiwi", "1.0-1", into, ignore)


@pytest.mark.usefixtures("machine_sources")
def test_the_pinned_suite_is_requested_from_the_machines_mirrors(tmp_path: Path, tools: Path) -> None:
    write_tool(tools, "apt-get", only_offered_by("mirror://there bookworm main"))
    assert download(tmp_path).read_text() == "kiwi=1.0-1"
    # The machine's sources first (update, failed download), then the derived ones.
    assert calls(tools) == ["apt-get", "apt-get", "apt-config", "apt-get", "apt-get"]


@pytest.mark.usefixtures("machine_sources")
def test_a_version_that_no_source_offers_is_unavailable(tmp_path: Path, tools: Path) -> None:
    write_tool(tools, "apt-get", only_offered_by("nowhere"))
    with pytest.raises(SourceUnavailable, match=r"Version '1\.0-1' was not found$"):
        download(tmp_path)


@pytest.mark.usefixtures("machine_sources")
def test_a_failed_update_is_reported_with_the_failed_download(tmp_path: Path, tools: Path) -> None:
    write_tool(tools, "apt-get", "sys.exit('E: no network' if 'update' in sys.argv else 'E: no package')")
    with pytest.raises(SourceUnavailable, match=r"no package .*update: .*no network"):
        download(tmp_path)


def test_package_lists_are_fetched_once(tmp_path: Path, tools: Path) -> None:
    write_tool(tools, "apt-get", "open('a.deb', 'w') if sys.argv[-2] == 'download' else None")
    apt = Apt(tmp_path / "apt")
    for name in ("kiwi", "lime"):
        into = tmp_path / name
        into.mkdir()
        assert apt.download(name, "1.0-1", into, ignore) == into / "a.deb"
    assert calls(tools) == ["apt-get"] * 3


@pytest.mark.usefixtures("tools")
def test_missing_apt_get_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="apt-get is not installed"):
        download(tmp_path)
