"""Forms as clients and people write them: nothing that was sent is dropped without an error."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.images import encode, noise
from tests.support.live import embedding_of, problem_of

IMAGE = encode(noise(1))
FILE = {"image": ("a.png", IMAGE)}
PUT = "/v1/items/form?domain=forms&label=l"
ITEMS = json.dumps([{"id": "form", "domain": "forms", "label": "l"}])


@pytest.fixture(scope="module", autouse=True)
def cleaned(service: Any) -> Iterator[None]:
    """Deletes the item of these tests."""
    yield
    httpx.delete(f"{service.url}/v1/items/form", trust_env=False)


@pytest.mark.parametrize(
    ("method", "path", "arguments", "named"),
    [
        ("POST", "/v1/search", {"files": FILE, "data": {"k": "3"}}, "k"),
        ("POST", "/v1/embed", {"files": FILE, "data": {"model": "another"}}, "model"),
        ("POST", "/v1/embed", {"files": {"file": IMAGE}}, "image"),
        ("PUT", PUT, {"files": FILE, "data": {"paylod": '{"price": 80}'}}, "paylod"),
        ("PUT", PUT, {"files": FILE, "data": {"payload": ['{"a": 1}', '{"a": 2}']}}, "payload"),
        ("PUT", PUT, {"files": {**FILE, "payload": ("p.json", b"{}")}}, "payload"),
        ("POST", "/v1/embed/batch", {"files": [("images", IMAGE), ("image", IMAGE)]}, "images"),
        ("POST", "/v1/items", {"files": {"images[]": IMAGE}, "data": {"items": ITEMS}}, "images"),
        ("POST", "/v1/items", {"files": {"images": IMAGE, "items": ("i.json", ITEMS)}}, "items"),
    ],
)
def test_a_field_that_would_be_ignored_is_refused(
    http: httpx.Client, method: str, path: str, arguments: dict[str, Any], named: str
) -> None:
    refused = http.request(method, path, **arguments)
    assert problem_of(refused) == (400, "invalid-request")
    assert named in refused.json()["detail"]


def test_an_empty_payload_counts_as_absent(http: httpx.Client) -> None:
    """Browsers send the empty fields of a form."""
    assert http.put(PUT, files=FILE, data={"payload": ""}).status_code == 200
    assert http.get("/v1/items/form").json()["payload"] == {}


def test_a_part_with_an_extended_filename_is_a_file(http: httpx.Client) -> None:
    """Older versions of urllib3 send a name with other characters than ASCII's like this."""
    head = b"--x\r\nContent-Disposition: form-data; name=\"image\"; filename*=utf-8''%C3%A9.png\r\n\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    embedding_of(http.post("/v1/embed", content=head + IMAGE + b"\r\n--x--", headers=kind))


def test_a_missing_boundary_is_explained(http: httpx.Client) -> None:
    """Many set the content type themselves, which then lacks the boundary."""
    refused = http.post("/v1/embed", files=FILE, headers={"Content-Type": "multipart/form-data"})
    assert problem_of(refused) == (400, "invalid-request")
    assert "boundary" in refused.json()["detail"]


@pytest.mark.parametrize("header", ["Content-Transfer-Encoding: base64", "Content-Encoding: gzip"])
def test_an_encoded_part_is_refused(http: httpx.Client, header: str) -> None:
    name, _, encoding = header.partition(": ")
    files = [("image", ("a.png", IMAGE, "image/png", {name: encoding}))]
    refused = http.post("/v1/embed", files=files)
    assert problem_of(refused) == (415, "unsupported-media-type")
    assert encoding in refused.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/search", "/v1/items"])
def test_json_of_another_content_type_is_explained(http: httpx.Client, path: str) -> None:
    """`curl -d` and fetch send a default content type."""
    for kind in ("application/x-www-form-urlencoded", "text/plain;charset=UTF-8"):
        refused = http.post(path, content=b'{"id": "a"}', headers={"Content-Type": kind})
        assert problem_of(refused) == (415, "unsupported-media-type")
        assert "application/json" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/octet-stream", "application/octet-stream"),
        ("APPLICATION/Octet-Stream", "application/octet-stream"),
        ("application/json, application/octet-stream", "application/octet-stream"),
        ("application/octet-stream;q=0.9, */*;q=0.1", "application/octet-stream"),
        ("application/json, application/octet-stream; q=0.5", "application/json"),
        ("application/octet-stream;q=0", "application/json"),
        ("application/octet-streams", "application/json"),
        ("*/*", "application/json"),
    ],
)
def test_the_preferred_of_two_types_is_sent(http: httpx.Client, accept: str, kind: str) -> None:
    response = http.post("/v1/embed", content=IMAGE, headers={"Accept": accept})
    assert response.headers["content-type"] == kind


@pytest.mark.parametrize(
    ("path", "query"), [("/v1/items/x", "domain=d&label=%ff"), ("/v1/items/x", "domain=d&label=a%C3")]
)
def test_a_query_string_that_is_not_utf_8_is_refused(http: httpx.Client, path: str, query: str) -> None:
    """The label was stored with a replacement character."""
    refused = http.put(f"{path}?{query}", content=IMAGE)
    assert problem_of(refused) == (400, "invalid-request")


@pytest.mark.parametrize("path", ["/v1/embed", "/v1/search", "/v1/items/form?domain=forms&label=l"])
def test_null_members_beside_a_url_count_as_absent(http: httpx.Client, path: str) -> None:
    method = "PUT" if "items" in path else "POST"
    refused = http.request(method, path, json={"url": "http://localhost/a.png", "k": None})
    assert problem_of(refused) == (400, "invalid-request")
    assert "UIE_URL_HOSTS" in refused.json()["detail"]


def test_a_payload_has_at_most_32_levels(http: httpx.Client) -> None:
    for value in ("1", "[]", ""):
        levels = 31 if value == "[]" else 32
        payload = '{"a":' + "[" * (levels - 1) + value + "]" * (levels - 1) + "}"
        assert http.put(PUT, files=FILE, data={"payload": payload}).status_code == 200
        refused = http.put(PUT, files=FILE, data={"payload": f'{{"a":{payload}}}'})
        assert problem_of(refused) == (400, "invalid-request")
        assert refused.json()["limit"] == 32


def test_an_unknown_member_of_an_item_is_refused(http: httpx.Client) -> None:
    item = {"id": "form", "domain": "form", "label": "l", "payload": None, "colour": None}
    items = [item, {**item, "price": 1}, {**item, "embedding": [1.0] * 64}]
    images = [("images", ("a", IMAGE))] * 3
    rows = http.post("/v1/items", files=images, data={"items": json.dumps(items)}).json()["results"]
    assert rows[0] == {"id": "form"}
    assert [row["error"]["detail"] for row in rows[1:]] == [
        f"unknown member: {name}; an item has id, domain, label, payload" for name in ("price", "embedding")
    ]
    embeddings = {"items": [{**item, "embedding": [1.0] * 64}, {**item, "vector": [1.0] * 64}]}
    rows = http.post("/v1/items", json=embeddings).json()["results"]
    assert rows[0] == {"id": "form"}
    assert rows[1]["error"]["detail"] == (
        "unknown member: vector; an item has id, domain, label, payload, embedding"
    )
