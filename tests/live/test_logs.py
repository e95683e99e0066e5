"""The log, as lines of JSON with a line per request, and by default."""

import json
from pathlib import Path

import httpx

from benchmarks.targets.process import ServiceProcess, running_service
from service.client import Client
from tests.support.live import PNG, TRUNCATED, embedding_of, problem_of
from tests.support.pictures import encode, noise
from tests.support.waiting import LIMIT_S, wait_until


def lines_of(service: ServiceProcess) -> list[str]:
    """The complete lines of the log."""
    return service.log.read_text().split("\n")[:-1]


def test_every_line_is_json_with_the_request_id(bounded: ServiceProcess) -> None:
    with httpx.Client(base_url=bounded.url, timeout=LIMIT_S) as client:
        valid = {**PNG, "X-Request-Id": "log-valid"}
        embedding_of(client.post("/v1/embed", content=encode(noise(101)), headers=valid))
        broken = {**PNG, "X-Request-Id": "log-broken"}
        assert problem_of(client.post("/v1/embed", content=TRUNCATED, headers=broken))[0] == 400
        last = {"X-Request-Id": "log-last"}
        client.get("/v1/items/secret%20name", headers=last)
    wait_until(lambda: any("log-last" in line for line in lines_of(bounded)))
    lines = [json.loads(line) for line in lines_of(bounded)]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    access = {line["request_id"]: line for line in lines if line["logger"] == "service.access"}
    assert access["log-valid"]["message"] == "POST /v1/embed 200"
    assert {"decode_ms", "queue_ms", "infer_ms", "total_ms"} <= set(access["log-valid"])
    assert access["log-broken"]["status"] == 400
    assert "secret" not in bounded.log.read_text()


def test_by_default_no_line_is_repeated_and_none_is_about_a_request(tmp_path: Path) -> None:
    with (
        running_service(tmp_path / "log", data_dir=str(tmp_path / "index")) as service,
        Client(service.url, timeout_s=LIMIT_S) as client,
    ):
        client.embed(encode(noise(1)))
    lines = lines_of(service)
    assert lines
    assert len(set(lines)) == len(lines)
    assert not [line for line in lines if "/v1/embed" in line]
