"""The bento: built from `bentofile.yaml`, served away from the repository, on BentoML's own terms."""

import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.targets.process import running_service
from service.client import Client
from service.manifest import MIN_COSINE, load_canonical, load_manifest
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


def test_the_built_bento_is_served_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "true")
    build = [sys.executable, "-m", "bentoml", "build", str(ROOT), "-o", "tag"]
    built = subprocess.run(build, capture_output=True, text=True, check=True).stdout
    tag = built.split("__tag__:")[1].strip()
    monkeypatch.chdir(tmp_path)
    with (
        running_service(
            tmp_path / "log", module=("bentoml", "serve", tag), data_dir=str(tmp_path / "index")
        ) as service,
        Client(service.url) as client,
    ):
        folder = Settings().model_folders[0]
        image, canonical = load_canonical(folder)
        assert np.dot(client.embed(image), np.asarray(canonical.embedding)) > MIN_COSINE
        info = httpx.get(f"{service.url}/v1/info").json()
        assert info["model"]["fingerprint"] == load_manifest(folder).fingerprint
