"""Bodies as clients send them: charsets, encodings, byte order marks, no filename, many files."""

import json
import threading
from codecs import BOM_UTF8
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest

from benchmarks.targets.process import ServiceProcess
from tests.support.images import encode, noise
from tests.support.live import PNG, embedding_of, problem_of

IMAGE = encode(noise(1))
JSON = {"Content-Type": "application/json"}
VECTOR = [0.125] * 64
# Every route with a body, and a body that it accepts.
BODIES: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "/v1/embed": ("POST", IMAGE, PNG),
    "/v1/search": ("POST", json.dumps({"embedding": VECTOR}).encode(), JSON),
    "/v1/items": (
        "POST",
        json.dumps({"items": [{"id": "b", "domain": "bodies", "label": "l", "embedding": VECTOR}]}).encode(),
        JSON,
    ),
    "/v1/items/b?domain=bodies&label=l": ("PUT", IMAGE, PNG),
}


def form(*parts: tuple[str, bytes], charset: str | None = None, end: bytes = b"--x--\r\n") -> dict[str, Any]:
    """httpx's arguments for a form; each part is the rest of its head, and its content."""
    body = b"".join(
        b"--x\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (head.encode("latin-1"), content)
        for head, content in parts
    )
    kind = "multipart/form-data; boundary=x" + (f"; charset={charset}" if charset else "")
    return {"content": body + end, "headers": {"Content-Type": kind}}


FILE = ('name="image"; filename="a"', IMAGE)


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf8"', "US-ASCII", None])
def test_forms_in_utf_8_are_accepted(http: httpx.Client, charset: str | None) -> None:
    embedding_of(http.post("/v1/embed", **form(FILE, charset=charset)))


@pytest.mark.parametrize("charset", ["utf-16", "latin-1", "idna", "punycode", "utf-7", "undefined", '""'])
def test_forms_in_other_charsets_are_refused(http: httpx.Client, charset: str) -> None:
    for path in ("/v1/embed", "/v1/embed/batch", "/v1/items", "/v1/search"):
        response = http.post(path, **form(FILE, charset=charset))
        assert problem_of(response) == (415, "unsupported-media-type")
        assert charset.strip('"') in response.json()["detail"]


def test_text_that_is_not_utf_8_is_refused(http: httpx.Client) -> None:
    put = "/v1/items/b?domain=bodies&label=l"
    for text in (b'{"a": "\xff"}', b'{"a": "\xed\xa0\x80"}', rb'{"a": "\ud800"}'):
        refused = http.put(put, **form(FILE, ('name="payload"', text)))
        assert problem_of(refused) == (400, "invalid-request")
    assert problem_of(http.put(put, **form(('name="\xff"', b"x"))))[0] == 400


def test_text_fields_are_limited(http: httpx.Client) -> None:
    put = "/v1/items/b?domain=bodies&label=l"
    for part in ('name="payload"', 'name="image"'):
        refused = http.put(put, **form((part, b" " * (2**17 + 1))))
        assert problem_of(refused) == (400, "invalid-request")
        assert refused.json()["limit"] == 2**17


@pytest.mark.parametrize("head", [["x: y"] * 9, ["x: " + "y" * 9000], ["x" * 9000 + ": y"]])
def test_the_headers_of_a_part_are_limited(http: httpx.Client, head: list[str]) -> None:
    named = "\r\n".join(['name="image"; filename="a"', *head])
    assert problem_of(http.post("/v1/embed", **form((named, IMAGE)))) == (400, "invalid-request")


@pytest.mark.parametrize(
    "names",
    [
        f"filename=\"{quote('写' * 255)}\"; filename*=UTF-8''{quote('写' * 255)}",
        f"filename*=UTF-8''{quote('é' * 255)}",
        f'filename="{";" * 255}"',
        r'filename="a\"; name=\"b.png"',
    ],
)
def test_file_names_of_clients_are_accepted(http: httpx.Client, names: str) -> None:
    embedding_of(http.post("/v1/embed", **form((f'name="image"; {names}', IMAGE))))


@pytest.mark.parametrize("kind", ["multipart/form-data", 'multipart/form-data; boundary=""', None])
def test_a_malformed_form_writes_no_log(
    service: ServiceProcess, http: httpx.Client, kind: str | None
) -> None:
    before = service.log.read_text()
    headers = {"Content-Type": kind or "multipart/form-data; boundary=x"}
    for path in ("/v1/embed", "/v1/embed/batch", "/v1/items", "/v1/search"):
        refused = http.post(path, content=b"a form", headers=headers)
        assert problem_of(refused) == (400, "invalid-request")
    assert service.log.read_text() == before


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x; a=", "image/png; a=", "a"])
def test_a_long_content_type_is_refused(http: httpx.Client, kind: str) -> None:
    for path in (*BODIES, "/v1/embed/batch", "/v1/embeddings", "/v2/embed"):
        method = BODIES[path][0] if path in BODIES else "POST"
        headers = {"Content-Type": kind + ";" * 600}
        assert problem_of(http.request(method, path, content=b"x", headers=headers))[0] == 415


def test_a_form_without_its_end_is_refused(http: httpx.Client) -> None:
    """Its last image would be missing from the results."""
    files = [('name="images"; filename="a"', IMAGE)] * 2
    refused = http.post("/v1/embed/batch", **form(*files, end=b""))
    assert problem_of(refused) == (400, "invalid-request")


@pytest.mark.parametrize(("path", "field"), [("/v1/embed", "image"), ("/v1/embed/batch", "images")])
def test_a_part_without_a_filename_is_explained(http: httpx.Client, path: str, field: str) -> None:
    response = http.post(path, **form((f'name="{field}"', IMAGE)))
    error = response.json() if response.is_error else response.json()["results"][0]["error"]
    assert (error["status"], error["type"]) == (400, "invalid-request")
    assert f"`{field}`" in error["detail"]
    assert "filename" in error["detail"]


@pytest.mark.parametrize("path", BODIES)
def test_encoded_bodies_are_refused(http: httpx.Client, path: str) -> None:
    method, body, headers = BODIES[path]
    for encoding in ("gzip", "GZIP", "br, gzip", "identity, zstd", "x-unknown"):
        refused = http.request(method, path, content=body, headers={**headers, "Content-Encoding": encoding})
        assert problem_of(refused) == (415, "unsupported-media-type")
        assert encoding.lower().split()[-1] in refused.json()["detail"]
    for encoding in ("identity", "Identity", ""):
        accepted = http.request(method, path, content=body, headers={**headers, "Content-Encoding": encoding})
        assert accepted.status_code == 200, accepted.text


def test_a_byte_order_mark_before_json_is_accepted(http: httpx.Client) -> None:
    for path in ("/v1/search", "/v1/items"):
        method, body, headers = BODIES[path]
        response = http.request(method, path, content=BOM_UTF8 + body, headers=headers)
        assert response.status_code == 200, response.text
    put = form(FILE, ('name="payload"', BOM_UTF8 + b'{"a": 1}'))
    assert http.put("/v1/items/b?domain=bodies&label=l", **put).status_code == 200
    listed = BOM_UTF8 + json.dumps([{"id": "b", "domain": "bodies", "label": "l"}]).encode()
    bulk = form(('name="images"; filename="a"', IMAGE), ('name="items"', listed))
    assert http.post("/v1/items", **bulk).json() == {"results": [{"id": "b"}]}


def test_a_row_that_is_too_large_does_not_fail_the_others(http: httpx.Client) -> None:
    valid = {"id": "b", "domain": "bodies", "label": "l", "embedding": VECTOR}
    body = {"items": [valid, {**valid, "extra": "x" * 2**20}, {**valid, "label": 1}]}
    results = http.post("/v1/items", json=body).json()["results"]
    assert results[0] == {"id": "b"}
    assert [row["error"]["type"] for row in results[1:]] == ["invalid-request"] * 2


def test_commas_in_strings_are_no_values(http: httpx.Client) -> None:
    rows = [{"id": "b", "domain": "bodies", "label": "l", "payload": {"text": "a," * 30_000}}] * 6
    bodies: list[dict[str, Any]] = [
        {"json": {"items": [{**row, "embedding": VECTOR} for row in rows]}},
        form(*[('name="images"; filename="a"', IMAGE)] * 6, ('name="items"', json.dumps(rows).encode())),
    ]
    for body in bodies:
        assert http.post("/v1/items", **body).json() == {"results": [{"id": "b"}] * 6}
    excluded = [f"a,b,c,d,e,f,g,h,i,j,k,{number}" for number in range(1_000)]
    assert http.post("/v1/search", json={"embedding": VECTOR, "exclude": excluded}).status_code == 200


def test_a_thousand_escaped_ids_of_any_character_may_be_excluded(http: httpx.Client) -> None:
    excluded = [f"{number:04}" + "\N{GRINNING FACE}" * 508 for number in range(1_000)]
    body = json.dumps({"embedding": VECTOR, "exclude": excluded, "domain": "bodies"})
    response = http.post("/v1/search", content=BOM_UTF8 + body.encode(), headers=JSON)
    assert response.status_code == 200, response.text
    for members in ({"exclude": [*excluded, "x"]}, {"id": "x" * 300_000}, {"x" * 300_000: 1}):
        refused = http.post("/v1/search", json={"embedding": VECTOR, "exclude": excluded, **members})
        assert problem_of(refused) == (400, "invalid-request")
        assert len(refused.text) < 1_000


@pytest.mark.parametrize(
    "body", [b'{"items": [{"id": "a"}, {"id": "\xff"}]}', b'{"items": [{}, {"id": NaN}]}']
)
def test_a_row_that_is_not_json_fails_the_request(http: httpx.Client, body: bytes) -> None:
    refused = http.post("/v1/items", content=body, headers=JSON)
    assert problem_of(refused) == (400, "invalid-request")


def test_form_files_open_no_descriptors(service: ServiceProcess, http: httpx.Client) -> None:
    """Files above 1 MB were spooled to disk: a request of 200 of them held 200 descriptors."""
    processes = [psutil.Process(service.pid), *psutil.Process(service.pid).children(recursive=True)]
    before = sum(process.num_fds() for process in processes)
    most, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], sum(process.num_fds() for process in processes))

    watcher = threading.Thread(target=watch)
    watcher.start()
    files: list[tuple[str, Any]] = [("images", ("a", bytes(1_100_000)))] * 200
    response = http.post("/v1/embed/batch", files=files)
    done.set()
    watcher.join()
    assert len(response.json()["results"]) == 200
    assert most[0] - before < 50


@pytest.fixture(scope="module", autouse=True)
def cleaned(service: ServiceProcess) -> Any:
    """Deletes the item of these tests."""
    yield
    httpx.delete(f"{service.url}/v1/items/b", trust_env=False)
