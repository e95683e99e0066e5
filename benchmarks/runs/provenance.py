"""Provenance of a run: time, machine, package versions, commit."""

import datetime
import os
import platform
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("aiohttp", "bentoml", "numpy", "onnxruntime", "onnxruntime-gpu", "pillow", "qdrant-edge-py")


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine that the harness runs on; a service that is not on loopback runs on another one."""

    cpu: str
    cores: int
    memory_gb: float
    gpu: str | None
    system: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """When, where and with which versions a run was measured."""

    started: str  # ISO 8601
    commit: str
    machine: Machine
    versions: dict[str, str]  # of Python and of the packages that affect a measurement


def provenance() -> Provenance:
    """The provenance of a run that starts now."""
    model = re.search(r"^model name.*?: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    machine = Machine(
        cpu=model[1] if model else platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        gpu=_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or None,
        system=platform.platform(),
    )
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Provenance(started=started, commit=commit(), machine=machine, versions=versions)


def commit() -> str:
    """The commit of the harness, with `+` if tracked files differ from it; empty outside a git checkout."""
    git = ("git", "-C", str(_ROOT))
    head = _output(*git, "rev-parse", "--short", "HEAD")
    return head + ("+" if head and _output(*git, "status", "--porcelain", "--untracked-files=no") else "")


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
