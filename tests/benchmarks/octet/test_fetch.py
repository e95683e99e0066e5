from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.datasets.octet.fetch import fetch_all
from benchmarks.datasets.octet.sources import Source
from tests.benchmarks.octet.fakes import calls, npm_source, write_tar, write_tool


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "published.tgz", {"package/a.png": b"a"})


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    return tmp_path / "downloads"


def publish(tools: Path, package: Path) -> None:
    """Write an npm that packs this package under any name."""
    write_tool(tools, "npm", f"import shutil; shutil.copy({str(package)!r}, 'packed.tgz')")


def fetch_one(source: Source, downloads: Path) -> tuple[dict[str, Path], dict[str, str]]:
    return fetch_all([source], downloads, console=Console(quiet=True))


def test_a_package_is_fetched_once_and_named_after_its_version(
    tools: Path, package: Path, downloads: Path
) -> None:
    publish(tools, package)
    source = npm_source("@scope/kiwi", package)
    for _ in range(2):
        files, missing = fetch_one(source, downloads)
        assert (files, missing) == ({source.name: downloads / "scope-kiwi-1.0.0.tgz"}, {})
    assert files[source.name].read_bytes() == package.read_bytes()
    assert calls(tools) == ["npm"]


def test_a_wrong_hash_leaves_no_file(tools: Path, package: Path, downloads: Path) -> None:
    publish(tools, package)
    files, missing = fetch_one(npm_source("kiwi", package, sha256="0" * 64), downloads)
    assert files == {}
    assert "kiwi 1.0.0: sha256 is" in missing["kiwi"]
    assert list(downloads.iterdir()) == []


def test_damaged_and_partial_downloads_are_replaced(tools: Path, package: Path, downloads: Path) -> None:
    publish(tools, package)
    (downloads / ".partial-killed").mkdir(parents=True)
    (downloads / "kiwi-1.0.0.tgz").write_bytes(b"half")
    files, _ = fetch_one(npm_source("kiwi", package), downloads)
    assert files["kiwi"].read_bytes() == package.read_bytes()
    assert list(downloads.iterdir()) == [files["kiwi"]]


@pytest.mark.usefixtures("tools")
def test_a_missing_tool_is_named(package: Path, downloads: Path) -> None:
    assert fetch_one(npm_source("kiwi", package), downloads) == (
        {},
        {"kiwi": "kiwi 1.0.0: npm is not installed"},
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "sys.exit('npm warn old\\nnpm error code E404\\nnpm error more')",
            "npm failed (1): npm error code E404",
        ),
        ("sys.exit('killed by something')", "npm failed (1): killed by something"),
        ("sys.exit(3)", "npm failed (3): no message"),
        ("", "the tool wrote 0 files *.tgz, expected one"),
    ],
)
def test_the_error_of_a_failing_tool_is_quoted(
    tools: Path, package: Path, downloads: Path, body: str, reason: str
) -> None:
    write_tool(tools, "npm", body)
    assert fetch_one(npm_source("kiwi", package), downloads)[1] == {"kiwi": f"kiwi 1.0.0: {reason}"}


def test_one_missing_source_does_not_stop_the_others(tools: Path, package: Path, downloads: Path) -> None:
    publish(tools, package)
    valid, damaged = npm_source("valid", package), npm_source("damaged", package, sha256="0" * 64)
    files, missing = fetch_all([damaged, valid], downloads, console=Console(quiet=True))
    assert (list(files), list(missing)) == (["valid"], ["damaged"])
