"""The folder of a training run: `config.json`, `log.csv`, `latest.pt`, `best.pt`, `run.json`, `curve.png`.

Every file is written atomically, so that a `kill -9` or a full disk leaves the previous version.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from model_export.errors import TrainingError, WriteError
from model_export.folders import atomic_file
from model_export.networks.head import LinearHead
from model_export.training.config import Strategy


@dataclass(frozen=True)
class Summary:
    """`run.json`, written when the training has finished."""

    title: str
    best_stage: int
    best_step: int
    best_val_r_at_1: float
    steps: dict[str, int]  # batches by domain, up to the best checkpoint
    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Best:
    """`best.pt`: the checkpoint with the highest val R@1."""

    head: LinearHead
    descriptor: dict[str, Tensor] | None  # state of the network; None if it was not trained
    stage: int
    epoch: float | None  # None in runs of older versions


@dataclass(frozen=True)
class RunFolder:
    """The files of a run."""

    path: Path

    def check(self, strategy: Strategy, data_fingerprint: str) -> None:
        """Raise TrainingError unless the folder belongs to this run or is free."""
        file = self.path / "config.json"
        if self.path.exists() and not self.path.is_dir():
            raise TrainingError(f"{self.path} is a file, not a run folder; it is left unchanged")
        if file.exists():
            if file.read_bytes() != _config(strategy, data_fingerprint):
                raise TrainingError(
                    f"{self.path} holds a run of another configuration or data; choose another folder"
                )
        elif self.path.exists() and any(not f.name.endswith(".unfinished") for f in self.path.iterdir()):
            raise TrainingError(f"{self.path} is neither empty nor a run; it is left unchanged")

    def claim(self, strategy: Strategy, data_fingerprint: str) -> None:
        """Write the configuration, which reserves the folder for this run."""
        self._write("config.json", lambda stream: stream.write(_config(strategy, data_fingerprint)))

    def strategy(self) -> tuple[Strategy, str]:
        """Return the strategy and the fingerprint of the data. Raises TrainingError."""
        try:
            config = json.loads((self.path / "config.json").read_text())
            return Strategy.model_validate(config["strategy"]), str(config["data_fingerprint"])
        except (OSError, ValueError, KeyError) as error:
            raise TrainingError(f"{self.path} is not a training run: {error}") from error

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Write `latest` or `best`."""
        self._write(f"{name}.pt", lambda stream: torch.save(state, stream))

    def load(self, name: str) -> dict[str, Any] | None:
        """Read `latest` or `best`, or return None if it does not exist. Raises TrainingError if damaged."""
        file = self.path / f"{name}.pt"
        if not file.exists():
            return None
        try:
            return dict(torch.load(file, map_location="cpu", weights_only=True))
        except Exception as error:  # torch passes on any error of its zip and pickle readers
            raise TrainingError(f"{file} is damaged: {error}") from error

    def best(self) -> Best:
        """Read the best checkpoint. Raises TrainingError if there is none."""
        state = self.load("best")
        if state is None:
            raise TrainingError(f"{self.path} has no best.pt: it has not been trained")
        return Best(head_of(state["embed"]), state["descriptor"], state.get("stage", 0), state.get("epoch"))

    def write_log(self, rows: list[dict[str, Any]]) -> None:
        """Write all evaluations so far as CSV."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list({key: None for row in rows for key in row}), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._write("log.csv", lambda stream: stream.write(text.getvalue().encode()))

    def finish(self, summary: Summary, rows: list[dict[str, Any]]) -> None:
        """Write the plot, then the summary, which marks the run as finished."""
        self._write("curve.png", lambda stream: _plot(summary.title, rows, stream))
        self._write("run.json", lambda stream: stream.write(json.dumps(asdict(summary), indent=1).encode()))

    def summary(self) -> Summary | None:
        """Return the summary, or None if the run has not finished."""
        file = self.path / "run.json"
        return Summary(**json.loads(file.read_text())) if file.exists() else None

    def _write(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        try:
            with atomic_file(self.path / name) as file, file.open("wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
        except RuntimeError as error:  # torch raises it for a full disk, and for Ctrl-C during a write
            if isinstance(error.__context__, KeyboardInterrupt):
                raise error.__context__ from None
            raise WriteError(f"{self.path / name} could not be written: {error}") from error


def _config(strategy: Strategy, data_fingerprint: str) -> bytes:
    config = {"strategy": strategy.model_dump(), "data_fingerprint": data_fingerprint}
    return json.dumps(config, indent=1, sort_keys=True).encode()


def head_of(state: Mapping[str, Tensor]) -> LinearHead:
    """Convert the state of a linear layer to a head."""
    weight, bias = (state[name].detach().cpu().numpy() for name in ("weight", "bias"))
    return LinearHead(weight.astype(np.float32), bias.astype(np.float32))


def _plot(title: str, rows: list[dict[str, Any]], stream: BinaryIO) -> None:
    from matplotlib.figure import Figure  # slow import

    figure = Figure(figsize=(8, 4), layout="constrained")
    losses, score = figure.subplots(1, 2)
    steps = [row["total_steps"] for row in rows]
    for name in sorted({key for row in rows for key in row if key.startswith("loss ")}):
        losses.plot(steps, [row.get(name) for row in rows], label=name.removeprefix("loss "))
    losses.set(xlabel="step", ylabel="loss", title=title)
    losses.legend()
    for name in sorted({key for row in rows for key in row if key.startswith("R@1 ")}):
        label = name.removeprefix("R@1 ")
        score.plot(steps, [row[name] for row in rows], alpha=0.4, linewidth=1, label=label)
    score.plot(steps, [row["val R@1"] for row in rows], color="black", label="mean")
    score.set(xlabel="step", ylabel="R@1, merged validation index", ylim=(0, 1.02))
    score.legend(fontsize="x-small")
    figure.savefig(stream, format="png", dpi=110)
