"""Forms are parsed in memory, which holds the bytes that were received and not more."""

import tracemalloc
from collections.abc import AsyncIterator, Iterator

import pytest

from service.errors import InvalidRequest
from service.http.body import file_bytes
from service.http.forms import Form, FormFile, parse_form

CONTENT_TYPE = "multipart/form-data; boundary=frontier"
FILES, FILE_BYTES = 40, 2_000_000
HEAD = b'--frontier\r\nContent-Disposition: form-data; name="%b"; filename="a"\r\n\r\n'


async def pieces(*parts: bytes, size: int) -> AsyncIterator[bytes]:
    body = b"".join(parts)
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def large_body() -> AsyncIterator[bytes]:
    for _ in range(FILES):
        yield HEAD % b"images"
        for _ in range(FILE_BYTES // 100_000):
            yield bytes(100_000)
        yield b"\r\n"
    yield b"--frontier--\r\n"


@pytest.fixture
def _traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("_traced")
async def test_a_form_holds_the_bytes_received_until_they_are_read() -> None:
    form = await parse_form(CONTENT_TYPE, large_body(), {"images": FILES})
    held, peak = tracemalloc.get_traced_memory()
    assert FILES * FILE_BYTES <= held < peak < 1.02 * FILES * FILE_BYTES
    for count, file in enumerate(form.getlist("images"), 1):
        assert len(await file_bytes(file, "images", FILE_BYTES)) == FILE_BYTES
        held, peak = tracemalloc.get_traced_memory()
        # The thread that joined the pieces may still hold those of this file.
        assert held < 1.02 * (FILES - count + 2) * FILE_BYTES
    assert peak < 1.02 * (FILES + 2) * FILE_BYTES


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
async def test_a_form_is_the_same_however_it_arrives(size: int) -> None:
    content = bytes(range(256)) + b"\r\n--frontie\r\n--frontierx\r\n-" * 3
    text = b'--frontier\r\nContent-Disposition: form-data; name="n\xc3\xa9"\r\n\r\n\xc3\xa9\r\n'
    parts = (HEAD % b"a", content, b"\r\n", text, HEAD % b"a", b"\r\n--frontier--\r\n", b"epilogue")
    form = await parse_form(CONTENT_TYPE, pieces(*parts, size=size), {"a": 2, "n\u00e9": 1})
    assert _values(form) == [("a", content), ("n\u00e9", "\u00e9".encode()), ("a", b"")]


def _values(form: Form) -> list[tuple[str, bytes]]:
    return [
        (name, b"".join(value.pop()) if isinstance(value, FormFile) else value)
        for name, value in form.multi_items()
    ]


async def test_too_many_files_are_refused() -> None:
    parts = [HEAD % b"a" + b"\r\n"] * 3
    with pytest.raises(InvalidRequest, match="too many"):
        await parse_form(CONTENT_TYPE, pieces(*parts, size=100), {"a": 2})
