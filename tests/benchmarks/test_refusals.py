"""Requests that `replay`, `index` and `load` refuse: other servers, stale galleries, ignored options."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import TargetError
from benchmarks.targets.gallery import payload_of
from tests.support.stub import Handler, stub
from tests.support.tiny import tiny_data

INFO = {"model": {"name": "m", "fingerprint": "f"}, "index": {"fingerprint": "f"}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_data(tmp_path_factory.mktemp("data"))


def refused(*arguments: object) -> str:
    """The error of a command that must be refused: one sentence."""
    with pytest.raises(TargetError) as caught:
        CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def answering(body: Any) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response(body)

    return handler


@pytest.mark.parametrize(
    "body",
    [
        {"ok": True},
        [1],
        "hello\nyou",
        {"domains": "all"},
        {"domains": ["animals"]},
        {"domains": [{"name": "animals"}]},
        {"domains": [{"name": "animals", "items": "20"}]},
    ],
)
def test_another_server_is_not_this_service(data: Dataset, tmp_path: Path, body: Any) -> None:
    with stub(answering(body)) as url:
        for verb in (
            ("index", data.root),
            ("replay", data.root, "--out", tmp_path / "run"),
            ("load", data.root, "--out", tmp_path / "load"),
        ):
            assert f"{url} is not this service: GET /v1/" in refused(*verb, "--url", url)


@pytest.mark.parametrize("body", [[1], {"model": "m"}, {**INFO, "index": None}, {**INFO, "model": {}}])
def test_an_incomplete_info_is_refused(data: Dataset, tmp_path: Path, body: Any) -> None:
    with stub(answering(body)) as url:
        verb = ("replay", data.root, "--scenario", "Offline", "--out", tmp_path / "run")
        assert "is not this service: GET /v1/info gave" in refused(*verb, "--url", url)


@pytest.mark.parametrize(
    ("url", "key", "error"),
    [
        ("http://127.0.0.1:99999", "key", "not a valid URL"),
        ("http://127.0.0.1:1", "two\nlines", "the key has characters"),
    ],
)
def test_a_wrong_url_or_key_is_refused(data: Dataset, tmp_path: Path, url: str, key: str, error: str) -> None:
    message = refused("replay", data.root, "--out", tmp_path / "run", "--url", url, "--key", key)
    assert error in message
    assert key not in message


def gallery(data: Dataset, payload: Callable[[str], dict[str, str]]) -> Handler:
    """A service whose gallery has as many items as this data set's; `payload` of each, by id."""
    counts = {domain: len(data.gallery(domain)) for domain in data.domains}

    async def handler(request: web.Request) -> web.Response:
        if request.path == "/v1/domains":
            rows = [{"name": name, "items": items} for name, items in counts.items()]
            return web.json_response({"domains": rows})
        if request.path.startswith("/v1/items/"):
            item = request.path.removeprefix("/v1/items/")
            rest = {"id": item, "domain": "d", "label": "l", "embedding": []}
            return web.json_response({**rest, "payload": payload(item)})
        return web.json_response(INFO)

    return handler


def test_a_gallery_of_another_data_set_is_refused(data: Dataset, tmp_path: Path) -> None:
    """The item counts are right, but the items are another data set's; `plants` is half indexed again."""
    now = {item.id: payload_of(data, item) for domain in data.domains for item in data.gallery(domain)}
    last = data.gallery("plants")[-1].id

    def half(item: str) -> dict[str, str]:
        return {**now[item], "data": "an older one"} if item == last else now[item]

    with stub(gallery(data, half)) as url:
        error = refused("replay", data.root, "--url", url, "--out", tmp_path / "run")
    assert error == "the service's gallery of plants is of another data set: index again"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [("--no-exact",), ("--ef", 32), ("--no-exact", "--ef", 32)])
@pytest.mark.parametrize("target", [("--scenario", "Offline"), ("--target", "post"), ("--target", "openai")])
def test_hnsw_requires_a_target_that_searches(
    data: Dataset, tmp_path: Path, target: tuple[str, ...], options: tuple[object, ...]
) -> None:
    error = refused("replay", data.root, "--out", tmp_path / "run", *target, *options)
    assert "a target that searches" in error


def test_a_body_without_an_image_placeholder_is_refused(data: Dataset, tmp_path: Path) -> None:
    verb = ("replay", data.root, "--out", tmp_path / "run", "--target", "post", "--body")
    for body in ({"image": "{bas64}"}, {"{base64}": "image"}, {"model": "{model}"}):
        assert "would be sent" in refused(*verb, json.dumps(body))
