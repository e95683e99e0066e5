from pathlib import Path

import pytest

from benchmarks.datasets.octet.archives import read_archive
from benchmarks.errors import DataError, SourceUnavailable
from tests.benchmarks.octet.fakes import debian_source, npm_source, write_tar, write_tool

# A fake dpkg-deb, for which the package is the tar itself.
UNPACK = "import gzip; sys.stdout.buffer.write(gzip.open(sys.argv[2]).read())"


def test_npm_regular_files_that_match(tmp_path: Path) -> None:
    package = write_tar(
        tmp_path / "a.tgz",
        {"package/a.png": b"a", "other/b.png": b"b"},
        links={"package/alias.png": "a.png", "package/out": "../../../outside"},
    )
    assert read_archive(package, npm_source("a", package)) == {"package/a.png": b"a"}


def test_debian_through_dpkg_deb(tmp_path: Path, tools: Path) -> None:
    write_tool(tools, "dpkg-deb", UNPACK)
    package = write_tar(
        tmp_path / "a.deb",
        {"./usr/share/a.png": b"a", "./other/b": b"b"},
        links={"./usr/share/alias.png": "a.png"},
    )
    assert read_archive(package, debian_source("a", package)) == {"usr/share/a.png": b"a"}


@pytest.mark.usefixtures("tools")
def test_without_dpkg_deb_the_source_is_unavailable(tmp_path: Path) -> None:
    package = write_tar(tmp_path / "a.deb", {"./usr/a": b"a"})
    with pytest.raises(SourceUnavailable, match="kiwi: dpkg-deb is not installed"):
        read_archive(package, debian_source("kiwi", package))


def test_a_failure_of_dpkg_deb_is_an_error(tmp_path: Path, tools: Path) -> None:
    write_tool(tools, "dpkg-deb", f"{UNPACK}; sys.exit(2)")
    package = write_tar(tmp_path / "a.deb", {"./usr/a": b"a"})
    with pytest.raises(DataError, match=r"kiwi: .* a\.deb \(exit status 2\)"):
        read_archive(package, debian_source("kiwi", package))


@pytest.mark.parametrize("keep_bytes", [0, 30, 80])
def test_a_truncated_archive_is_an_error(tmp_path: Path, keep_bytes: int) -> None:
    package = write_tar(tmp_path / "a.tgz", {"package/a": bytes(range(256)) * 40})
    package.write_bytes(package.read_bytes()[:keep_bytes])
    with pytest.raises(DataError, match="kiwi: the archive cannot be read"):
        read_archive(package, npm_source("kiwi", package))


def test_an_archive_without_matching_members_is_an_error(tmp_path: Path) -> None:
    package = write_tar(tmp_path / "a.tgz", {"other/a": b"a"})
    with pytest.raises(DataError, match="kiwi: no member matches"):
        read_archive(package, npm_source("kiwi", package))
