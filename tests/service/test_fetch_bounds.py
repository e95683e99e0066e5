"""Images by URL: how much, how long, in which encoding, and by whose certificate."""

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
    NOT_HAD,
    PUBLIC,
    URL,
    World,
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


async def test_an_image_has_the_bytes_that_a_body_may_have(world: World) -> None:
    world.pages["/a.png"] = answer(IMAGE, content_length=10**9)
    world.pages["/chunked"] = CHUNKED + b"40\r\n" + b"x" * 64 + b"\r\n"  # and no end
    world.pages["/closed"] = answer(b"x" * 64, content_length=None)
    fetcher = world.fetcher(max_image_bytes=len(IMAGE))
    for path, got in (("/a.png", 10**9), ("/chunked", 64), ("/closed", 64)):
        error = await refusal(fetcher, HOST + path)
        assert isinstance(error, ImageTooLarge)
        assert error.members["limit"] == len(IMAGE)
        assert error.members["got"] == got
    world.pages["/a.png"] = answer(IMAGE)
    assert await fetch(fetcher) == IMAGE
    assert counts(fetcher) == {"failed": 3, "fetched": 1}


@pytest.mark.parametrize("page", [drip, silence])
async def test_time_is_for_the_whole_fetch(world: World, page: object) -> None:
    world.pages["/a.png"] = page  # type: ignore[assignment]
    error = await refusal(world.fetcher(url_timeout_s=0.3))
    assert error.detail == NOT_HAD
    async with asyncio.timeout(20):
        await world.ended.wait()  # nothing goes on behind it


async def test_who_gives_up_leaves_no_connection(world: World) -> None:
    world.pages["/a.png"] = drip
    task = asyncio.create_task(fetch(world.fetcher()))
    async with asyncio.timeout(20):
        while not world.heads:  # noqa: ASYNC110 (it is the server that changes it)
            await asyncio.sleep(0.01)
        task.cancel()
        await world.ended.wait()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
async def test_encodings_are_not_unpacked(world: World, encoding: str) -> None:
    world.pages["/a.png"] = answer(gzip.compress(bytes(10**6)), content_encoding=encoding)
    assert "encoding" in (await refusal(world.fetcher())).detail


@pytest.mark.parametrize("status", ["201 Made", "204 Empty", "206 Part", "404 Gone", "500 X"])
async def test_other_answers_are_no_image(world: World, status: str) -> None:
    world.pages["/a.png"] = answer(status=status)
    error = await refusal(world.fetcher())
    assert error.problem()["type"] == "unfetchable-image"
    assert status[:3] in error.detail


async def test_room_is_asked_for_before_bytes_are_kept(world: World) -> None:
    taken: list[int] = []

    def full(amount: int) -> None:
        taken.append(amount)
        raise Overloaded("full")

    for page in (answer(IMAGE), CHUNKED + b"10\r\n" + IMAGE + b"\r\n0\r\n\r\n"):
        world.pages["/a.png"] = page
        with pytest.raises(Overloaded):
            await world.fetcher().fetch(URL, full)
        await world.fetcher().fetch(URL, taken.append)
    assert taken == [len(IMAGE)] * 4


async def test_the_certificate_is_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    tls, asked = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), []
    authority.issue_cert("pics.example.org").configure_cert(tls)
    tls.sni_callback = lambda _, name, __: asked.append(name)
    async with served(tls) as world:
        world.pages = {"/a.png": answer(IMAGE), "/old": redirect(URL)}
        world.names["other.example.org"] = [[PUBLIC]]
        untrusting = world.fetcher(url_hosts=("*.example.org",))
        assert (await refusal(untrusting, "https://pics.example.org/a.png")).detail == NOT_HAD
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        fetcher = world.fetcher(url_hosts=("*.example.org",))
        assert await fetch(fetcher, "https://pics.example.org/a.png") == IMAGE
        assert (await refusal(fetcher, "https://other.example.org/a.png")).detail == NOT_HAD
        assert "redirects to where" in (await refusal(fetcher, "https://pics.example.org/old")).detail
    assert asked == ["pics.example.org", "pics.example.org", "other.example.org", "pics.example.org"]
    assert world.connected == [(PUBLIC, 443)] * 4  # and never at port 80
