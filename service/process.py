"""The process and its limits: usable CPUs, open files, and the parent that supervises it."""

import ctypes
import math
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_CGROUP = re.compile(r"[0-9]+:([^:]*):(/.*)")  # controllers, path
_CGROUP_MOUNT = re.compile(r"(?:[^ ]+ ){3}([^ ]+) (/[^ ]*) .* - (cgroup2?) .*?([^ ]*)")
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_POLL_S = 0.5
_CLOSING_S = 5  # to flush the index, after the requests in flight
_SUPERVISOR = "_UIE_SUPERVISOR_PID"  # set by the supervisor for its workers; not a setting


def usable_cpus(root: Path = Path("/")) -> int:
    """Return the CPUs of the affinity mask, or of the cgroups' CPU quota (rounded up) if that is less.

    `root` is the folder that contains `proc` and the mounted cgroups.
    """
    return max(1, min([len(os.sched_getaffinity(0)), *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quotas, in CPUs, of the process's cgroups and of all their ancestors: each of them limits."""
    paths = dict(_cgroups(root))
    for version, mount_root, mount_point in _cgroup_mounts(root):
        if version not in paths:
            continue
        mounted = root / mount_point.relative_to("/")
        folder = mounted
        # In a container with its host's view of cgroups, `proc` names paths outside the mount.
        with suppress(ValueError):
            inner = paths[version].relative_to(mount_root)
            folder = mounted if ".." in inner.parts else mounted / inner
        for ancestor in (folder, *folder.parents):
            if not ancestor.is_relative_to(mounted):
                break
            with suppress(OSError, ValueError, ZeroDivisionError):
                quota = _read_v1(ancestor) if version == 1 else _read_v2(ancestor)
                if quota > 0:
                    yield quota


def _cgroups(root: Path) -> Iterator[tuple[int, PurePosixPath]]:
    for controllers, path in _fields(root / "proc/self/cgroup", _CGROUP):
        if not controllers:
            yield 2, PurePosixPath(path)
        elif "cpu" in controllers.split(","):
            yield 1, PurePosixPath(path)


def _cgroup_mounts(root: Path) -> Iterator[tuple[int, PurePosixPath, PurePosixPath]]:
    for mount_root, mount_point, kind, options in _fields(root / "proc/self/mountinfo", _CGROUP_MOUNT):
        paths = PurePosixPath(mount_root), PurePosixPath(mount_point)
        if kind == "cgroup2":
            yield 2, *paths
        elif "cpu" in options.split(","):
            yield 1, *paths


def _fields(file: Path, pattern: re.Pattern[str]) -> Iterator[tuple[str, ...]]:
    """Yield the groups of each line that matches. Names of mounts are any bytes, a source may be empty."""
    with suppress(OSError):
        for line in os.fsdecode(file.read_bytes()).split("\n"):
            if match := pattern.fullmatch(line):
                yield match.groups()


def _read_v1(folder: Path) -> float:
    quota_us = int((folder / "cpu.cfs_quota_us").read_text())  # -1: no quota
    return quota_us / int((folder / "cpu.cfs_period_us").read_text())


def _read_v2(folder: Path) -> float:
    quota_us, period_us = (folder / "cpu.max").read_text().split()
    return 0 if quota_us == "max" else int(quota_us) / int(period_us)


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open files to the hard limit: each connection and large upload needs one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # a hard limit above the kernel's maximum
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def end_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Let the kernel send this process a signal when its parent dies, even if an engine holds Python's lock.

    For processes that would keep the index open. SIGKILL: for those that have nothing to finish.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before this call
        os.kill(os.getpid(), number)


def end_with_supervisor() -> None:
    """Call `end_with_parent` in a process that the service's supervisor starts, else do nothing."""
    if _SUPERVISOR in os.environ:
        end_with_parent(int(os.environ[_SUPERVISOR]))


def announce_supervisor() -> None:
    """Let the processes that this one starts recognise it as their supervisor."""
    os.environ[_SUPERVISOR] = str(os.getpid())


def stop_without_supervisor(timeout_s: float) -> None:
    """Start a thread that stops this worker when its supervisor has died, killed by the kernel for example.

    The worker would keep the port and the index, and a restart would be refused. SIGTERM stops it gracefully;
    the kernel ends it soon after `timeout_s`, even if Python hangs. Without a supervisor this does nothing.
    """
    if _SUPERVISOR in os.environ:
        supervisor = int(os.environ[_SUPERVISOR])
        threading.Thread(target=_watch, args=(supervisor, timeout_s), name="supervisor", daemon=True).start()


def _watch(supervisor: int, timeout_s: float) -> None:
    while os.getppid() == supervisor:
        time.sleep(_POLL_S)
    signal.alarm(math.ceil(timeout_s) + _CLOSING_S)  # SIGALRM ends a process by default
    os.kill(os.getpid(), signal.SIGTERM)
