"""What a run has to say of where it ran: machine, versions, commit."""

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import psutil

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("aiohttp", "bentoml", "numpy", "onnxruntime", "onnxruntime-gpu", "pillow", "qdrant-edge-py")


def provenance() -> dict[str, object]:
    """For `run.json`."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"started": started, "commit": commit(), "machine": machine(), "versions": versions()}


def machine() -> dict[str, object]:
    """This one; the service's is another where it is not on loopback."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": _said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or None,
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that a measurement depends on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Of the harness, `+` where files differ from it; empty outside of git."""
    git = ("git", "-C", str(_ROOT))
    head = _said(*git, "rev-parse", "--short", "HEAD")
    return head + ("+" if head and _said(*git, "status", "--porcelain", "--untracked-files=no") else "")


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
