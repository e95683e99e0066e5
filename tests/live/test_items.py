"""Items of the live service: added, read, deleted, persisted."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from benchmarks.targets.process import running_service
from tests.support.images import encode, noise
from tests.support.live import PNG, TRUNCATED, embedding_of, hits_of, problem_of
from tests.support.waiting import LIMIT_S, wait_until

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
    "...",
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
    [hit] = hits_of(http.post("/v1/search", json={"id": item_id}, params={"domain": "ids", "k": 1}))
    assert hit["id"] == item_id
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
        ("%2E", {"domain": "d", "label": "l"}, encode(noise(1)), 400, "invalid-request"),
        ("%2e%2E", {"domain": "d", "label": "l"}, encode(noise(1)), 400, "invalid-request"),
        ("%FF", {"domain": "d", "label": "l"}, encode(noise(1)), 400, "invalid-request"),
    ],
)
def test_invalid_puts(
    http: httpx.Client, path: str, params: dict[str, str], content: bytes, status: int, slug: str
) -> None:
    response = http.put(f"/v1/items/{path}", content=content, headers=PNG, params=params)
    assert problem_of(response) == (status, slug)
    assert "d" not in {row["name"] for row in http.get("/v1/domains").json()["domains"]}


@pytest.mark.parametrize("item_id", [".", ".."])
def test_dots_are_no_ids(http: httpx.Client, item_id: str) -> None:
    for method in ("GET", "DELETE"):
        response = http.request(method, f"/v1/items/{item_id.replace('.', '%2E')}")
        assert problem_of(response) == (400, "invalid-request")
        assert "not item ids" in response.json()["detail"]
    assert problem_of(http.post("/v1/search", json={"id": item_id})) == (400, "invalid-request")
    entry = {"id": item_id, "domain": "d", "label": "l"}
    by_embedding = http.post("/v1/items", json={"items": [{**entry, "embedding": [1.0] * 64}]})
    form: dict[str, Any] = {"data": {"items": json.dumps([entry])}, "files": {"images": encode(noise(1))}}
    for response in (by_embedding, http.post("/v1/items", **form)):
        [result] = response.json()["results"]
        assert (result["id"], result["error"]["type"]) == (item_id, "invalid-request")


def test_a_null_payload_is_an_empty_one(http: httpx.Client) -> None:
    entry = {"id": "null-payload", "domain": "nulls", "label": "l", "payload": None}
    form: dict[str, Any] = {"data": {"items": json.dumps([entry])}, "files": {"images": encode(noise(1))}}
    for request in ({"json": {"items": [{**entry, "embedding": [1.0] * 64}]}}, form):
        assert http.post("/v1/items", **request).json()["results"] == [{"id": "null-payload"}]
        assert http.get("/v1/items/null-payload").json()["payload"] == {}
    assert http.delete("/v1/items/null-payload").json() == {"deleted": True}


DEEP = "[" * 200 + "]" * 200
PAYLOADS = [
    "[]",
    "x",
    '{"a": NaN}',
    "1",
    f'{{"a": {DEEP}}}',
    '{"a": [18446744073709551616]}',
    f'{{"a": "{"x" * 70_000}"}}',
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_invalid_payloads(http: httpx.Client, payload: str) -> None:
    response = http.put(
        "/v1/items/x",
        files={"image": encode(noise(1))},
        data={"payload": payload},
        params={"domain": "d", "label": "l"},
    )
    assert problem_of(response) == (400, "invalid-request")
    rest = f'"domain": "d", "label": "l", "embedding": {[1.0] * 64}, "payload": {payload}'
    entry = f'{{"items": [{{"id": "x", {rest}}}]}}'
    bulk = http.post("/v1/items", content=entry, headers={"Content-Type": "application/json"})
    assert bulk.status_code == 400 or bulk.json()["results"][0]["error"]["type"] == "invalid-request"
    assert problem_of(http.get("/v1/items/x")) == (404, "unknown-item")


def test_bulk_results_are_per_item(http: httpx.Client) -> None:
    entries: list[Any] = [
        {"id": "bulk-0", "domain": "bulk", "label": "l"},
        {"id": "bulk-1", "domain": "bulk", "label": "l"},
        {"id": "bulk-2", "domain": "NO", "label": "l"},
        "nonsense",
        {"id": "bulk-4", "domain": "bulk", "label": "l", "payload": {"k": "v"}},
    ]
    images = [encode(noise(0)), TRUNCATED, *(encode(noise(n)) for n in (2, 3, 4))]
    files = [("images", (f"{n}.png", image)) for n, image in enumerate(images)]
    response = http.post("/v1/items", data={"items": json.dumps(entries)}, files=files)
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


def test_infinite_numbers_are_not_echoed(http: httpx.Client) -> None:
    body = '{"items": [{"id": 1e999}, {"id": "x", "domain": "d", "label": "l", "embedding": [1e999]}]}'
    response = http.post("/v1/items", content=body, headers={"Content-Type": "application/json"})
    results = response.json()["results"]
    assert [(result["id"], result["error"]["type"]) for result in results] == [
        (None, "embedding-shape"),
        ("x", "embedding-shape"),
    ]


def test_a_thousand_items_with_embeddings_fit_one_request(http: httpx.Client) -> None:
    rows = np.random.default_rng(0).normal(size=(1000, 64))
    entries = [
        {
            "id": f"thousand-{n}",
            "domain": "thousand",
            "label": "l",
            "payload": {"n": n},
            "embedding": list(row),
        }
        for n, row in enumerate(rows)
    ]
    results = http.post("/v1/items", json={"items": entries}).json()["results"]
    assert results == [{"id": entry["id"]} for entry in entries]


def test_bulk_upload_of_embeddings(http: httpx.Client) -> None:
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
def test_invalid_bulk_requests(http: httpx.Client, request_: dict[str, Any]) -> None:
    assert problem_of(http.post("/v1/items", **request_)) == (400, "invalid-request")


def test_answered_items_survive_kill_9_of_the_service(tmp_path: Path) -> None:
    """Kills the process tree during writes, and starts a new service on the same folder."""
    data_dir = str(tmp_path / "index")
    answered: list[str] = []
    data = encode(noise(1, 32, 32))
    nested: Any = 1
    for _ in range(30):
        nested = [nested]

    def write(url: str) -> None:
        payload = {"payload": json.dumps({"deep": nested})}
        params = {"domain": "d", "label": "l"}
        with httpx.Client(base_url=url, timeout=LIMIT_S) as client:
            while True:
                item_id = str(len(answered))
                try:
                    response = client.put(
                        f"/v1/items/{item_id}", files={"image": data}, data=payload, params=params
                    )
                except httpx.TransportError:  # killed
                    return
                assert response.status_code == 200
                answered.append(item_id)

    with running_service(tmp_path / "first.log", data_dir=data_dir) as service:
        writer = threading.Thread(target=write, args=(service.url,))
        writer.start()
        wait_until(lambda: len(answered) >= 50 or not writer.is_alive())
        supervisor = psutil.Process(service.pid)
        for process in [supervisor, *supervisor.children(recursive=True)]:
            os.kill(process.pid, signal.SIGKILL)
        writer.join()
    assert len(answered) >= 50
    with (
        running_service(tmp_path / "second.log", data_dir=data_dir) as service,
        httpx.Client(base_url=service.url, timeout=LIMIT_S) as client,
    ):
        for item_id in answered:
            assert client.get(f"/v1/items/{item_id}").json()["payload"] == {"deep": nested}
        # The request in flight may have been stored or not.
        assert client.get("/v1/domains").json()["domains"][0]["items"] in (len(answered), len(answered) + 1)
