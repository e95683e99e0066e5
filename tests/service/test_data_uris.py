"""Requests with base64 images: the data URIs that clients send, and the shapes of several vendors."""

import base64
import json
import random
import tracemalloc

import pytest

from service.errors import ImageTooLarge, InvalidRequest
from service.http.data_uris import Base64Image, decode_base64
from service.http.shapes import parse_cohere, parse_openai

DATA = random.Random(1).randbytes(200_002)  # padded, and longer than one piece
TEXT = base64.b64encode(DATA).decode()
URI = f"data:image/png;base64,{TEXT}"
PART = {"type": "image_url", "image_url": {"url": URI}}
MESSAGES = [{"role": "user", "content": [PART, {"type": "text", "text": "Represent the given image."}]}]


def decoded(text: str) -> bytes:
    """The bytes of the only image of a request, whose body is `text`."""
    [source] = parse_openai(bytearray(text.encode())).sources
    assert isinstance(source, Base64Image)
    return decode_base64(source, len(DATA))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(URI),
        json.dumps(URI.rstrip("=")),
        json.dumps(URI.replace("=", "%3D")),
        json.dumps("DATA:image/png;name=x;BASE64," + TEXT),
        json.dumps("data:;base64," + "\r\n".join(TEXT[at : at + 76] for at in range(0, len(TEXT), 76))),
        json.dumps("data:;base64," + TEXT.replace("+", "-").replace("/", "_")),
        json.dumps(URI).replace("/", "\\/"),
        json.dumps(URI).replace("+", "\\u002B"),
        json.dumps({"image": TEXT}),
        json.dumps(" \r\n\t" * 200 + URI),
    ],
    ids=lambda text: text[:30],
)
def test_base64_as_clients_send_it(text: str) -> None:
    assert decoded(f'{{"input": {text}, "encoding_format": null, "user": []}}') == DATA


@pytest.mark.parametrize("text", ["%%%", TEXT + "QQ", "QQ==QQ==", "Q", "é"])
def test_invalid_base64_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="base64"):
        decoded(json.dumps({"input": "data:;base64," + text}))


@pytest.mark.parametrize("start", [" " * 3_000, "\n" * 3_000, "data:" + ";" * 3_000, "a" * 3_000])
def test_a_scheme_after_many_characters_is_not_found(start: str) -> None:
    with pytest.raises(InvalidRequest, match="data"):
        decoded(json.dumps({"input": start + URI}))


@pytest.mark.parametrize("text", ["http://a/" + "b" * 8_184, "https:\\/\\/a/" + "\\ud83d\\ude00" * 8_190])
def test_a_long_url_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="URL"):
        parse_openai(bytearray(f'{{"input": "{text}"}}'.encode()))


@pytest.mark.parametrize(
    "member", ["model", "encoding_format", "embedding_types", "text", "content", "input"]
)
def test_long_strings_are_refused_before_they_are_decoded(member: str) -> None:
    """Decoded, a string takes four bytes for each of the body's if it has one emoji."""
    text = "\N{GRINNING FACE}" + "x" * 4_000_000
    parse = parse_cohere if member == "embedding_types" else parse_openai
    bodies: dict[str, object] = {
        "embedding_types": {"images": [URI], "embedding_types": [text]},
        "text": {"messages": [{"content": [PART, {"text": text}]}]},
        "content": {"messages": [{"content": [PART]}, {"content": text}]},
    }
    body = json.dumps(bodies.get(member, {"input": URI, member: text}), ensure_ascii=False)
    body_bytes = bytearray(body.encode())
    tracemalloc.start()
    with pytest.raises(InvalidRequest):
        parse(body_bytes)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_each_encoding_is_computed_once() -> None:
    body = {"images": [URI], "embedding_types": ["float", "base64", "float"] * 100}
    assert parse_cohere(bytearray(json.dumps(body).encode())).encodings == ["float", "base64"]


def test_a_large_image_is_refused() -> None:
    with pytest.raises(ImageTooLarge):
        decode_base64(Base64Image(memoryview(TEXT.encode())), 100_000)


def test_shapes_of_several_vendors() -> None:
    for body, count in (({"messages": MESSAGES}, 1), ({"messages": [MESSAGES, MESSAGES]}, 2)):
        assert len(parse_openai(bytearray(b"\xef\xbb\xbf" + json.dumps(body).encode())).sources) == count
    for text in (json.dumps({"images": [URI]}), json.dumps({"inputs": [{"content": [PART]}], "texts": None})):
        assert len(parse_cohere(bytearray(text.encode())).sources) == 1


@pytest.mark.parametrize("item", ["a cat", {"text": "a cat"}, {"image": URI, "text": "a cat"}, 3])
def test_text_is_refused_with_its_index(item: object) -> None:
    with pytest.raises(InvalidRequest, match="only images") as refused:
        parse_openai(bytearray(json.dumps({"input": [URI, item]}).encode()))
    assert refused.value.members["index"] == 1
