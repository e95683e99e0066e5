"""The loop on images and the real backbone: it learns, resumes after a kill, and stops at NaN."""

import csv
import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.datasets.dataset import Dataset
from model_export.errors import ConfigError, SourceError, TrainingError, WriteError
from model_export.networks.backbones import backbone_named
from model_export.networks.graph import descriptor_graph
from model_export.training.loop import train
from model_export.training.run_folder import RunFolder
from tests.support.shapes import tiny_strategy

ROOT = Path(__file__).parents[3]


def load(folder: Path, name: str) -> dict[str, Any]:
    state = RunFolder(folder).load(name)
    assert state is not None
    return state


def head_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load(folder, "best")["embed"])


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def plain_run(shapes: Dataset, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `tiny_strategy()`."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    train(tiny_strategy(), shapes, folder, cache)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"classifier": {"kind": "joint"}},
        {"classifier": {"kind": "separate", "loss": "arcface", "margin": 0.2, "subcentres": 3}},
        {"classifier": {"kind": "separate"}, "udon": {}, "sampling": {"kind": "teacher-loss"}},
        {"domains": ["signs"]},
    ],
    ids=["joint", "sub-centre arcface", "udon", "specialist"],
)
def test_every_kind_of_strategy_learns(
    changes: dict[str, object], shapes: Dataset, cache: Path, tmp_path: Path
) -> None:
    stages = [{"train": "head", "epochs": 30, "batch": 8, "lr": 0.01, "evaluations": 3}]
    summary = train(tiny_strategy(**changes, stages=stages), shapes, tmp_path / "run", cache)
    with (tmp_path / "run" / "log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert float(rows[-1]["loss class"]) < float(rows[0]["loss class"])
    assert summary.best_val_r_at_1 == max(float(row["val R@1"]) for row in rows)
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_same_seed_gives_the_same_head_to_the_bit(shapes: Dataset, cache: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny_strategy(seed=seed, head={"dropout": 0.3}), shapes, tmp_path / name, cache)
    assert same(head_of(tmp_path / "a"), head_of(tmp_path / "b"))
    assert not same(head_of(tmp_path / "a"), head_of(tmp_path / "c"))


FINE_TUNING = {
    "stages": [
        {"train": "head", "epochs": 4, "batch": 8, "evaluations": 2, "views": 2},
        {
            "train": "all", "epochs": 1, "batch": 8, "evaluations": 3, "backbone_lr": 1e-4, "augment": True,
            "schedule": "cosine", "freeze": ["1.network._conv_stem", "1.network._blocks.0."],
        },
    ],
    "sampling": {"kind": "balanced"},
    "head": {"dropout": 0.1},
}  # fmt: skip


@pytest.fixture(scope="module")
def fine_tuned(shapes: Dataset, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of FINE_TUNING."""
    folder = tmp_path_factory.mktemp("fine-tuned") / "run"
    train(tiny_strategy(**FINE_TUNING), shapes, folder, cache)
    return folder


# Kills the process in the second stage, between the log and the checkpoint of an evaluation.
KILLED = """
import os, signal, sys
from pathlib import Path
from benchmarks.datasets.dataset import Dataset
from model_export.training.config import Strategy
from model_export.training.loop import train

strategy, data, out, cache = Strategy.model_validate_json(sys.argv[1]), *map(Path, sys.argv[2:])

def kill(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("latest.pt"):
        if any(row.startswith("1,") for row in (out / "log.csv").read_text().splitlines()):
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
train(strategy, Dataset(data), out, cache)
"""


def test_killed_run_resumes_to_the_same_result(
    fine_tuned: Path, shapes: Dataset, cache: Path, tmp_path: Path
) -> None:
    """kill -9 during an evaluation of the second stage, which also trains the backbone."""
    killed, strategy = tmp_path / "killed", tiny_strategy(**FINE_TUNING)
    paths = [str(path) for path in (shapes.root, killed, cache)]
    command = [sys.executable, "-c", KILLED, strategy.model_dump_json(), *paths]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not (killed / "run.json").exists()
    train(strategy, shapes, killed, cache)
    expected, resumed = (load(folder, "latest") for folder in (fine_tuned, killed))
    for part in ("objective", "descriptor"):
        assert same(expected[part], resumed[part])
    assert expected["memory"]["steps"] == resumed["memory"]["steps"]


def test_fine_tuning_changes_only_what_is_not_frozen(fine_tuned: Path) -> None:
    before = descriptor_graph(backbone_named("efficientnet-lite0")).state_dict()
    after = load(fine_tuned, "latest")["descriptor"]
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any("_blocks.15" in name for name in changed)
    assert not any(name.startswith(("1.network._conv_stem", "1.network._blocks.0.")) for name in changed)
    assert not any("running_" in name or "num_batches" in name for name in changed)


def test_nan_stops_and_keeps_the_last_good_checkpoint(
    plain_run: Path, shapes: Dataset, cache: Path, tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(cache, tmp_path / "cache"))
    files = list(damaged.rglob("signs/train-0-*.npy"))
    for file in files:
        np.save(file, np.full_like(np.load(file), np.nan))
    # Every step is evaluated, and signs is the third domain.
    stages = [{"train": "head", "epochs": 4, "batch": 8, "lr": 0.01, "evaluations": 12}]
    with pytest.raises(TrainingError, match="last good checkpoint"):
        train(tiny_strategy(stages=stages), shapes, tmp_path / "run", damaged)
    state = load(tmp_path / "run", "latest")
    assert state["memory"]["total_steps"] == 2
    assert all(bool(torch.isfinite(value).all()) for value in state["objective"].values())
    train(tiny_strategy(stages=stages), shapes, tmp_path / "run", cache)
    resumed, expected = (load(folder, "latest")["objective"] for folder in (tmp_path / "run", plain_run))
    assert same(resumed, expected)


def test_full_disk_is_one_error_and_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.save("latest", {"number": torch.ones(3)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a write beyond it fails
    try:
        with pytest.raises(WriteError, match=r"latest\.pt could not be written"):
            run.save("latest", {"number": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.equal(load(run.path, "latest")["number"], torch.ones(3))
    assert [file.name for file in run.path.iterdir()] == ["latest.pt"]


def test_folder_of_another_run_is_left_unchanged(
    plain_run: Path, shapes: Dataset, cache: Path, tmp_path: Path
) -> None:
    shutil.copytree(plain_run, tmp_path / "run")
    with pytest.raises(TrainingError, match="another configuration"):
        train(tiny_strategy(seed=1), shapes, tmp_path / "run", cache)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    with pytest.raises(TrainingError, match="left unchanged"):
        train(tiny_strategy(), shapes, tmp_path / "mine", cache)
    (tmp_path / "run" / "run.json").unlink()
    (tmp_path / "run" / "latest.pt").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(TrainingError, match="damaged"):
        train(tiny_strategy(), shapes, tmp_path / "run", cache)


def test_unknown_and_empty_domains_are_named(shapes: Dataset, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no domain cars"):
        train(tiny_strategy(domains=["cars"]), shapes, tmp_path / "run", cache)
    empty = tmp_path / "data" / "info_files" / "void"
    empty.mkdir(parents=True)
    (tmp_path / "data" / "images").mkdir()
    (empty / "train.json").write_text(json.dumps([]))
    with pytest.raises(SourceError, match="no training images in void"):
        train(tiny_strategy(), Dataset(tmp_path), tmp_path / "other", cache)


def test_strategy_that_does_not_fit_the_data_does_not_claim_the_folder(
    shapes: Dataset, cache: Path, tmp_path: Path
) -> None:
    invalid = {"kind": "steps", "steps": {"discs": 1, "typo": 1}}
    with pytest.raises(ConfigError, match="typo"):
        train(tiny_strategy(sampling=invalid), shapes, tmp_path / "run", cache)
    valid = {"kind": "steps", "steps": {"discs": 2, "plates": 1, "signs": 1}}
    train(tiny_strategy(sampling=valid), shapes, tmp_path / "run", cache)


def test_file_instead_of_a_folder_is_left_unchanged(shapes: Dataset, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TrainingError, match="is a file"):
        train(tiny_strategy(), shapes, tmp_path / "file", cache)
    assert (tmp_path / "file").read_text() == "mine"


def test_trainings_in_one_process_may_differ_in_precision(
    shapes: Dataset, cache: Path, tmp_path: Path
) -> None:
    for precision in ("bf16", "no"):
        train(tiny_strategy(mixed_precision=precision), shapes, tmp_path / precision, cache)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_is_one_sentence_from_any_process(
    workers: int, shapes: Dataset, cache: Path, tmp_path: Path
) -> None:
    data = Dataset(Path(shutil.copytree(shapes.root, tmp_path / "data")))
    broken = data.image(data.records("discs", "train")[0])
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(SourceError, match=str(broken)) as error:
        train(tiny_strategy(stages=[{"train": "all", "epochs": 2}]), data, tmp_path / "run", cache, workers)
    assert "\n" not in str(error.value)


def test_replaced_images_are_described_again(
    plain_run: Path, shapes: Dataset, cache: Path, tmp_path: Path
) -> None:
    data = Dataset(Path(shutil.copytree(shapes.root, tmp_path / "data")))
    for file in (data.root / "data" / "images" / "signs").glob("*.png"):
        Image.effect_noise((48, 40), 64).convert("RGB").save(file)
    train(tiny_strategy(), Dataset(data.root), tmp_path / "after", cache)
    assert not same(head_of(plain_run), head_of(tmp_path / "after"))
    data.image(data.records("discs", "val")[0]).unlink()
    with pytest.raises(SourceError, match="1 images"):
        train(tiny_strategy(), Dataset(data.root), tmp_path / "missing", cache)


@pytest.mark.usefixtures("plain_run")
def test_descriptors_are_computed_once(shapes: Dataset, cache: Path, tmp_path: Path) -> None:
    files = {file: file.stat().st_mtime_ns for file in cache.rglob("*.npy")}
    train(tiny_strategy(), shapes, tmp_path / "b", cache)
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*.npy")} == files
    assert all(np.load(file).dtype == np.float32 for file in files)


def test_ctrl_c_during_a_write_is_not_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:  # as when torch's writer closes an incomplete file
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos 320 vs 220")

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        RunFolder(tmp_path).save("latest", {})
