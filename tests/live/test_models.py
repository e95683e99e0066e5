"""Several models in one service: the second one negates the embeddings of the first."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest

from benchmarks.targets.process import running_service
from service.client import Client
from service.core import Core
from service.errors import SettingsError
from service.manifest import fingerprint, load_canonical, load_manifest, onnx_sha256
from service.settings import Settings
from tests.support.images import encode, noise
from tests.support.live import PNG, embedding_of, hits_of, problem_of, uri
from tests.support.waiting import LIMIT_S

SECOND = {"model": "opposite"}
IMAGE = encode(noise(1))


def opposite(model: Path, folder: Path) -> Path:
    """A copy of the model whose graph ends in a negation."""
    shutil.copytree(model, folder)
    graph = onnx.load(folder / "model.onnx")
    for node in graph.graph.node:
        node.output[:] = ["before" if name == "embedding" else name for name in node.output]
    graph.graph.node.append(onnx.helper.make_node("Neg", ["before"], ["embedding"]))
    onnx.save(graph, folder / "model.onnx")
    manifest, (_, canonical) = load_manifest(model), load_canonical(model)
    sha256 = onnx_sha256(folder)
    changes = {"name": "opposite", "onnx_sha256": sha256}
    changes["fingerprint"] = fingerprint(sha256, manifest.preprocessing, manifest.precision)
    (folder / "manifest.json").write_text(manifest.model_copy(update=changes).model_dump_json())
    negated = {"embedding": tuple(-value for value in canonical.embedding)}
    (folder / "canonical.json").write_text(canonical.model_copy(update=negated).model_dump_json())
    return folder


@pytest.fixture(scope="module")
def both(zoo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("both")
    models = f"{zoo_model},{opposite(zoo_model, folder / 'opposite')}"
    with (
        running_service(folder / "log", model=models, data_dir=str(folder / "index")) as service,
        httpx.Client(base_url=service.url, timeout=LIMIT_S) as client,
    ):
        yield client


def test_a_request_selects_its_model(both: httpx.Client) -> None:
    first = both.post("/v1/embed", content=IMAGE, headers=PNG)
    second = both.post("/v1/embed", params=SECOND, content=IMAGE, headers=PNG)
    np.testing.assert_array_equal(embedding_of(second), -embedding_of(first))
    for response, name in ((first, "efficientnet-lite0-octet"), (second, "opposite")):
        assert response.json()["model"] == name
        assert response.headers["x-model-fingerprint"] == response.json()["fingerprint"]
    assert first.json()["fingerprint"] != second.json()["fingerprint"]


def test_every_embedding_route_takes_a_model(both: httpx.Client) -> None:
    expected = -embedding_of(both.post("/v1/embed", content=IMAGE, headers=PNG))
    bulk = both.post("/v1/embed/batch", params=SECOND, files=[("images", IMAGE)]).json()
    np.testing.assert_allclose(bulk["results"][0]["embedding"], expected, atol=1e-6)
    assert bulk["model"] == "opposite"
    openai = both.post("/v1/embeddings", json={**SECOND, "input": uri(IMAGE)})
    np.testing.assert_allclose(openai.json()["data"][0]["embedding"], expected, atol=1e-6)
    assert openai.json()["model"] == "opposite"
    assert openai.headers["x-model-fingerprint"] == bulk["fingerprint"]
    with Client(str(both.base_url)) as client:
        np.testing.assert_allclose(client.embed(IMAGE, model="opposite"), expected, atol=1e-6)
        [only] = client.embed_many([IMAGE], model="opposite")
        np.testing.assert_allclose(np.asarray(only), expected, atol=1e-6)


def test_the_index_belongs_to_the_first_model(both: httpx.Client) -> None:
    put = {"domain": "d", "label": "l"}
    for refused in (
        both.put("/v1/items/a", params={**put, **SECOND}, content=IMAGE, headers=PNG),
        both.post("/v1/search", params=SECOND, content=IMAGE, headers=PNG),
        both.post("/v1/items", params=SECOND, json={"items": []}),
    ):
        assert problem_of(refused) == (409, "fingerprint-mismatch")
    first = {"model": "efficientnet-lite0-octet"}
    assert both.put("/v1/items/a", params={**put, **first}, content=IMAGE, headers=PNG).json()["created"]
    [hit] = hits_of(both.post("/v1/search", params=first, content=IMAGE, headers=PNG))
    assert hit["score"] == pytest.approx(1, abs=1e-6)


def test_an_unknown_model_is_refused(both: httpx.Client) -> None:
    for refused in (
        both.post("/v1/embed", params={"model": "other"}, content=IMAGE, headers=PNG),
        both.post("/v1/embeddings", json={"model": "other", "input": "data:;base64,"}),
    ):
        assert problem_of(refused) == (404, "unknown-model")
        assert refused.json()["served"] == ["efficientnet-lite0-octet", "opposite"]


def test_each_model_has_metrics_and_a_card(both: httpx.Client) -> None:
    info = both.get("/v1/info").json()
    assert [model["name"] for model in info["models"]] == ["efficientnet-lite0-octet", "opposite"]
    assert info["models"][0] == {**info["model"], "batch": "dynamic", "max_batch": 16}
    metrics = both.get("/metrics").text
    for model in info["models"]:
        assert f'uie_batch_images_count{{model="{model["name"]}"}}' in metrics
        assert f'model="{model["name"]}",precision="fp32"' in metrics


def test_two_models_with_one_name_are_refused(zoo_model: Path) -> None:
    with pytest.raises(SettingsError, match="same name"):
        Core(Settings(model=(str(zoo_model), str(zoo_model))))
