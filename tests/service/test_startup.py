"""Startup: settings, manifest, model and provider, and the errors that stop it."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.errors import TargetError
from benchmarks.targets.process import running_module, running_service
from service.__main__ import serve
from service.errors import ManifestError, SettingsError, StartupError
from service.inference.encoder import Encoder
from service.inference.images import decode
from service.manifest import Manifest, fingerprint, load_canonical, load_manifest, sha256_of
from service.settings import Settings, load_settings
from tests.support.images import encode, noise
from tests.support.waiting import LIMIT_S


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UIE_MAX_BATCH", "4")
    monkeypatch.setenv("UIE_API_KEYS", "old-key, new-key,")
    settings = load_settings()
    assert settings.max_batch == 4
    assert [key.get_secret_value() for key in settings.api_keys] == ["old-key", "new-key"]
    assert "old-key" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("UIE_MAX_BATCH", "0", "UIE_MAX_BATCH: Input should be greater than or equal to 1"),
        ("UIE_MAX_BATCH", "many", "UIE_MAX_BATCH"),
        ("UIE_COLLECTION", "../up", "UIE_COLLECTION"),
        ("UIE_API_KEYS", "", "UIE_API_KEYS"),
        ("UIE_API_KEYS", " , ", "UIE_API_KEYS"),
        ("UIE_API_KEYS", "  ", "UIE_API_KEYS"),
        ("UIE_API_KEY", "secret", "no such setting: UIE_API_KEY; `python -m service settings`"),
        ("UIE_PORT", "3000", "no such setting: UIE_PORT"),
        ("UIE_SERVICE_HOST", "example.org", "no such setting: UIE_SERVICE_HOST"),
        ("UIE_KEEP_ALIVE_S", "0", "UIE_KEEP_ALIVE_S"),
        ("UIE_QDRANT_URL", "localhost:6333", "UIE_QDRANT_URL: must be a URL that begins with http"),
        ("UIE_QDRANT_URL", "qdrant", "UIE_QDRANT_URL: must be a URL"),
        ("UIE_QDRANT_URL", "http://:6333", "UIE_QDRANT_URL: must be a URL"),
        ("UIE_QDRANT_URL", "http://qdrant:99999", "UIE_QDRANT_URL: must be a URL"),
        ("UIE_OTLP_URL", "collector:4318", "UIE_OTLP_URL: must be a URL"),
    ],
)
def test_an_error_names_the_invalid_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refusal:
        load_settings()
    assert message in str(refusal.value)


@pytest.mark.parametrize("value", ["", "  "])
@pytest.mark.parametrize("name", sorted(set(Settings.model_fields) - {"api_keys"}))
def test_a_blank_setting_counts_as_not_set(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    defaults = load_settings()
    monkeypatch.setenv(f"UIE_{name.upper()}", value)
    assert load_settings() == defaults


@pytest.mark.parametrize("prefix", ["UIE", "UIE_HTTP_API"])
@pytest.mark.parametrize(("address", "host"), [("10.0.0.7", "10.0.0.7"), ("fd00::7", "[fd00::7]")])
def test_the_variables_that_kubernetes_adds_for_a_service_are_ignored(
    monkeypatch: pytest.MonkeyPatch, prefix: str, address: str, host: str
) -> None:
    defaults = load_settings()
    added = {
        "SERVICE_HOST": address,
        "SERVICE_PORT": "3000",
        "SERVICE_PORT_HTTP": "3000",
        "PORT": f"tcp://{host}:3000",
        "PORT_3000_TCP": f"tcp://{host}:3000",
        "PORT_3000_TCP_PROTO": "tcp",
        "PORT_3000_TCP_PORT": "3000",
        "PORT_3000_TCP_ADDR": address,
    }
    for name, value in added.items():
        monkeypatch.setenv(f"{prefix}_{name}", value)
    assert load_settings() == defaults


@pytest.mark.parametrize(
    ("host", "address"),
    [("::", "::"), ("::1", "::1"), ("localhost", "127.0.0.1"), ("0.0.0.0", "0.0.0.0")],  # noqa: S104
)
def test_a_host_is_resolved_to_an_address_of_either_family(
    monkeypatch: pytest.MonkeyPatch, host: str, address: str
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: commands.append(command))
    serve(host, 0)
    options = dict(itertools.pairwise(commands[0]))
    assert options["--host"] == address


def test_a_host_without_an_address_is_refused() -> None:
    with pytest.raises(SettingsError, match="cannot listen"):
        serve("no such host", 0)


@pytest.fixture
def model(zoo_model: Path, tmp_path: Path) -> Path:
    """A copy that a test may modify."""
    return Path(shutil.copytree(zoo_model, tmp_path / "model"))


def rewrite(model: Path, **changes: object) -> None:
    file = model / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"resize": "stretch"},
        {"crop": "random"},
        {"exif": "maybe"},
        {"precision": "int3"},
        {"resize_px": 100},
        {"surprise": 1},
    ],
)
def test_an_invalid_value_in_a_manifest_is_an_error_that_names_the_file(
    model: Path, changes: dict[str, object]
) -> None:
    rewrite(model, **changes)
    with pytest.raises(ManifestError) as refusal:
        load_manifest(model)
    assert str(model / "manifest.json") in str(refusal.value)
    assert next(iter(changes)) in str(refusal.value)


def test_the_fingerprint_depends_on_the_preprocessing(model: Path, manifest: Manifest) -> None:
    changed = manifest.preprocessing.model_copy(update={"resize_px": 256})
    assert fingerprint(manifest.onnx_sha256, changed, "fp32") != manifest.fingerprint
    assert fingerprint(manifest.onnx_sha256, manifest.preprocessing, "fp32") == manifest.fingerprint
    rewrite(model, resize_px=256)
    with pytest.raises(ManifestError, match="fingerprint"):
        load_manifest(model)


def test_an_altered_graph_is_refused(model: Path) -> None:
    with (model / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(ManifestError, match="is not the file"):
        load_manifest(model)


def test_an_altered_canonical_image_is_refused(model: Path) -> None:
    (model / "canonical.png").write_bytes(encode(noise(1)))
    with pytest.raises(ManifestError, match="is not the image"):
        load_canonical(model)


@pytest.mark.parametrize("content", ["[]", "", "{}", '{"embedding": [null, null, null, null, null, null]}'])
def test_a_file_of_another_shape_is_refused_in_one_sentence(model: Path, content: str) -> None:
    for file, load in (("canonical.json", load_canonical), ("manifest.json", load_manifest)):
        (model / file).write_text(content)
        with pytest.raises(ManifestError) as error:
            load(model)
        message = str(error.value)
        assert message.startswith(f"{model / file}: ")
        assert not re.search(r"\n|https://|: :|(;.*){5}", message)


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="does not exist"):
        load_manifest(tmp_path)


def test_the_shipped_model_is_small_and_its_manifest_complete(zoo_model: Path, manifest: Manifest) -> None:
    assert (zoo_model / "model.onnx").stat().st_size <= 15_000_000
    assert manifest.name == zoo_model.name
    assert manifest.licence == "Apache-2.0"
    assert len(manifest.domains) == 8
    assert sha256_of(zoo_model / "model.onnx") == manifest.onnx_sha256


def test_the_encoder_returns_the_canonical_embedding_batched_and_single(
    zoo_model: Path, manifest: Manifest
) -> None:
    encoder = Encoder(zoo_model, manifest, "cpu", 2)
    data, canonical = load_canonical(zoo_model)
    pixels = decode(data, manifest.preprocessing, 10**6)
    others = [decode(encode(noise(seed)), manifest.preprocessing, 10**6) for seed in range(6)]
    batched = encoder.encode(np.stack([pixels, *others]))
    assert batched.shape == (7, 64)
    assert batched.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(batched, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(batched[0], canonical.embedding, atol=2e-5)
    singles = np.concatenate([encoder.encode(image[None]) for image in (pixels, *others)])
    np.testing.assert_allclose(batched, singles, atol=2e-6)


def test_an_unavailable_provider_is_refused(zoo_model: Path, manifest: Manifest) -> None:
    with pytest.raises(StartupError, match="'openvino' is not available"):
        Encoder(zoo_model, manifest, "openvino", 1)


def test_a_graph_that_does_not_match_the_manifest_is_refused(zoo_model: Path, manifest: Manifest) -> None:
    with pytest.raises(StartupError, match="does not map uint8"):
        Encoder(zoo_model, manifest.model_copy(update={"dim": 32}), "cpu", 1)


@pytest.mark.integration
def test_the_command_reports_a_wrong_setting_without_a_traceback(tmp_path: Path) -> None:
    """It fails before a worker starts, because the supervisor would restart that worker indefinitely."""
    with pytest.raises(TargetError) as refusal, running_service(tmp_path / "log", threads="1", lanes="2"):
        pass
    log = (tmp_path / "log").read_text()
    assert "UIE_LANES=2 exceeds UIE_THREADS=1" in str(refusal.value)
    assert "Traceback" not in log


@pytest.mark.integration
def test_the_service_listens_on_both_families(tmp_path: Path) -> None:
    command, variables = ("service", "serve", "--host", "::"), {"UIE_DATA_DIR": str(tmp_path / "index")}
    with running_module(tmp_path / "log", None, command, variables) as service:
        port = service.url.rpartition(":")[2]
        for host in ("[::1]", "127.0.0.1", "localhost"):
            assert httpx.get(f"http://{host}:{port}/v1/domains", timeout=LIMIT_S).status_code == 200


@pytest.mark.integration
def test_a_second_service_on_the_same_index_is_refused(tmp_path: Path) -> None:
    data_dir = str(tmp_path / "index")
    with running_service(tmp_path / "first.log", data_dir=data_dir):
        with (
            pytest.raises(TargetError, match="cannot open"),
            running_service(tmp_path / "second.log", data_dir=data_dir),
        ):
            pass
        assert "Traceback" not in (tmp_path / "second.log").read_text()


@pytest.mark.integration
@pytest.mark.parametrize("package", ["service", "model_export", "benchmarks"])
def test_help_lists_the_commands(package: str) -> None:
    completed = subprocess.run(
        [sys.executable, "-m", package, "--help"], capture_output=True, text=True, check=True
    )
    commands = {
        "service": ("serve", "check", "settings"),
        "model_export": ("export", "verify", "embed", "list"),
        "benchmarks": ("octet", "index", "replay", "report", "efficiency", "demo"),
    }
    for command in commands[package]:
        assert command in completed.stdout
