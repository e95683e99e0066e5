"""The guard of unit tests: no service process, no connection to another machine, no torch."""

import ipaddress
import re
import sys
from functools import cache
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

# These imports bring in torch; `tests/repo/test_architecture.py` keeps it out of all other packages.
_IMPORTS_TORCH = re.compile(r"^\s*(?:from|import) (?:torch|model_export|tests\.support\.tiny)\b", re.M)
_FORBIDDEN_COMMAND = re.compile(r"-m model_export\b| serve\b")


class Guard:
    """Refuses forbidden operations while active, and records them: the tested code may catch the error."""

    def __init__(self) -> None:
        self.active = False
        self.violations: list[str] = []
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.active and (violation := _violation(event, arguments)):
            self.violations.append(violation)
            raise AssertionError(violation)


GUARD = Guard()


def _violation(event: str, arguments: tuple[Any, ...]) -> str | None:
    if event == "subprocess.Popen" and _FORBIDDEN_COMMAND.search(command := " ".join(map(str, arguments[1]))):
        return f"starts a service or torch: {command}"
    if event == "socket.connect" and isinstance(arguments[1], tuple) and not _is_local(arguments[1][0]):
        return f"connects to {arguments[1][0]}"
    return None


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _NoTorch(MetaPathFinder):
    def find_spec(self, name: str, path: object, target: object = None) -> None:  # noqa: ARG002 (the interface)
        if name == "torch":
            raise ModuleNotFoundError("unit tests do not import torch")


def hide_torch() -> None:
    """Makes every import of torch fail, as if it were not installed."""
    sys.meta_path.insert(0, _NoTorch())


@cache
def imports_torch(file: Path) -> bool:
    """Tells if a test file imports torch, by its import statements."""
    return _IMPORTS_TORCH.search(file.read_text()) is not None
