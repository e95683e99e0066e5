"""Commands: an image folder to a run, a model folder and vectors; a checkpoint to a model folder."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.datasets.dataset import Dataset
from model_export.export.sources import from_run
from model_export.training.config import load_strategy
from model_export.training.loop import train
from model_export.training.run_folder import RunFolder
from service.inference.images import decode
from service.manifest import load_manifest
from tests.support.commands import RunCommand
from tests.support.flax_models import Clip, complete_tree, random_params, save_checkpoint
from tests.support.shapes import draw
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


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `<domain>/<class>/<image>`, with one class of a single image per domain."""
    root = tmp_path_factory.mktemp("own") / "images"
    colours = [(200, 30, 30), (30, 160, 40), (40, 60, 210), (160, 40, 160), (20, 20, 20)]
    for domain, shape in (("coins", "ellipse"), ("cards", "rectangle")):
        for label, colour in enumerate(colours):
            for number in range(1 if label == 4 else 3):
                file = root / domain / f"colour {label}" / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                draw(10 * label + number, shape, colour).save(file)
    return root


def test_from_an_image_folder_to_a_model(image_folder: Path, tmp_path: Path) -> None:
    strategy = tmp_path / "mine.toml"
    strategy.write_text(STRATEGY)
    data, out, model = tmp_path / "data", tmp_path / "run", tmp_path / "model"
    cache = ("--cache", tmp_path / "cache")
    commands = [
        ("-m", "benchmarks", "folder", image_folder, "--out", data),
        ("-m", "model_export", "train", strategy, "--data", data, "--out", out, *cache, "--json"),
        ("-m", "model_export", "export", out, "--data", data, "--out", model),
        ("-m", "model_export", "verify", model, "--data", data),
        ("-m", "model_export", "embed", model, "--data", data, "--out", tmp_path / "vectors"),
        ("-m", "model_export", "list"),
    ]
    outputs = []
    for command in commands:
        completed = run(*command, home=tmp_path / "bentoml")
        assert completed.returncode == 0, completed.stderr
        outputs.append(completed.stdout)
    assert json.loads(outputs[1].splitlines()[-1])["title"] == "tiny"
    manifest = load_manifest(model)
    assert manifest.strategy.startswith("tiny: joint normface, scale 16")
    assert re.search(r"; seed 0; best after epoch [24] of stage 1 of 1$", manifest.strategy)
    assert manifest.domains == {"cards": 2, "coins": 2}  # one of them with a single image
    assert manifest.data_fingerprint == Dataset(data).fingerprint
    assert f"model:{manifest.fingerprint}" in outputs[-1]  # in BentoML's store
    assert_vectors_are_the_runs(out, Dataset(data), tmp_path / "vectors")


def assert_vectors_are_the_runs(out: Path, data: Dataset, vectors: Path) -> None:
    """Compare the vectors of ONNX Runtime with torch and the head of the best checkpoint."""
    trained = from_run(RunFolder(out), data)
    head = RunFolder(out).best().head
    files = [data.image(record) for record in data.records("coins", "test")]
    pixels = np.stack([decode(file.read_bytes(), trained.preprocessing, 10**9) for file in files])
    with torch.inference_mode():
        expected = head(trained.descriptor(torch.from_numpy(pixels)).numpy())
    np.testing.assert_allclose(np.load(vectors / "coins" / "test.npy"), expected, atol=1e-4)


def test_checkpoint_becomes_a_model(run_command: RunCommand, tmp_path: Path) -> None:
    params = random_params(Clip(64, 2, 4, 16), 224, seed=0)
    file = save_checkpoint(complete_tree(params, 64, "UDON"), tmp_path / "checkpoint")
    command = ("import", file, "--out", tmp_path / "model", "--data", tmp_path / "none")
    completed = run_command(*command, "--no-store")
    assert completed.returncode == 0, completed.stderr
    manifest = load_manifest(tmp_path / "model")
    assert (manifest.dim, manifest.input_px) == (64, 224)
    assert (manifest.interpolation, manifest.exif) == ("bilinear-no-antialias", "ignore")
    incomplete = tiny_data(tmp_path / "incomplete")
    incomplete.image(incomplete.records("plants", "train")[0]).unlink()
    photos = (*command[:-1], incomplete.root, "--no-store")
    assert run_command(*photos).returncode == 1
    completed = run_command(*photos, "--allow-missing")
    assert completed.returncode == 0, completed.stderr
    manifest = load_manifest(tmp_path / "model")
    file.write_bytes(file.read_bytes()[:-100])
    completed = run_command(*command, "--no-store")
    assert completed.returncode == 1
    assert len(completed.stderr.strip().splitlines()) == 1
    assert load_manifest(tmp_path / "model") == manifest  # unchanged


def test_missing_images_are_errors_or_ignored(
    run_command: RunCommand, shapes: Dataset, cache: Path, tmp_path: Path
) -> None:
    shutil.copytree(shapes.root, tmp_path / "data")
    data = Dataset(tmp_path / "data")
    missing = data.image(data.records("discs", "train")[0])
    missing.unlink()
    strategy = tmp_path / "mine.toml"
    strategy.write_text(STRATEGY)
    command = ("train", strategy, "--data", data.root, "--out", tmp_path / "run")
    completed = run_command(*command, "--cache", cache)
    assert completed.returncode == 1
    assert completed.stderr.strip().startswith("model_export: 1 images")
    assert completed.stderr.strip().endswith(str(missing))
    completed = run_command(*command, "--cache", cache, "--allow-missing")
    assert completed.returncode == 0, completed.stderr
    present = Dataset(data.root, present_only=True)
    assert len(present.records("discs", "train")) == len(data.records("discs", "train")) - 1
    assert present.fingerprint != data.fingerprint
    assert RunFolder(tmp_path / "run").strategy()[1] == present.fingerprint
    export = ("export", tmp_path / "run", "--data", data.root, "--allow-missing")
    completed = run_command(*export, "--out", tmp_path / "model", "--no-store")
    assert completed.returncode == 0, completed.stderr
    assert load_manifest(tmp_path / "model").data_fingerprint == present.fingerprint


def test_two_processes_train_one_head(shapes: Dataset, cache: Path, tmp_path: Path) -> None:
    """Each process takes a part of every batch; the mean of their gradients is that of the batch."""
    strategy = tmp_path / "mine.toml"
    strategy.write_text(STRATEGY)
    config = load_strategy(strategy)
    train(config, shapes, tmp_path / "one", cache)
    launch = "-m accelerate.commands.launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no"
    command = ("-m", "model_export", "train", strategy, "--data", shapes.root, "--out", tmp_path / "two")
    completed = run(*launch.split(), "--dynamo_backend", "no", *command, "--cache", cache, home=tmp_path)
    assert completed.returncode == 0, completed.stderr
    single, double = (RunFolder(tmp_path / name).load("latest") for name in ("one", "two"))
    assert single is not None
    assert double is not None
    assert single["memory"]["steps"] == double["memory"]["steps"]
    weights = [state["objective"]["embed.weight"] for state in (single, double)]
    torch.manual_seed(config.seed)
    start = torch.nn.Linear(1280, 64).weight.detach()  # as initialised by the loop
    single_change, double_change = ((weight - start).flatten() for weight in weights)
    assert float(torch.nn.functional.cosine_similarity(single_change, double_change, dim=0)) > 0.9999
