"""Search in the live service, on a small gallery of three domains."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks.targets.process import running_service
from tests.support.images import encode, noise
from tests.support.live import PNG, embedding_of, hits_of, problem_of
from tests.support.waiting import LIMIT_S


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A separate service with twelve images in three domains."""
    folder = tmp_path_factory.mktemp("gallery")
    with (
        running_service(folder / "log", data_dir=str(folder / "index")) as service,
        httpx.Client(base_url=service.url, timeout=LIMIT_S) as client,
    ):
        items = [
            {"id": f"img/{n}", "domain": f"d{n % 3}", "label": f"l{n % 2}", "payload": {"n": n}}
            for n in range(12)
        ]
        images = [("images", (f"{n}.png", encode(noise(n)))) for n in range(12)]
        results = client.post("/v1/items", data={"items": json.dumps(items)}, files=images).json()["results"]
        assert results == [{"id": f"img/{n}"} for n in range(12)]
        yield client


def test_an_image_finds_itself(gallery: httpx.Client) -> None:
    response = gallery.post("/v1/search", content=encode(noise(4)), headers=PNG, params={"k": 5})
    hits = hits_of(response)
    assert len(hits) == 5
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)
    assert {key: hits[0][key] for key in ("id", "domain", "label", "payload")} == {
        "id": "img/4",
        "domain": "d1",
        "label": "l0",
        "payload": {"n": 4},
    }
    scores = [hit["score"] for hit in hits]
    assert scores == sorted(scores, reverse=True)
    shares = response.json()["domains"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["d1"] == sum(hit["domain"] == "d1" for hit in hits) / 5
    stages = {part.split(";")[0].strip() for part in response.headers["server-timing"].split(",")}
    assert stages == {"decode", "queue", "infer", "search", "total"}


def test_large_images_are_read_completely(gallery: httpx.Client) -> None:
    """Bodies of many chunks, on every route that takes an image."""
    data = encode(Image.effect_noise((1200, 1200), 90).convert("RGB"), "PNG", compress_level=1)
    assert len(data) > 2_000_000
    expected = embedding_of(gallery.post("/v1/embed", content=data, headers=PNG))
    params = {"domain": "large", "label": "l"}
    assert gallery.put("/v1/items/large", content=data, headers=PNG, params=params).json()["created"]
    for _ in range(10):
        for body in ({"content": data, "headers": PNG}, {"files": {"image": data}}):
            (hit,) = hits_of(gallery.post("/v1/search", params={"domain": "large", "k": 1}, **body))
            assert hit["score"] == pytest.approx(1, abs=1e-5)
    items = json.dumps([{"id": "large", "domain": "large", "label": "l"}])
    bulk = gallery.post("/v1/items", data={"items": items}, files={"images": data})
    assert bulk.json()["results"] == [{"id": "large"}]
    np.testing.assert_array_equal(gallery.get("/v1/items/large").json()["embedding"], expected)
    assert gallery.delete("/v1/items/large").json() == {"deleted": True}


def test_image_embedding_and_id_give_the_same_hits(gallery: httpx.Client) -> None:
    item = gallery.get("/v1/items/img%2F4").json()
    by_image = hits_of(gallery.post("/v1/search", files={"image": encode(noise(4))}))
    by_embedding = hits_of(gallery.post("/v1/search", json={"embedding": item["embedding"]}))
    by_id = hits_of(gallery.post("/v1/search", json={"id": "img/4"}))
    assert by_embedding == by_id
    assert [hit["id"] for hit in by_image] == [hit["id"] for hit in by_id]
    assert len(by_id) == 10
    scaled = [value * 1e-30 for value in item["embedding"]]
    by_scaled = hits_of(gallery.post("/v1/search", json={"embedding": scaled}))
    assert [hit["id"] for hit in by_scaled] == [hit["id"] for hit in by_id]


def test_search_agrees_with_numpy_over_the_items(gallery: httpx.Client) -> None:
    ids = [f"img/{n}" for n in range(12)]
    rows = np.asarray(
        [gallery.get(f"/v1/items/{quote(item_id, safe='')}").json()["embedding"] for item_id in ids]
    )
    for n in range(12):
        scores = rows @ rows[n]
        hits = hits_of(gallery.post("/v1/search", json={"id": ids[n]}, params={"k": 12, "exact": True}))
        assert [hit["id"] for hit in hits] == [ids[m] for m in np.argsort(-scores)]
        np.testing.assert_allclose([hit["score"] for hit in hits], np.sort(scores)[::-1], atol=1e-6)


def test_parameters_of_search(gallery: httpx.Client) -> None:
    query = {"id": "img/4"}
    filtered = hits_of(
        gallery.post("/v1/search", json=query, params=[("domain", "d1"), ("domain", "d2"), ("k", 100)])
    )
    assert {hit["domain"] for hit in filtered} == {"d1", "d2"}
    assert len(filtered) == 8
    rest = hits_of(
        gallery.post(
            "/v1/search", json=query, params=[("exclude", "img/4"), ("exclude", "img/0"), ("k", 100)]
        )
    )
    assert {hit["id"] for hit in rest} == {f"img/{n}" for n in range(12)} - {"img/4", "img/0"}
    near = hits_of(gallery.post("/v1/search", json=query, params={"min_score": 0.999}))
    assert [hit["id"] for hit in near] == ["img/4"]
    grouped = gallery.post("/v1/search", json=query, params={"group_by": "domain", "k": 12}).json()
    assert grouped["groups"][0]["key"] == "d1"
    assert sorted(len(group["hits"]) for group in grouped["groups"]) == [4, 4, 4]
    labels = gallery.post("/v1/search", json=query, params={"group_by": "label", "k": 12}).json()["groups"]
    assert len(labels) == 6  # a label is local to its domain


@pytest.mark.parametrize(
    "members",
    [
        {"k": 3, "domain": ["d1", "d2"], "min_score": -0.5, "exact": True},
        {"k": 100, "domain": "d1", "exclude": ["img/4"], "group_by": "domain"},
        {"k": 2, "ef": 64, "group_by": "label"},
    ],
)
def test_parameters_may_be_in_the_body(gallery: httpx.Client, members: dict[str, Any]) -> None:
    expected = gallery.post("/v1/search", json={"id": "img/4"}, params=members).json()
    assert expected["hits"]
    nulls = {"url": None, "embedding": None, "min_score": None} | members
    assert gallery.post("/v1/search", json={"id": "img/4", **nulls}).json() == expected
    k = {"k": members["k"]}  # some here, some there
    rest = {name: value for name, value in members.items() if name != "k"}
    assert gallery.post("/v1/search", json={"id": "img/4", **rest}, params=k).json() == expected


def test_a_thousand_ids_may_be_excluded(gallery: httpx.Client) -> None:
    absent = [f"{number:04d}" + "é𝄞" * 254 for number in range(990)]
    body = {"id": "img/4", "exclude": [*absent, *(f"img/{number}" for number in range(10))], "k": 100}
    assert {hit["id"] for hit in hits_of(gallery.post("/v1/search", json=body))} == {"img/10", "img/11"}
    body["exclude"] = [str(number) for number in range(1001)]
    assert problem_of(gallery.post("/v1/search", json=body)) == (400, "invalid-request")


def test_at_most_64_domains_may_be_searched(gallery: httpx.Client) -> None:
    domains = ["d1"] * 63 + ["d2"]
    for request in ({"params": {"domain": domains}}, {"json": {"domain": domains}}):
        body = {"id": "img/4", **request.get("json", {})}
        hits = hits_of(gallery.post("/v1/search", json=body, params=request.get("params")))
        assert {hit["domain"] for hit in hits} == {"d1", "d2"}
    many = [f"d{number}" for number in range(65)]
    for request in ({"params": {"domain": many}}, {"json": {"domain": many}}):
        body = {"id": "img/4", **request.get("json", {})}
        refused = gallery.post("/v1/search", json=body, params=request.get("params"))
        assert problem_of(refused) == (400, "invalid-request")


@pytest.mark.parametrize(
    ("body", "params", "status", "slug"),
    [
        ({"embedding": [1.0] * 63}, {}, 422, "embedding-shape"),
        ({"embedding": [0.0] * 64}, {}, 422, "embedding-shape"),
        ({"embedding": ["x"] * 64}, {}, 422, "embedding-shape"),
        ({"embedding": [True] * 64}, {}, 422, "embedding-shape"),
        ({"embedding": [10**400] * 64}, {}, 422, "embedding-shape"),
        ({"embedding": "x"}, {}, 422, "embedding-shape"),
        ({"id": "absent"}, {}, 404, "unknown-item"),
        ({"id": ""}, {}, 400, "invalid-request"),
        ({"id": 7}, {}, 400, "invalid-request"),
        ({"id": "img/4", "embedding": [1.0] * 64}, {}, 400, "invalid-request"),
        ({}, {}, 400, "invalid-request"),
        ([], {}, 400, "invalid-request"),
        ({"id": "img/4", "k": 5}, {"k": "5"}, 400, "invalid-request"),
        ({"id": "img/4", "k": "5"}, {}, 400, "invalid-request"),
        ({"id": "img/4", "k": True}, {}, 400, "invalid-request"),
        ({"id": "img/4", "filter": {}}, {}, 400, "invalid-request"),
        ({"id": "img/4", "exclude": "img/4"}, {}, 400, "invalid-request"),
        ({"id": "img/4", "exclude": [""]}, {}, 400, "invalid-request"),
        ({"id": "img/4", "domain": ["No Name"]}, {}, 400, "invalid-request"),
        ({"id": "img/4", "exact": "true"}, {}, 400, "invalid-request"),
        ({"id": "img/4", "domain": "nowhere"}, {}, 404, "unknown-domain"),
        ({"id": None}, {}, 400, "invalid-request"),
        ({"id": "img/4"}, {"domain": "nowhere"}, 404, "unknown-domain"),
        ({"id": "img/4"}, {"domain": "No Name"}, 400, "invalid-request"),
        ({"id": "img/4"}, {"k": "0"}, 400, "invalid-request"),
        ({"id": "img/4"}, {"k": "101"}, 400, "invalid-request"),
        ({"id": "img/4"}, {"k": "ten"}, 400, "invalid-request"),
        ({"id": "img/4"}, {"exact": "perhaps"}, 400, "invalid-request"),
        ({"id": "img/4"}, {"ef": "0"}, 400, "invalid-request"),
        ({"id": "img/4"}, {"ef": "4097"}, 400, "invalid-request"),
        ({"id": "img/4"}, {"ef": "many"}, 400, "invalid-request"),
        ({"id": "img/4"}, {"group_by": "colour"}, 400, "invalid-request"),
        ({"id": "img/4"}, {"min_score": "nan"}, 400, "invalid-request"),
        ({"id": "img/4"}, {"exclude": ""}, 400, "invalid-request"),
        ({"id": "img/4"}, {"domian": "d1"}, 400, "invalid-request"),
    ],
)
def test_invalid_searches(
    gallery: httpx.Client, body: Any, params: dict[str, str], status: int, slug: str
) -> None:
    assert problem_of(gallery.post("/v1/search", json=body, params=params)) == (status, slug)


@pytest.mark.parametrize(
    "text", ['{"id": "\\ud800"}', '{"embedding": [NaN]}', '{"id": 1e999}', "{", "[" * 100_000, "\xff"]
)
def test_invalid_json(gallery: httpx.Client, text: str) -> None:
    response = gallery.post(
        "/v1/search", content=text.encode("latin-1"), headers={"Content-Type": "application/json"}
    )
    assert problem_of(response) == (400, "invalid-request")


def test_index_metrics(gallery: httpx.Client) -> None:
    gallery.post("/v1/search", json={"id": "img/4"})
    metrics = gallery.get("/metrics").text
    assert sum(float(n) for n in re.findall(r"^uie_index_domain_items\{.*\} (\S+)$", metrics, re.M)) == 12
    assert "img" not in metrics  # a raw path as label would be an unbounded series, and would leak ids
    assert re.search(r'^uie_stage_duration_seconds_count\{.*stage="search"\} ', metrics, re.M)
    assert gallery.get("/v1/info").json()["index"] == {
        "backend": "qdrant-edge",
        "fingerprint": gallery.get("/v1/info").json()["model"]["fingerprint"],
        "items": 12,
        "indexed_vectors": 0,
        "quantization": "none",
        "ef": None,
    }
