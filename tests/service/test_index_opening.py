"""Opening an index: with the payload indexes that its version lacks, or not at all if there is none."""

import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import qdrant_edge as edge
from qdrant_client import QdrantClient, models
from qdrant_edge import EdgeShard, UpdateOperation

from service.__main__ import main
from service.errors import StartupError
from service.index import Item
from service.index.edge import EdgeIndex
from service.index.server import ServerIndex
from tests.support.waiting import wait_until

ITEM = Item("a", "d", "l", np.eye(8, dtype=np.float32)[0])
TIMES = ["--from", "2026-01-01", "--to", "2026-01-02"]


class NoCollection(BaseHTTPRequestHandler):
    """Answers as a Qdrant server without collections, and records the requests."""

    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")  # before the client has the response
        result = {"exists": False} if self.command == "GET" else True
        version = {"title": "qdrant", "version": metadata.version("qdrant-client")}
        body = json.dumps({**version, "result": result, "status": "ok"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_GET  # noqa: N815 (the name that http.server calls)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


class Recording(QdrantClient):
    """The in-memory server with payload indexes: of those it keeps no record."""

    def __init__(self) -> None:
        super().__init__(":memory:")
        self.schema: dict[str, Any] = {}
        self.created: list[tuple[str, bool]] = []

    def create_payload_index(self, *arguments: Any, wait: bool = True, **_: Any) -> Any:
        _, name, schema = arguments
        self.schema[name] = schema
        self.created.append((name, wait))

    def get_collection(self, collection_name: str, **kwargs: Any) -> models.CollectionInfo:
        info = super().get_collection(collection_name, **kwargs)
        return info.model_copy(update={"payload_schema": self.schema})


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """The URL of a server without collections, and its requests."""
    NoCollection.requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), NoCollection) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", NoCollection.requests
        wait_until(lambda: "GET /" in NoCollection.requests)  # of a thread of the client
        http.shutdown()


def refusal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The message of `python -m service indexed`, which must refuse."""
    monkeypatch.setattr(sys, "argv", ["service", "indexed", *TIMES])
    with pytest.raises(SystemExit, match="1"):
        main()
    return capsys.readouterr().err


def test_listing_items_creates_no_collection(
    server: tuple[str, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, requests = server
    monkeypatch.setenv("UIE_QDRANT_URL", url)
    assert refusal(capsys, monkeypatch) == "service: there is no Qdrant collection 'items'\n"
    assert "GET /collections/items/exists" in requests
    assert not [request for request in requests if request.startswith("PUT")]


def test_listing_items_creates_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UIE_DATA_DIR", str(tmp_path / "absent"))
    assert refusal(capsys, monkeypatch).startswith("service: there is no index in")
    assert not (tmp_path / "absent").exists()


def test_an_older_embedded_index_gets_its_payload_indexes(tmp_path: Path) -> None:
    shard = EdgeShard.create(
        str(tmp_path / "shard"), edge.EdgeConfig(edge.EdgeVectorParams(8, edge.Distance.Dot))
    )
    shard.update(UpdateOperation.create_field_index("domain", edge.KeywordIndexParams(is_tenant=True)))
    shard.close()
    (tmp_path / "index.json").write_text(json.dumps({"fingerprint": "m"}))
    for _ in range(2):
        index = EdgeIndex(tmp_path, 8, "m")
        index.upsert([ITEM])
        index.close()
    shard = EdgeShard.load(str(tmp_path / "shard"))
    schema = shard.info().payload_schema
    assert {name: field.points for name, field in schema.items()} == {"domain": 1, "indexed_at": 1}
    times = schema["indexed_at"].params
    assert isinstance(times, edge.DatetimeIndexParams)
    assert times.enable_hnsw is False  # it would add links to the graph
    shard.close()


@pytest.mark.filterwarnings("ignore:Local mode performs exact")
def test_an_older_collection_gets_its_payload_indexes() -> None:
    client = Recording()
    ServerIndex(client, "items", 8, "m")
    assert client.created == [("domain", True), ("indexed_at", True)]
    ServerIndex(client, "items", 8, "m")
    assert len(client.created) == 2
    del client.schema["indexed_at"]  # as an older version left it
    ServerIndex(client, "items", 8, "m")
    assert client.created[2:] == [("indexed_at", False)]  # of many items it takes longer than a timeout
    assert client.schema["indexed_at"].enable_hnsw is False


def test_the_error_names_a_damaged_edge_index(tmp_path: Path) -> None:
    EdgeIndex(tmp_path / "items", 8, "model-a").close()
    (tmp_path / "items" / "index.json").write_text("{")
    with pytest.raises(StartupError, match=str(tmp_path)):
        EdgeIndex(tmp_path / "items", 8, "model-a")


def test_a_foreign_server_collection_is_refused() -> None:
    client = QdrantClient(":memory:")
    client.create_collection("items", vectors_config={})
    with pytest.raises(StartupError, match="not created by this service"):
        ServerIndex(client, "items", 8, "model-a")


def test_an_unreachable_server_is_a_startup_error() -> None:
    client = QdrantClient(url="http://127.0.0.1:9", timeout=1, check_compatibility=False)
    with pytest.raises(StartupError, match="cannot open"):
        ServerIndex(client, "items", 8, "model-a")
