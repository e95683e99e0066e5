"""Running `python -m model_export` in the test process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from model_export.__main__ import main


@dataclass(frozen=True)
class Completed:
    """The result of a command."""

    returncode: int
    stdout: str
    stderr: str


RunCommand = Callable[..., Completed]


def command_runner(capfd: pytest.CaptureFixture[str]) -> RunCommand:
    """Return a function that runs a command with the given words and captures its output."""

    def run(*words: str | Path) -> Completed:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(word) for word in words])
        return Completed(int(exit_.value.code or 0), *capfd.readouterr())

    return run
