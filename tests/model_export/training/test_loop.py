"""The loop on real pictures and the real backbone: it learns, resumes after a kill, and stops at NaN."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.datasets.dataset import Dataset
from model_export.errors import ConfigError, SourceError, TrainingError, WriteError
from model_export.networks.backbones import backbone_named
from model_export.networks.graph import descriptor_graph
from model_export.training.data import CachedDescriptors
from model_export.training.loop import train
from model_export.training.run_folder import RunFolder
from model_export.training.sampling import Batch
from tests.model_export.training.conftest import tiny

ROOT = Path(__file__).parents[3]


def head_of(folder: Path) -> dict[str, torch.Tensor]:
    state = RunFolder(folder).load("best")
    assert state is not None
    return dict(state["embed"])


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()


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
    summary = train(tiny(**changes, stages=stages), shapes, tmp_path / "run", cache)
    rows = (tmp_path / "run" / "log.csv").read_text().splitlines()
    columns = rows[0].split(",")
    first, last = (dict(zip(columns, row.split(","), strict=True)) for row in (rows[1], rows[-1]))
    assert float(last["loss class"]) < float(first["loss class"])
    assert summary.best_val_r_at_1 == max(
        float(dict(zip(columns, row.split(","), strict=True))["val R@1"]) for row in rows[1:]
    )
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_gives_the_same_head_bit_for_bit(shapes: Dataset, cache: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny(seed=seed, head={"dropout": 0.3}), shapes, tmp_path / name, cache)
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


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(
    shapes: Dataset, cache: Path, tmp_path: Path
) -> None:
    """kill -9 in the middle of the second stage; the backbone is trained, too."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(tiny(**FINE_TUNING), shapes, whole, cache)
    code = (
        "import sys; from pathlib import Path; from benchmarks.dataset import Dataset;"
        "from model_export.training.config import Strategy; from model_export.training.loop import train;"
        "train(Strategy.model_validate_json(sys.argv[1]), Dataset(Path(sys.argv[2])), Path(sys.argv[3]), "
        "Path(sys.argv[4]))"
    )
    said = tiny(**FINE_TUNING).model_dump_json()
    command = [sys.executable, "-c", code, said, str(shapes.root), str(killed), str(cache)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for_stage(killed / "log.csv", process)
        os.kill(process.pid, signal.SIGKILL)
    assert not (killed / "run.json").exists()
    train(tiny(**FINE_TUNING), shapes, killed, cache)
    one, other = (RunFolder(folder).load("latest") for folder in (whole, killed))
    assert one is not None
    assert other is not None
    for part in ("objective", "descriptor"):
        assert same(one[part], other[part])
    assert one["memory"]["steps"] == other["memory"]["steps"]


def wait_for_stage(log: Path, process: "subprocess.Popen[bytes]") -> None:
    """Until the second stage has been evaluated once."""
    deadline = time.monotonic() + 300
    while not (log.exists() and any(row.startswith("1,") for row in log.read_text().splitlines())):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_fine_tuning_moves_what_is_not_frozen(shapes: Dataset, cache: Path, tmp_path: Path) -> None:
    train(tiny(**FINE_TUNING), shapes, tmp_path / "run", cache)
    state = RunFolder(tmp_path / "run").load("latest")
    assert state is not None
    before = descriptor_graph(backbone_named("efficientnet-lite0")).state_dict()
    moved = {name for name, value in state["descriptor"].items() if not torch.equal(value, before[name])}
    assert any("_blocks.15" in name for name in moved)
    assert not any(name.startswith(("1.network._conv_stem", "1.network._blocks.0.")) for name in moved)
    assert not any("running_" in name or "num_batches" in name for name in moved)


def test_nan_stops_and_keeps_the_last_good_checkpoint(
    shapes: Dataset, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny(), shapes, tmp_path / "short", cache)  # fills the cache
    good = CachedDescriptors.of
    calls = []

    def spoiled(self: CachedDescriptors, batches: list[Batch], seed: int) -> object:
        calls.append(seed)
        for tensor in good(self, batches, seed):
            yield tensor * (float("nan") if len(calls) > 1 else 1)

    monkeypatch.setattr(CachedDescriptors, "of", spoiled)
    with pytest.raises(TrainingError, match="the last good checkpoint"):
        train(tiny(), shapes, tmp_path / "run", cache)
    state = RunFolder(tmp_path / "run").load("latest")
    assert state is not None
    assert all(bool(torch.isfinite(value).all()) for value in state["objective"].values())
    monkeypatch.undo()
    train(tiny(), shapes, tmp_path / "run", cache)
    assert same(head_of(tmp_path / "run"), head_of(tmp_path / "short"))


def test_a_full_disk_is_a_sentence_and_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    run.save("latest", {"number": torch.ones(3)})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(WriteError, match="No space left"):
        run.save("latest", {"number": torch.zeros(3)})
    state = run.load("latest")
    assert state is not None
    assert torch.equal(state["number"], torch.ones(3))
    assert [file.name for file in run.path.iterdir()] == ["latest.pt"]


def test_a_folder_of_another_run_is_left_alone(shapes: Dataset, cache: Path, tmp_path: Path) -> None:
    train(tiny(), shapes, tmp_path / "run", cache)
    with pytest.raises(TrainingError, match="another configuration"):
        train(tiny(seed=1), shapes, tmp_path / "run", cache)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    with pytest.raises(TrainingError, match="left alone"):
        train(tiny(), shapes, tmp_path / "mine", cache)
    (tmp_path / "run" / "run.json").unlink()
    (tmp_path / "run" / "latest.pt").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(TrainingError, match="damaged"):
        train(tiny(), shapes, tmp_path / "run", cache)


def test_a_domain_that_is_not_there_or_empty_is_named(shapes: Dataset, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no domain cars"):
        train(tiny(domains=["cars"]), shapes, tmp_path / "run", cache)
    empty = tmp_path / "data" / "info_files" / "void"
    empty.mkdir(parents=True)
    (tmp_path / "data" / "images").mkdir()
    (empty / "train.json").write_text(json.dumps([]))
    with pytest.raises(SourceError, match="no training images in void"):
        train(tiny(), Dataset(tmp_path), tmp_path / "other", cache)


def test_a_plan_that_does_not_fit_the_data_leaves_the_folder_to_a_better_one(
    shapes: Dataset, cache: Path, tmp_path: Path
) -> None:
    wrong = {"kind": "steps", "steps": {"discs": 1, "typo": 1}}
    with pytest.raises(ConfigError, match="typo"):
        train(tiny(sampling=wrong), shapes, tmp_path / "run", cache)
    right = {"kind": "steps", "steps": {"discs": 2, "plates": 1, "signs": 1}}
    train(tiny(sampling=right), shapes, tmp_path / "run", cache)


def test_a_file_in_the_runs_place_is_left_alone(shapes: Dataset, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TrainingError, match="is a file"):
        train(tiny(), shapes, tmp_path / "file", cache)
    assert (tmp_path / "file").read_text() == "mine"


def test_each_training_of_a_process_has_its_own_precision(
    shapes: Dataset, cache: Path, tmp_path: Path
) -> None:
    for precision in ("bf16", "no"):
        train(tiny(mixed_precision=precision), shapes, tmp_path / precision, cache)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_one_sentence_from_any_process(
    workers: int, shapes: Dataset, cache: Path, tmp_path: Path
) -> None:
    data = Dataset(Path(shutil.copytree(shapes.root, tmp_path / "data")))
    broken = data.image(data.records("discs", "train")[0])
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(SourceError, match=str(broken)) as error:
        train(tiny(stages=[{"train": "all", "epochs": 2}]), data, tmp_path / "run", cache, workers)
    assert "\n" not in str(error.value)


def test_a_picture_that_was_replaced_is_described_again(shapes: Dataset, cache: Path, tmp_path: Path) -> None:
    data = Dataset(Path(shutil.copytree(shapes.root, tmp_path / "data")))
    train(tiny(), data, tmp_path / "before", cache)
    for file in (data.root / "data" / "images").rglob("*.png"):
        Image.effect_noise((48, 40), 64).convert("RGB").save(file)
    train(tiny(), Dataset(data.root), tmp_path / "after", cache)
    assert not same(head_of(tmp_path / "before"), head_of(tmp_path / "after"))
    data.image(data.records("discs", "val")[0]).unlink()
    with pytest.raises(SourceError, match="1 images"):
        train(tiny(), Dataset(data.root), tmp_path / "missing", cache)


def test_descriptors_are_computed_once(shapes: Dataset, cache: Path, tmp_path: Path) -> None:
    train(tiny(), shapes, tmp_path / "a", cache)
    files = {file: file.stat().st_mtime_ns for file in cache.rglob("*.npy")}
    train(tiny(), shapes, tmp_path / "b", cache)
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*.npy")} == files
    assert all(np.load(file).dtype == np.float32 for file in files)


def test_ctrl_c_while_a_checkpoint_is_written_is_no_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:  # as torch's writer closes what it could not finish
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos 320 vs 220")

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        RunFolder(tmp_path).save("latest", {})
