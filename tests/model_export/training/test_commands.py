"""From the command line: a folder of one's own to a run, a model folder, vectors; a checkpoint to a model."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.datasets.dataset import Dataset
from model_export.__main__ import main
from model_export.export.sources import from_run
from model_export.training.config import load_strategy
from model_export.training.loop import train
from model_export.training.run_folder import RunFolder, head_of
from service.inference.images import decode
from service.manifest import load_manifest
from tests.model_export.test_flax_import import save, whole_tree
from tests.model_export.training.conftest import draw
from tests.support.flax_models import Clip, random_params
from tests.support.tiny import tiny_data

ROOT = Path(__file__).parents[3]
STRATEGY = """
title = "tiny"
backbone = "efficientnet-lite0"
[[stages]]
train = "head"
epochs = 4
batch = 8
evaluations = 2
"""


def run(*words: str | Path, home: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "true", "COLUMNS": "300"}
    command = [sys.executable, *[str(word) for word in words]]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command in this process, which has imported torch already. (Not where BentoML's store is read.)"""

    def call(*words: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        capfd.readouterr()
        try:
            main()
        except SystemExit as ended:
            return Done(int(ended.code or 0), *capfd.readouterr())
        raise AssertionError("a command ends by SystemExit")

    return call


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<domain>/<class>/<picture>`, one class of a single picture."""
    root = tmp_path_factory.mktemp("mine") / "pictures"
    colours = [(200, 30, 30), (30, 160, 40), (40, 60, 210), (160, 40, 160), (20, 20, 20)]
    for domain, shape in (("coins", "ellipse"), ("cards", "rectangle")):
        for label, colour in enumerate(colours):
            for number in range(1 if label == 4 else 3):
                file = root / domain / f"colour {label}" / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                draw(10 * label + number, shape, colour).save(file)
    return root


def test_from_a_folder_of_pictures_to_a_model(mine: Path, tmp_path: Path) -> None:
    strategy = tmp_path / "mine.toml"
    strategy.write_text(STRATEGY)
    data, out, model = tmp_path / "data", tmp_path / "run", tmp_path / "model"
    cache = ("--cache", tmp_path / "cache")
    commands = [
        ("-m", "benchmarks", "folder", mine, "--out", data),
        ("-m", "model_export", "train", strategy, "--data", data, "--out", out, *cache, "--json"),
        ("-m", "model_export", "export", out, "--data", data, "--out", model),
        ("-m", "model_export", "verify", model, "--data", data),
        ("-m", "model_export", "embed", model, "--data", data, "--out", tmp_path / "vectors"),
        ("-m", "model_export", "list"),
    ]
    said = []
    for command in commands:
        done = run(*command, home=tmp_path / "bentoml")
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert json.loads(said[1].splitlines()[-1])["title"] == "tiny"
    manifest = load_manifest(model)
    assert manifest.strategy.startswith("tiny: joint normface, scale 16")
    assert re.search(r"; seed 0; best after epoch [24] of stage 1 of 1$", manifest.strategy)
    assert manifest.domains == {"cards": 2, "coins": 2}  # one of them of a single picture
    assert manifest.data_fingerprint == Dataset(data).fingerprint
    assert f"model:{manifest.fingerprint}" in said[-1]  # in BentoML's store
    assert_vectors_are_the_runs(out, Dataset(data), tmp_path / "vectors")


def assert_vectors_are_the_runs(out: Path, data: Dataset, vectors: Path) -> None:
    """What ONNX Runtime writes is what torch gives with the best checkpoint's head."""
    trained = from_run(RunFolder(out), data)
    state = RunFolder(out).load("best")
    assert state is not None
    files = [data.image(record) for record in data.records("coins", "test")]
    pixels = np.stack([decode(file.read_bytes(), trained.preprocessing, 10**9) for file in files])
    with torch.inference_mode():
        wanted = head_of(state["embed"])(trained.descriptor(torch.from_numpy(pixels)).numpy())
    np.testing.assert_allclose(np.load(vectors / "coins" / "test.npy"), wanted, atol=1e-4)


def test_a_checkpoint_becomes_a_model(here: Callable[..., Done], tmp_path: Path) -> None:
    params = random_params(Clip(64, 2, 4, 16), 224, seed=0)
    file = save(whole_tree(params, 64, "UDON"), tmp_path / "checkpoint")
    command = ("model_export", "import", file, "--out", tmp_path / "model", "--data", tmp_path / "none")
    done = here(*command, "--no-store")
    assert done.returncode == 0, done.stderr
    manifest = load_manifest(tmp_path / "model")
    assert (manifest.dim, manifest.input_px) == (64, 224)
    assert (manifest.interpolation, manifest.exif) == ("bilinear-no-antialias", "ignore")
    holed = tiny_data(tmp_path / "holed")
    holed.image(holed.records("plants", "train")[0]).unlink()
    photos = (*command[:-1], holed.root, "--no-store")
    assert here(*photos).returncode == 1
    done = here(*photos, "--allow-missing")
    assert done.returncode == 0, done.stderr
    manifest = load_manifest(tmp_path / "model")
    file.write_bytes(file.read_bytes()[:-100])
    done = here(*command, "--no-store")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert load_manifest(tmp_path / "model") == manifest  # what was there stays


def test_missing_images_are_counted_and_named_or_left_out(
    here: Callable[..., Done], shapes: Dataset, cache: Path, tmp_path: Path
) -> None:
    shutil.copytree(shapes.root, tmp_path / "data")
    data = Dataset(tmp_path / "data")
    gone = data.image(data.records("discs", "train")[0])
    gone.unlink()
    strategy = tmp_path / "mine.toml"
    strategy.write_text(STRATEGY)
    command = ("model_export", "train", strategy, "--data", data.root, "--out", tmp_path / "run")
    done = here(*command, "--cache", cache)
    assert done.returncode == 1
    assert done.stderr.strip() == (f"model_export: 1 images of {data.root} are not there: {gone}")
    done = here(*command, "--cache", cache, "--allow-missing")
    assert done.returncode == 0, done.stderr
    present = Dataset(data.root, present_only=True)
    assert len(present.records("discs", "train")) == len(data.records("discs", "train")) - 1
    assert present.fingerprint != data.fingerprint
    assert RunFolder(tmp_path / "run").strategy()[1] == present.fingerprint
    export = ("model_export", "export", tmp_path / "run", "--data", data.root, "--allow-missing")
    done = here(*export, "--out", tmp_path / "model", "--no-store")
    assert done.returncode == 0, done.stderr
    assert load_manifest(tmp_path / "model").data_fingerprint == present.fingerprint


def test_two_processes_train_one_head(shapes: Dataset, cache: Path, tmp_path: Path) -> None:
    """Each takes its part of a batch; the mean of their gradients is the batch's."""
    strategy = tmp_path / "mine.toml"
    strategy.write_text(STRATEGY)
    said = load_strategy(strategy)
    train(said, shapes, tmp_path / "one", cache)
    launch = "-m accelerate.commands.launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no"
    command = ("-m", "model_export", "train", strategy, "--data", shapes.root, "--out", tmp_path / "two")
    done = run(*launch.split(), "--dynamo_backend", "no", *command, "--cache", cache, home=tmp_path)
    assert done.returncode == 0, done.stderr
    one, two = (RunFolder(tmp_path / name).load("latest") for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert one["memory"]["steps"] == two["memory"]["steps"]
    weights = [state["objective"]["embed.weight"] for state in (one, two)]
    torch.manual_seed(said.seed)
    start = torch.nn.Linear(1280, 64).weight.detach()  # as the loop draws it
    alone, together = ((weight - start).flatten() for weight in weights)
    assert float(torch.nn.functional.cosine_similarity(alone, together, dim=0)) > 0.9999
