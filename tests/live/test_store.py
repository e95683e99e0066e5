"""A model folder is added to BentoML's store and served from it. Each test has a separate store."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from model_export.export.fp32 import export_model
from service.manifest import load_manifest
from tests.support.tiny import tiny_data, tiny_trained


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables of a separate process per command: BentoML reads its home once."""
    home = {"BENTOML_HOME": str(tmp_path / "bentoml"), "BENTOML_DO_NOT_TRACK": "true", "COLUMNS": "200"}
    return {**os.environ, **home}


def run(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_exported_model_can_be_served_from_the_store(tmp_path: Path, environment: dict[str, str]) -> None:
    data = tiny_data(tmp_path / "data")
    export_model(tiny_trained("conv"), data, tmp_path / "base")
    out = tmp_path / "tiny-fp16"
    export = ["model_export", "export", str(tmp_path / "base"), "--precision", "fp16", "--out", str(out)]
    exported = run(environment, *export, "--data", str(data.root))
    card = load_manifest(out)
    tag = f"tiny-fp16:{card.fingerprint}"
    assert tag in exported
    (stored,) = (tmp_path / "bentoml" / "models" / "tiny-fp16").glob(card.fingerprint)
    for file in out.iterdir():
        assert (stored / file.name).read_bytes() == file.read_bytes()
    others = [stored.parent / name for name in ("without-hash", "without-card")]
    for other in others:
        shutil.copytree(stored, other)
    (others[0] / "model.onnx").write_bytes(b"half a file")
    (others[1] / "model.yaml").write_text("a: [")
    listed = run(environment, "model_export", "list")
    assert tag in listed
    for other in others:
        assert f"tiny-fp16:{other.name} is damaged" in listed
    assert "efficientnet-lite0" in listed
    settings = {**environment, "UIE_MODEL": tag, "UIE_DATA_DIR": str(tmp_path / "index")}
    ready = run(settings, "service", "check").splitlines()[-1]
    assert ready == f"ready: tiny-fp16, fp16, cpu; index {tmp_path / 'index'}: 0 items"
    again = run(environment, *export, "--data", str(data.root), "--no-store")
    assert "store" not in again
    export[-1] = str(tmp_path / "my model")
    refused = subprocess.run(
        [sys.executable, "-m", *export], env=environment, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"model_export: {export[-1]}: ")
    assert "tag" in refused.stderr
    assert not Path(export[-1]).exists()


def test_an_unknown_tag_is_refused_in_one_sentence(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", "check"],
        env={**environment, "UIE_MODEL": "nothing:here"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "UIE_MODEL: nothing:here" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_labels_hold_fingerprint_and_precision(tmp_path: Path, environment: dict[str, str]) -> None:
    card = export_model(tiny_trained("conv"), None, tmp_path / "Tiny")
    program = (
        "import json, sys; from pathlib import Path; import bentoml;"
        "from model_export.export.store import put_in_store; from service.manifest import load_manifest;"
        "folder = Path(sys.argv[1]); card = load_manifest(folder);"
        "tags = [put_in_store(folder, card) for _ in range(2)];"
        "print(json.dumps([*tags, dict(bentoml.models.get(tags[0]).info.labels)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "Tiny")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    tag = f"tiny:{card.fingerprint}"
    assert json.loads(done.stdout) == [tag, tag, {"fingerprint": card.fingerprint, "precision": "fp32"}]
