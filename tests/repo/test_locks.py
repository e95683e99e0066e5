"""The lock files agree: the packages that are served and measured with are those that are tested."""

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

LOCKS = ROOT / "requirements"


def locked_versions(lock: Path) -> dict[str, set[str]]:
    """The versions of each package; several if they depend on the platform."""
    versions: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?==([^\s;]+)", lock.read_text(), re.MULTILINE):
        versions.setdefault(name, set()).add(version)
    return versions


@pytest.mark.parametrize(
    ("lock", "tested"),
    [
        ("serve-cpu", "test-cpu"),
        ("bench-cpu", "test-cpu"),
        ("fuzz", "test-cpu"),
        ("serve-gpu", "test-gpu"),
        ("bench-gpu", "test-gpu"),
    ],
)
def test_a_package_has_one_version_in_all_locks(lock: str, tested: str) -> None:
    versions, of_tests = locked_versions(LOCKS / f"{lock}.txt"), locked_versions(LOCKS / f"{tested}.txt")
    common = versions.keys() & of_tests.keys()
    assert len(common) > 40
    assert {name: versions[name] for name in common} == {name: of_tests[name] for name in common}


def test_locks_name_no_index() -> None:
    assert not [
        lock.name for lock in LOCKS.iterdir() if re.search("https?://|^--?[a-z]", lock.read_text(), re.M)
    ]
