"""The CPUs that a quota leaves, on generated trees of cgroups, and how workers share them."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from service.process import usable_cpus
from service.settings import load_settings

CORES = 64
V2 = "31 23 0:28 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 31 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
OTHERS = (
    "32 23 0:29 / / rw - overlay overlay rw\n"
    "35 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
HYBRID = "36 31 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)))


def tree(folder: Path, cgroup: str, mountinfo: str, files: Mapping[str, str]) -> Path:
    """Write the files of `proc` and of the cgroups below a root folder."""
    named = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    proc = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": OTHERS + mountinfo}
    for name, text in {**proc, **named}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.fsencode(text))
    return folder


@pytest.mark.parametrize(
    ("path", "mount_root", "files", "cpus"),
    [
        ("/", "/", {"cpu.max": "200000 100000\n"}, 2),  # a container's own view
        ("/", "/", {"cpu.max": "150000 100000\n"}, 2),  # rounded up
        ("/", "/", {"cpu.max": "5000 100000\n"}, 1),
        ("/", "/", {"cpu.max": "max 100000\n"}, CORES),
        ("/", "/", {"cpu.max": "9900000 100000\n"}, CORES),
        ("/", "/", {}, CORES),  # the root of the host
        ("/a/b", "/", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ("/a/b", "/", {"a/b/cpu.max": "100000 50000\n", "a/cpu.max": "300000 100000\n"}, 2),
        ("/a/b", "/", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "100000 100000\n"}, 1),
        ("/docker/x", "/docker/x", {"cpu.max": "200000 100000\n"}, 2),  # the host's view in a container
        ("/other", "/docker/x", {"cpu.max": "200000 100000\n"}, 2),
        ("/../x", "/", {"cpu.max": "200000 100000\n"}, 2),  # outside of its namespace
        ("/", "/", {"cpu.max": "unreadable\n"}, CORES),
        ("/", "/", {"cpu.max": "100000 0\n"}, CORES),
    ],
)
def test_a_quota_of_cgroup_v2_limits_the_cpus(
    tmp_path: Path, path: str, mount_root: str, files: dict[str, str], cpus: int
) -> None:
    root = tree(tmp_path, f"0::{path}\n", V2.format(root=mount_root), files)
    assert usable_cpus(root) == cpus


@pytest.mark.parametrize(
    ("path", "mount_root", "quotas_us", "cpus"),
    [
        ("/", "/", {"": 200000}, 2),
        ("/", "/", {"": -1}, CORES),
        ("/kube/pod/x", "/", {"kube/pod/x/": -1, "kube/pod/": 250000, "kube/": -1}, 3),
        ("/kube/pod/x", "/", {"kube/pod/x/": 100000, "kube/pod/": 250000}, 1),
        ("/docker/x", "/docker/x", {"": 50000}, 1),
    ],
)
def test_a_quota_of_cgroup_v1_limits_the_cpus(
    tmp_path: Path, path: str, mount_root: str, quotas_us: dict[str, int], cpus: int
) -> None:
    files = {}
    for folder, quota_us in quotas_us.items():
        files[f"cpu,cpuacct/{folder}cpu.cfs_quota_us"] = f"{quota_us}\n"
        files[f"cpu,cpuacct/{folder}cpu.cfs_period_us"] = "100000\n"
    cgroup = f"5:memory:/elsewhere\n4:cpu,cpuacct:{path}\n0::/unified\n"
    root = tree(tmp_path, cgroup, V1.format(root=mount_root) + HYBRID, files)
    assert usable_cpus(root) == cpus


@pytest.mark.parametrize(
    "mount",
    [
        "31 23 0:28 / /sys/fs/cgroup rw - cgroup2  rw\n",  # the source is empty
        "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 rw\n",
        "31 23 0:28 / /sys/fs/cgroup rw shared:9 master:1 - cgroup2 a\\040source rw\n",
        f"40 23 0:40 / /mnt/\x85\x0c\udcff rw - ext4 /dev/x rw\n{V2.format(root='/')}",  # a name is any bytes
        f"incomplete - cgroup2\n\n{V2.format(root='/')}",
    ],
)
def test_unusual_mounts_hide_no_quota(tmp_path: Path, mount: str) -> None:
    root = tree(tmp_path, "incomplete\n0::/\n", mount, {"cpu.max": "200000 100000\n"})
    assert usable_cpus(root) == 2


def test_without_cgroups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path) == CORES


@pytest.mark.parametrize(("workers", "threads"), [(1, 6), (2, 3), (4, 1), (10, 1)])
def test_the_workers_share_the_cpus(monkeypatch: pytest.MonkeyPatch, workers: int, threads: int) -> None:
    monkeypatch.setattr("service.settings.usable_cpus", lambda: 6)
    monkeypatch.setenv("UIE_WORKERS", str(workers))
    monkeypatch.setenv("UIE_QDRANT_URL", "http://127.0.0.1:6333")
    settings = load_settings()
    assert (settings.threads, settings.lanes) == (threads, min(2, threads))
