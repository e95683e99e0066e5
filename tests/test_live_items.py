"""Items, search and domains of the live service."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from benchmarks.service_process import running_service
from tests.pictures import encode, noise
from tests.test_live_embed import PNG, TRUNCATED, embedding_of, problem_of


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


def hits_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return list(response.json()["hits"])


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
    }


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
        ({"id": "pic/4"}, {"group_by": "colour"}, 400, "invalid-request"),
        ({"id": "pic/4"}, {"min_score": "nan"}, 400, "invalid-request"),
        ({"id": "pic/4"}, {"exclude": ""}, 400, "invalid-request"),
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


IDS = [
    "a",
    "x" * 512,
    "with space",
    "a/b/../c",
    "/lead",
    "trail/",
    "?#%2F&=+",
    "é✓𝄞",
    "line\nbreak",
    "\0",
    ".",
    " ",
]


@pytest.mark.parametrize("item_id", IDS)
def test_ids_round_trip_unchanged(http: httpx.Client, item_id: str) -> None:
    path = "/v1/items/" + "".join(f"%{byte:02X}" for byte in item_id.encode())
    params = {"domain": "ids", "label": "é/ \n"}
    first = http.put(path, content=encode(noise(1)), headers=PNG, params=params)
    assert first.json() == {"id": item_id, "created": True}
    second = http.put(
        path, files={"image": encode(noise(1))}, data={"payload": '{"a": [1, "ü"]}'}, params=params
    )
    assert second.json() == {"id": item_id, "created": False}
    item = http.get(path).json()
    assert (item["id"], item["domain"], item["label"]) == (item_id, "ids", "é/ \n")
    assert item["payload"] == {"a": [1, "ü"]}
    found = hits_of(http.post("/v1/search", json={"id": item_id}, params={"domain": "ids", "k": 1}))
    assert found[0]["id"] == item_id
    assert http.delete(path).json() == {"deleted": True}
    assert http.delete(path).json() == {"deleted": False}
    assert problem_of(http.get(path)) == (404, "unknown-item")


@pytest.mark.parametrize(
    ("path", "params", "content", "status", "slug"),
    [
        ("x", {"domain": "d", "label": "l"}, TRUNCATED, 400, "undecodable-image"),
        ("x", {"domain": "D", "label": "l"}, encode(noise(1)), 400, "invalid-request"),
        ("x", {"label": "l"}, encode(noise(1)), 400, "invalid-request"),
        ("x", {"domain": "d"}, encode(noise(1)), 400, "invalid-request"),
        ("x" * 513, {"domain": "d", "label": "l"}, encode(noise(1)), 400, "invalid-request"),
        ("%FF", {"domain": "d", "label": "l"}, encode(noise(1)), 400, "invalid-request"),
    ],
)
def test_wrong_puts(
    http: httpx.Client, path: str, params: dict[str, str], content: bytes, status: int, slug: str
) -> None:
    assert problem_of(http.put(f"/v1/items/{path}", content=content, headers=PNG, params=params)) == (
        status,
        slug,
    )
    assert "d" not in {row["name"] for row in http.get("/v1/domains").json()["domains"]}


@pytest.mark.parametrize("payload", ["[]", "x", '{"a": NaN}', "1"])
def test_wrong_payloads(http: httpx.Client, payload: str) -> None:
    response = http.put(
        "/v1/items/x",
        files={"image": encode(noise(1))},
        data={"payload": payload},
        params={"domain": "d", "label": "l"},
    )
    assert problem_of(response) == (400, "invalid-request")


def test_bulk_results_are_per_item(http: httpx.Client) -> None:
    described: list[Any] = [
        {"id": "bulk-0", "domain": "bulk", "label": "l"},
        {"id": "bulk-1", "domain": "bulk", "label": "l"},
        {"id": "bulk-2", "domain": "NO", "label": "l"},
        "nonsense",
        {"id": "bulk-4", "domain": "bulk", "label": "l", "payload": {"k": "v"}},
    ]
    images = [encode(noise(0)), TRUNCATED, *(encode(noise(n)) for n in (2, 3, 4))]
    files = [("images", (f"{n}.png", image)) for n, image in enumerate(images)]
    response = http.post("/v1/items", data={"items": json.dumps(described)}, files=files)
    results = response.json()["results"]
    assert [result["id"] for result in results] == ["bulk-0", "bulk-1", "bulk-2", None, "bulk-4"]
    assert [result.get("error", {}).get("type") for result in results] == [
        None,
        "undecodable-image",
        "invalid-request",
        "invalid-request",
        None,
    ]
    assert {row["name"]: row["items"] for row in http.get("/v1/domains").json()["domains"]}["bulk"] == 2
    assert http.get("/v1/items/bulk-4").json()["payload"] == {"k": "v"}


def test_bulk_by_embedding(http: httpx.Client) -> None:
    embedding = embedding_of(http.post("/v1/embed", content=encode(noise(9)), headers=PNG)).tolist()
    entries = [
        {"id": "vec-0", "domain": "vec", "label": "l", "embedding": embedding},
        {"id": "vec-1", "domain": "vec", "label": "l", "embedding": [3.0 * value for value in embedding]},
        {"id": "vec-2", "domain": "vec", "label": "l", "embedding": embedding[:-1]},
        {"id": "vec-3", "domain": "vec", "label": "l"},
    ]
    results = http.post("/v1/items", json={"items": entries}).json()["results"]
    assert [result.get("error", {}).get("type") for result in results] == [
        None,
        None,
        "embedding-shape",
        "embedding-shape",
    ]
    assert http.get("/v1/items/vec-0").json()["embedding"] == embedding
    np.testing.assert_allclose(http.get("/v1/items/vec-1").json()["embedding"], embedding, atol=1e-6)


@pytest.mark.parametrize(
    "request_",
    [
        {"json": {}},
        {"json": {"items": []}},
        {"json": [1]},
        {"files": {"images": b"x"}},
        {"files": {"images": b"x"}, "data": {"items": "[]"}},
        {"files": {"images": b"x"}, "data": {"items": "{"}},
        {"files": {"images": b"x", "items": b"[{}]"}},
    ],
)
def test_wrong_bulk_requests(http: httpx.Client, request_: dict[str, Any]) -> None:
    assert problem_of(http.post("/v1/items", **request_)) == (400, "invalid-request")


def test_index_metrics(gallery: httpx.Client) -> None:
    gallery.post("/v1/search", json={"id": "pic/4"})
    metrics = gallery.get("/metrics").text
    assert "uie_index_items 12.0" in metrics
    assert 'uie_stage_duration_seconds_count{stage="search"}' in metrics
    assert gallery.get("/v1/info").json()["index"] == {
        "backend": "qdrant-edge",
        "items": 12,
        "indexed_vectors": 0,
    }


def test_what_was_answered_survives_kill_9_of_the_service(tmp_path: Path) -> None:
    """The whole process tree at once, in the middle of writing; then a new service on the same folder."""
    data_dir = str(tmp_path / "index")
    answered = []
    with running_service(tmp_path / "first.log", data_dir=data_dir) as service:
        with httpx.Client(base_url=service.url, timeout=60) as client:
            data = encode(noise(1, 32, 32))
            for n in range(50):
                url = f"/v1/items/{n}"
                client.put(
                    url, content=data, headers=PNG, params={"domain": "d", "label": "l"}
                ).raise_for_status()
                answered.append(str(n))
        supervisor = psutil.Process(service.pid)
        for process in [supervisor, *supervisor.children(recursive=True)]:
            os.kill(process.pid, signal.SIGKILL)
    with (
        running_service(tmp_path / "second.log", data_dir=data_dir) as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
    ):
        for item_id in answered:
            assert client.get(f"/v1/items/{item_id}").status_code == 200
        assert client.get("/v1/domains").json() == {"domains": [{"name": "d", "items": 50}]}
