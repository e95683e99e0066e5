"""Images by URL: a real server on loopback, behind names and addresses that the test decides."""

import asyncio
import gzip
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.errors import ImageTooLarge, InvalidRequest, Overloaded, ServiceError, UnfetchableImage
from service.fetch import Fetcher
from tests.remote import PUBLIC, World, answer, drip, redirect, served, silence

HOST = "http://pics.example.org"
URL = f"{HOST}/a.png"
IMAGE = b"an image's bytes"
NOT_HAD = "no image could be had from the URL's host in time"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with served() as made:
        made.pages["/a.png"] = answer(IMAGE)
        yield made


async def fetch(fetcher: Fetcher, url: str = URL) -> bytes:
    return await fetcher.fetch(url, lambda _: None)


async def refusal(fetcher: Fetcher, url: str = URL) -> ServiceError:
    with pytest.raises(ServiceError) as refused:
        await fetch(fetcher, url)
    return refused.value


def counts(fetcher: Fetcher) -> dict[str, float]:
    [family] = fetcher._count.collect()
    return {one.labels["result"]: one.value for one in family.samples if one.name.endswith("_total")}


async def test_an_image_comes_from_the_address_that_was_checked(world: World) -> None:
    fetcher = world.fetcher()
    assert await fetch(fetcher, f"{URL}?size=1#part") == IMAGE
    assert world.connected == [(PUBLIC, 80)]
    first, *lines = world.heads[0].lower().splitlines()
    assert first == "get /a.png?size=1 http/1.1"
    assert "host: pics.example.org" in lines
    assert "accept-encoding: identity" in lines
    assert not {"cookie", "authorization", "referer"} & {line.split(":")[0] for line in lines}
    assert counts(fetcher) == {"fetched": 1}


async def test_no_proxy_and_no_cookie_comes_between(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    world.pages["/a.png"] = answer(IMAGE, set_cookie="who=somebody; Path=/")
    fetcher = world.fetcher()
    assert [await fetch(fetcher) for _ in range(2)] == [IMAGE, IMAGE]
    assert "cookie" not in world.heads[1].lower()


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example.org/a.png",
        "https://pics.example.org/a.png",
        "http://pics.example.org:8080/a.png",
        "http://pics.example.org:0/a.png",
        "http://pics.example.org.:80/a.png",
        "http://cdn.example.org/a.png",
        "http://user@pics.example.org/a.png",
        "http://user:word@pics.example.org/a.png",
        "http://pics.example.org\\@other.example.org/a.png",
        "http://pics.example.org:80@other.example.org/a.png",
        "http://127.0.0.1/a.png",
        "http://[::1]/a.png",
        "http://2130706433/a.png",
        "http:///a.png",
        "http:pics.example.org",
        "//pics.example.org/a.png",
        "ftp://pics.example.org/a.png",
        "file:///etc/passwd",
        "unix:///run/x",
        "http://pics.example.org/\r\nX: y",
        "http://xn--a.example.org/",
        "http://[/",
        f"{URL}?{'x' * 9000}",
        "",
    ],
)
async def test_urls_that_lead_elsewhere_are_not_even_looked_up(world: World, url: str) -> None:
    fetcher = world.fetcher()
    assert isinstance(await refusal(fetcher, url), InvalidRequest)
    assert (world.lookups, world.connected) == ([], [])
    assert counts(fetcher) == {"refused": 1}


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["10.1.2.3", "fe80::1%eth0"], ["169.254.169.254"], ["::1"], ["::ffff:10.0.0.1"], []],
)
async def test_a_name_without_a_public_address_is_not_connected_to(
    world: World, addresses: list[str]
) -> None:
    world.names["pics.example.org"] = [addresses]
    fetcher = world.fetcher()
    error = await refusal(fetcher)
    assert isinstance(error, UnfetchableImage)
    assert error.problem()["detail"] == NOT_HAD
    assert world.connected == []
    assert counts(fetcher) == {"refused": 1}


async def test_of_mixed_addresses_only_the_public_ones_are_tried(world: World) -> None:
    world.names["pics.example.org"] = [["10.0.0.1", "8.8.8.8", "127.0.0.1", PUBLIC, "::1"]]
    world.dead = {"8.8.8.8"}
    assert await fetch(world.fetcher()) == IMAGE
    assert world.connected == [("8.8.8.8", 80), (PUBLIC, 80)]


async def test_a_name_that_changes_its_mind_changes_nothing(world: World) -> None:
    world.names["pics.example.org"] = [[PUBLIC], ["127.0.0.1"]]
    fetcher = world.fetcher()
    assert await fetch(fetcher) == IMAGE
    assert world.lookups == ["pics.example.org"]  # once: what was checked is what was connected to
    assert (await refusal(fetcher)).detail == NOT_HAD  # and no connection outlives its answer
    assert world.connected == [(PUBLIC, 80)]


async def test_all_that_is_not_reached_sounds_the_same(world: World) -> None:
    details = set()
    world.names["a.cdn.example.org"] = [["192.168.0.1"]]
    details.add((await refusal(world.fetcher(), "http://a.cdn.example.org/")).detail)
    details.add((await refusal(world.fetcher(), "http://unknown.cdn.example.org/")).detail)
    details.add((await refusal(world.fetcher(), f"http://{'a' * 63}.{'b.' * 90}cdn.example.org/")).detail)
    world.pages["/a.png"] = b"SSH-2.0-OpenSSH_9.2\r\n"
    details.add((await refusal(world.fetcher())).detail)
    world.pages["/a.png"] = b""
    details.add((await refusal(world.fetcher())).detail)
    world.pages["/a.png"] = answer(IMAGE, content_length=1000)  # and then the end
    details.add((await refusal(world.fetcher())).detail)
    world.pages["/a.png"] = silence
    details.add((await refusal(world.fetcher(url_timeout_s=0.1))).detail)
    world.dead = {PUBLIC}
    details.add((await refusal(world.fetcher())).detail)
    assert details == {NOT_HAD}


@pytest.mark.parametrize("to", ["/a.png", f"{HOST}:80/a.png", "//pics.example.org/a.png", "a.png"])
async def test_redirects_are_followed(world: World, to: str) -> None:
    world.pages["/old"] = redirect(to)
    assert await fetch(world.fetcher(), f"{HOST}/old") == IMAGE
    assert world.lookups == ["pics.example.org"] * 2  # each connection is checked


async def test_a_redirect_to_another_listed_host_is_followed(world: World) -> None:
    world.names["b.cdn.example.org"] = [["8.8.8.8"]]
    world.pages["/old"] = redirect("http://b.cdn.example.org/a.png")
    assert await fetch(world.fetcher(), f"{HOST}/old") == IMAGE
    assert world.connected == [(PUBLIC, 80), ("8.8.8.8", 80)]


@pytest.mark.parametrize(
    "to",
    [
        "http://other.example.org/a.png",
        "https://pics.example.org/a.png",  # listed for http only, as here; the other way round is the same
        "http://pics.example.org:8080/a.png",
        "http://user@pics.example.org/a.png",
        "http://127.0.0.1/a.png",
        "http://inside.cdn.example.org/a.png",
        "file:///etc/passwd",
        "http://[",
        "/\xe9\x80\x80",
    ],
)
async def test_redirects_to_elsewhere_are_not_followed(world: World, to: str) -> None:
    world.names["inside.cdn.example.org"] = [["10.0.0.1"]]
    world.pages["/old"] = redirect(to)
    error = await refusal(world.fetcher(), f"{HOST}/old")
    assert isinstance(error, UnfetchableImage)
    assert all(part not in error.detail for part in ("10.0.0.1", "127.0.0.1", "example"))
    assert world.connected[1:] == [] or to.startswith("/")


async def test_redirects_end(world: World) -> None:
    world.pages["/loop"] = redirect("/loop")
    world.pages["/nowhere"] = answer(status="301 Moved Permanently")
    fetcher = world.fetcher()
    assert "more than 3 times" in (await refusal(fetcher, f"{HOST}/loop")).detail
    assert len(world.heads) == 4
    assert isinstance(await refusal(fetcher, f"{HOST}/nowhere"), UnfetchableImage)
    for hop in range(3):
        world.pages[f"/{hop}"] = redirect(f"/{hop + 1}")
    world.pages["/3"] = answer(IMAGE)
    assert await fetch(fetcher, f"{HOST}/0") == IMAGE


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


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """For pics.example.org, with its key, signed by itself."""
    if not shutil.which("openssl"):
        pytest.skip("a certificate is made with openssl")
    file = tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test"
    options = ["-addext", "subjectAltName=DNS:pics.example.org", "-keyout", "key.pem", "-out", file.name]
    subprocess.run([*command.split(), *options], cwd=tmp_path, check=True, capture_output=True)
    file.write_text(file.read_text() + (tmp_path / "key.pem").read_text())
    return file


async def test_the_certificate_is_the_names(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls, asked = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), []
    tls.load_cert_chain(certificate)
    tls.sni_callback = lambda _, name, __: asked.append(name)
    async with served(tls) as world:
        world.pages = {"/a.png": answer(IMAGE), "/old": redirect(URL)}
        world.names["other.example.org"] = [[PUBLIC]]
        untrusting = world.fetcher(url_hosts=("*.example.org",))
        assert (await refusal(untrusting, "https://pics.example.org/a.png")).detail == NOT_HAD
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        fetcher = world.fetcher(url_hosts=("*.example.org",))
        assert await fetch(fetcher, "https://pics.example.org/a.png") == IMAGE
        assert (await refusal(fetcher, "https://other.example.org/a.png")).detail == NOT_HAD
        assert "redirects to where" in (await refusal(fetcher, "https://pics.example.org/old")).detail
    assert asked == ["pics.example.org", "pics.example.org", "other.example.org", "pics.example.org"]
    assert world.connected == [(PUBLIC, 443)] * 4  # and never at port 80
