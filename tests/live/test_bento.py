"""The bento: built from `bentofile.yaml` and served by BentoML's own command, outside the repository."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.targets.process import running_module
from service.client import Client
from service.manifest import MIN_COSINE, load_canonical, load_manifest
from service.settings import Settings
from tests.support.paths import ROOT
from tests.support.waiting import LIMIT_S


def test_the_built_bento_serves_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "true")
    build = [sys.executable, "-m", "bentoml", "build", str(ROOT), "-o", "tag"]
    output = subprocess.run(build, capture_output=True, text=True, check=True).stdout
    tag = output.split("__tag__:")[1].strip()
    monkeypatch.chdir(tmp_path)
    serve, variables = ("bentoml", "serve", tag), {"UIE_DATA_DIR": str(tmp_path / "index")}
    with (
        running_module(tmp_path / "log", None, serve, variables) as service,
        Client(service.url, timeout_s=LIMIT_S) as client,
    ):
        folder = Settings().model_folders[0]
        image, canonical = load_canonical(folder)
        assert np.dot(client.embed(image), np.asarray(canonical.embedding)) > MIN_COSINE
        assert client.info()["model"]["fingerprint"] == load_manifest(folder).fingerprint
