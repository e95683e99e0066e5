"""The log of a service that was asked for JSON and for a line a request."""

import json
from pathlib import Path

import httpx

from benchmarks.targets.process import running_service
from tests.support.live import PNG, TRUNCATED, embedding_of, problem_of
from tests.support.pictures import encode, noise


def test_every_line_is_json_and_says_whose_it_is(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        running_service(log, data_dir=str(tmp_path / "i"), log_format="json", access_log="true") as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
    ):
        good = {**PNG, "X-Request-Id": "the-good-one"}
        embedding_of(client.post("/v1/embed", content=encode(noise(1)), headers=good))
        bad = client.post("/v1/embed", content=TRUNCATED, headers={**PNG, "X-Request-Id": "the-bad-one"})
        assert problem_of(bad) == (400, "undecodable-image")
        client.get("/v1/items/secret%20name")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    access = {line["request_id"]: line for line in lines if line["logger"] == "service.access"}
    assert access["the-good-one"]["message"] == "POST /v1/embed 200"
    assert {"decode_ms", "queue_ms", "infer_ms", "total_ms"} <= set(access["the-good-one"])
    assert access["the-bad-one"]["status"] == 400
    assert "secret" not in log.read_text()


def test_no_line_comes_twice_and_none_for_a_request_unless_asked(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running_service(log, data_dir=str(tmp_path / "index")) as service:
        httpx.post(f"{service.url}/v1/embed", content=encode(noise(1)), headers=PNG, timeout=60)
    lines = log.read_text().splitlines()
    assert lines
    assert len(set(lines)) == len(lines)
    assert "/v1/embed" not in log.read_text()
