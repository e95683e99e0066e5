"""Search in the live service, on a small gallery of three domains."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks.targets.process import running_service
from tests.support.live import PNG, embedding_of, hits_of, problem_of
from tests.support.pictures import encode, noise


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service of its own, with twelve pictures of three domains in it."""
    folder = tmp_path_factory.mktemp("gallery")
    with (
        running_service(folder / "log", data_dir=str(folder / "index")) as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
    ):
        described = [
            {"id": f"pic/{n}", "domain": f"d{n % 3}", "label": f"l{n % 2}", "payload": {"n": n}}
            for n in range(12)
        ]
        images = [("images", (f"{n}.png", encode(noise(n)))) for n in range(12)]
        results = client.post("/v1/items", data={"items": json.dumps(described)}, files=images).json()[
            "results"
        ]
        assert results == [{"id": f"pic/{n}"} for n in range(12)]
        yield client


def test_a_picture_finds_itself(gallery: httpx.Client) -> None:
    response = gallery.post("/v1/search", content=encode(noise(4)), headers=PNG, params={"k": 5})
    hits = hits_of(response)
    assert len(hits) == 5
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)
    assert {key: hits[0][key] for key in ("id", "domain", "label", "payload")} == {
        "id": "pic/4",
        "domain": "d1",
        "label": "l0",
        "payload": {"n": 4},
    }
    scores = [hit["score"] for hit in hits]
    assert scores == sorted(scores, reverse=True)
    shares = response.json()["domains"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["d1"] == sum(hit["domain"] == "d1" for hit in hits) / 5
    assert set(
        dict(part.strip().split(";dur=") for part in response.headers["server-timing"].split(","))
    ) == {
        "decode",
        "queue",
        "infer",
        "search",
        "total",
    }


def test_large_pictures_are_read_whole(gallery: httpx.Client) -> None:
    """Bodies of many chunks, by every route that takes a picture."""
    data = encode(Image.effect_noise((1200, 1200), 90).convert("RGB"), "PNG", compress_level=1)
    assert len(data) > 2_000_000
    wanted = embedding_of(gallery.post("/v1/embed", content=data, headers=PNG))
    params = {"domain": "large", "label": "l"}
    assert gallery.put("/v1/items/large", content=data, headers=PNG, params=params).json()["created"]
    for _ in range(10):
        for body in ({"content": data, "headers": PNG}, {"files": {"image": data}}):
            (hit,) = hits_of(gallery.post("/v1/search", params={"domain": "large", "k": 1}, **body))
            assert hit["score"] == pytest.approx(1, abs=1e-5)
    described = json.dumps([{"id": "large", "domain": "large", "label": "l"}])
    bulk = gallery.post("/v1/items", data={"items": described}, files={"images": data})
    assert bulk.json()["results"] == [{"id": "large"}]
    np.testing.assert_array_equal(gallery.get("/v1/items/large").json()["embedding"], wanted)
    assert gallery.delete("/v1/items/large").json() == {"deleted": True}


def test_image_embedding_and_id_ask_the_same(gallery: httpx.Client) -> None:
    item = gallery.get("/v1/items/pic%2F4").json()
    by_image = hits_of(gallery.post("/v1/search", files={"image": encode(noise(4))}))
    by_embedding = hits_of(gallery.post("/v1/search", json={"embedding": item["embedding"]}))
    by_id = hits_of(gallery.post("/v1/search", json={"id": "pic/4"}))
    assert by_embedding == by_id
    assert [hit["id"] for hit in by_image] == [hit["id"] for hit in by_id]
    assert len(by_id) == 10
    scaled = [value * 1e-30 for value in item["embedding"]]
    assert [h["id"] for h in hits_of(gallery.post("/v1/search", json={"embedding": scaled}))] == [
        hit["id"] for hit in by_id
    ]


def test_search_agrees_with_numpy_over_the_items(gallery: httpx.Client) -> None:
    ids = [f"pic/{n}" for n in range(12)]
    rows = np.asarray([gallery.get(f"/v1/items/{i.replace('/', '%2F')}").json()["embedding"] for i in ids])
    for n in range(12):
        scores = rows @ rows[n]
        hits = hits_of(gallery.post("/v1/search", json={"id": ids[n]}, params={"k": 12, "exact": True}))
        assert [hit["id"] for hit in hits] == [ids[m] for m in np.argsort(-scores)]
        np.testing.assert_allclose([hit["score"] for hit in hits], np.sort(scores)[::-1], atol=1e-6)


def test_parameters_of_search(gallery: httpx.Client) -> None:
    ask = {"id": "pic/4"}
    only = hits_of(
        gallery.post("/v1/search", json=ask, params=[("domain", "d1"), ("domain", "d2"), ("k", 100)])
    )
    assert {hit["domain"] for hit in only} == {"d1", "d2"}
    assert len(only) == 8
    without = hits_of(
        gallery.post("/v1/search", json=ask, params=[("exclude", "pic/4"), ("exclude", "pic/0"), ("k", 100)])
    )
    assert {hit["id"] for hit in without} == {f"pic/{n}" for n in range(12)} - {"pic/4", "pic/0"}
    near = hits_of(gallery.post("/v1/search", json=ask, params={"min_score": 0.999}))
    assert [hit["id"] for hit in near] == ["pic/4"]
    grouped = gallery.post("/v1/search", json=ask, params={"group_by": "domain", "k": 12}).json()
    assert grouped["groups"][0]["key"] == "d1"
    assert sorted(len(group["hits"]) for group in grouped["groups"]) == [4, 4, 4]
    labels = gallery.post("/v1/search", json=ask, params={"group_by": "label", "k": 12}).json()["groups"]
    assert len(labels) == 6  # a label is local to its domain


@pytest.mark.parametrize(
    ("body", "params", "status", "slug"),
    [
        ({"embedding": [1.0] * 63}, {}, 422, "embedding-shape"),
        ({"embedding": [0.0] * 64}, {}, 422, "embedding-shape"),
        ({"embedding": ["x"] * 64}, {}, 422, "embedding-shape"),
        ({"embedding": [True] * 64}, {}, 422, "embedding-shape"),
        ({"embedding": [10**400] * 64}, {}, 422, "embedding-shape"),
        ({"embedding": "x"}, {}, 422, "embedding-shape"),
        ({"id": "nobody"}, {}, 404, "unknown-item"),
        ({"id": ""}, {}, 400, "invalid-request"),
        ({"id": 7}, {}, 400, "invalid-request"),
        ({"id": "pic/4", "embedding": [1.0] * 64}, {}, 400, "invalid-request"),
        ({}, {}, 400, "invalid-request"),
        ([], {}, 400, "invalid-request"),
        ({"id": "pic/4"}, {"domain": "nowhere"}, 404, "unknown-domain"),
        ({"id": "pic/4"}, {"domain": "No Name"}, 400, "invalid-request"),
        ({"id": "pic/4"}, {"k": "0"}, 400, "invalid-request"),
        ({"id": "pic/4"}, {"k": "101"}, 400, "invalid-request"),
        ({"id": "pic/4"}, {"k": "ten"}, 400, "invalid-request"),
        ({"id": "pic/4"}, {"exact": "perhaps"}, 400, "invalid-request"),
        ({"id": "pic/4"}, {"ef": "0"}, 400, "invalid-request"),
        ({"id": "pic/4"}, {"ef": "4097"}, 400, "invalid-request"),
        ({"id": "pic/4"}, {"ef": "many"}, 400, "invalid-request"),
        ({"id": "pic/4"}, {"group_by": "colour"}, 400, "invalid-request"),
        ({"id": "pic/4"}, {"min_score": "nan"}, 400, "invalid-request"),
        ({"id": "pic/4"}, {"exclude": ""}, 400, "invalid-request"),
        ({"id": "pic/4"}, {"domian": "d1"}, 400, "invalid-request"),
    ],
)
def test_wrong_searches(
    gallery: httpx.Client, body: Any, params: dict[str, str], status: int, slug: str
) -> None:
    assert problem_of(gallery.post("/v1/search", json=body, params=params)) == (status, slug)


@pytest.mark.parametrize(
    "text", ['{"id": "\\ud800"}', '{"embedding": [NaN]}', '{"id": 1e999}', "{", "[" * 100_000, "\xff"]
)
def test_json_that_is_not_json(gallery: httpx.Client, text: str) -> None:
    response = gallery.post(
        "/v1/search", content=text.encode("latin-1"), headers={"Content-Type": "application/json"}
    )
    assert problem_of(response) == (400, "invalid-request")


def test_index_metrics(gallery: httpx.Client) -> None:
    gallery.post("/v1/search", json={"id": "pic/4"})
    metrics = gallery.get("/metrics").text
    assert sum(float(n) for n in re.findall(r"^uie_index_items\{.*\} (\S+)$", metrics, re.M)) == 12
    assert "pic" not in metrics  # no path as it was asked for: series without end, and ids for anyone to read
    assert re.search(r'^uie_stage_duration_seconds_count\{.*stage="search"\} ', metrics, re.M)
    assert gallery.get("/v1/info").json()["index"] == {
        "backend": "qdrant-edge",
        "fingerprint": gallery.get("/v1/info").json()["model"]["fingerprint"],
        "items": 12,
        "indexed_vectors": 0,
        "quantization": "none",
        "ef": None,
    }
