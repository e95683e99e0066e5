"""Images by URL: limits of bytes and time, encodings, status codes and certificates."""

import asyncio
import gzip
import ssl
from pathlib import Path

import pytest
import trustme

from service.errors import ImageTooLarge, Overloaded
from tests.support.remote import (
    HOST,
    IMAGE,
    PUBLIC,
    UNREACHABLE,
    URL,
    FakeNetwork,
    answer,
    counts,
    drip,
    fetch,
    redirect,
    refusal,
    served,
    silence,
)

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_the_size_of_a_fetched_image_is_limited(network: FakeNetwork) -> None:
    network.pages["/a.png"] = answer(IMAGE, content_length=10**9)
    network.pages["/chunked"] = CHUNKED + b"40\r\n" + b"x" * 64 + b"\r\n"  # never ends
    network.pages["/closed"] = answer(b"x" * 64, content_length=None)
    fetcher = network.fetcher(max_image_bytes=len(IMAGE))
    for path, got in (("/a.png", 10**9), ("/chunked", 64), ("/closed", 64)):
        error = await refusal(fetcher, HOST + path)
        assert isinstance(error, ImageTooLarge)
        assert error.members["limit"] == len(IMAGE)
        assert error.members["got"] == got
    network.pages["/a.png"] = answer(IMAGE)
    assert await fetch(fetcher) == IMAGE
    assert counts(fetcher) == {"failed": 3, "fetched": 1}


@pytest.mark.parametrize("page", [drip, silence])
async def test_the_timeout_covers_the_complete_fetch(network: FakeNetwork, page: object) -> None:
    network.pages["/a.png"] = page  # type: ignore[assignment]
    error = await refusal(network.fetcher(url_timeout_s=1))
    assert error.detail == UNREACHABLE
    async with asyncio.timeout(60):
        await network.ended.wait()  # the connection is closed


async def test_cancelling_closes_the_connection(network: FakeNetwork) -> None:
    network.pages["/a.png"] = drip
    task = asyncio.create_task(fetch(network.fetcher()))
    async with asyncio.timeout(60):
        while not network.heads:  # noqa: ASYNC110 (the server changes it)
            await asyncio.sleep(0.01)
        task.cancel()
        await network.ended.wait()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
async def test_encoded_responses_are_refused(network: FakeNetwork, encoding: str) -> None:
    network.pages["/a.png"] = answer(gzip.compress(bytes(10**6)), content_encoding=encoding)
    assert "encoding" in (await refusal(network.fetcher())).detail


@pytest.mark.parametrize("status", ["201 Made", "204 Empty", "206 Part", "404 Gone", "500 X"])
async def test_other_statuses_are_refused(network: FakeNetwork, status: str) -> None:
    network.pages["/a.png"] = answer(status=status)
    error = await refusal(network.fetcher())
    assert error.problem()["type"] == "unfetchable-image"
    assert status[:3] in error.detail


async def test_capacity_is_reserved_before_bytes_are_kept(network: FakeNetwork) -> None:
    reserved: list[int] = []

    def full(amount: int) -> None:
        reserved.append(amount)
        raise Overloaded("full")

    for page in (answer(IMAGE), CHUNKED + b"10\r\n" + IMAGE + b"\r\n0\r\n\r\n"):
        network.pages["/a.png"] = page
        with pytest.raises(Overloaded):
            await network.fetcher().fetch(URL, full)
        await network.fetcher().fetch(URL, reserved.append)
    assert reserved == [len(IMAGE)] * 4


async def test_the_certificate_must_match_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    tls, server_names = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), []
    authority.issue_cert("pics.example.org").configure_cert(tls)
    tls.sni_callback = lambda _, name, __: server_names.append(name)
    async with served(tls) as network:
        network.pages = {"/a.png": answer(IMAGE), "/old": redirect(URL)}
        network.names["other.example.org"] = [[PUBLIC]]
        untrusting = network.fetcher(url_hosts=("*.example.org",))
        assert (await refusal(untrusting, "https://pics.example.org/a.png")).detail == UNREACHABLE
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        fetcher = network.fetcher(url_hosts=("*.example.org",))
        assert await fetch(fetcher, "https://pics.example.org/a.png") == IMAGE
        assert (await refusal(fetcher, "https://other.example.org/a.png")).detail == UNREACHABLE
        assert "redirects to" in (await refusal(fetcher, "https://pics.example.org/old")).detail
    names = ["pics.example.org", "pics.example.org", "other.example.org", "pics.example.org"]
    assert server_names == names
    assert network.connected == [(PUBLIC, 443)] * 4  # and never at port 80
