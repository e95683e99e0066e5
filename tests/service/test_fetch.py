"""Images by URL: a real server on loopback, behind names and addresses that the test controls."""

import pytest

from service.errors import InvalidRequest, UnfetchableImage
from tests.support.remote import (
    HOST,
    IMAGE,
    NOT_HAD,
    PUBLIC,
    URL,
    World,
    answer,
    counts,
    fetch,
    redirect,
    refusal,
    silence,
)


async def test_an_image_is_fetched_from_the_checked_address(world: World) -> None:
    fetcher = world.fetcher()
    assert await fetch(fetcher, f"{URL}?size=1#part") == IMAGE
    assert world.connected == [(PUBLIC, 80)]
    first, *lines = world.heads[0].lower().splitlines()
    assert first == "get /a.png?size=1 http/1.1"
    assert "host: pics.example.org" in lines
    assert "accept-encoding: identity" in lines
    assert not {"cookie", "authorization", "referer"} & {line.split(":")[0] for line in lines}
    assert counts(fetcher) == {"fetched": 1}


async def test_proxies_and_cookies_are_ignored(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
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
async def test_names_that_are_not_listed_are_not_resolved(world: World, url: str) -> None:
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


async def test_only_public_addresses_are_tried(world: World) -> None:
    world.names["pics.example.org"] = [["10.0.0.1", "8.8.8.8", "127.0.0.1", PUBLIC, "::1"]]
    world.dead = {"8.8.8.8"}
    assert await fetch(world.fetcher()) == IMAGE
    assert world.connected == [("8.8.8.8", 80), (PUBLIC, 80)]


async def test_dns_rebinding_has_no_effect(world: World) -> None:
    world.names["pics.example.org"] = [[PUBLIC], ["127.0.0.1"]]
    fetcher = world.fetcher()
    assert await fetch(fetcher) == IMAGE
    assert world.lookups == ["pics.example.org"]  # once: the checked address is used
    assert (await refusal(fetcher)).detail == NOT_HAD  # and connections are not reused
    assert world.connected == [(PUBLIC, 80)]


async def test_all_failures_have_the_same_detail(world: World) -> None:
    details = set()
    world.names["a.cdn.example.org"] = [["192.168.0.1"]]
    details.add((await refusal(world.fetcher(), "http://a.cdn.example.org/")).detail)
    details.add((await refusal(world.fetcher(), "http://unknown.cdn.example.org/")).detail)
    details.add((await refusal(world.fetcher(), f"http://{'a' * 63}.{'b.' * 90}cdn.example.org/")).detail)
    world.pages["/a.png"] = b"SSH-2.0-OpenSSH_9.2\r\n"
    details.add((await refusal(world.fetcher())).detail)
    world.pages["/a.png"] = b""
    details.add((await refusal(world.fetcher())).detail)
    world.pages["/a.png"] = answer(IMAGE, content_length=1000)  # then closes
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
    assert world.lookups == ["pics.example.org"] * 2  # once per connection


async def test_a_redirect_to_another_listed_host_is_followed(world: World) -> None:
    world.names["b.cdn.example.org"] = [["8.8.8.8"]]
    world.pages["/old"] = redirect("http://b.cdn.example.org/a.png")
    assert await fetch(world.fetcher(), f"{HOST}/old") == IMAGE
    assert world.connected == [(PUBLIC, 80), ("8.8.8.8", 80)]


@pytest.mark.parametrize(
    "to",
    [
        "http://other.example.org/a.png",
        "https://pics.example.org/a.png",  # listed for http only
        "http://pics.example.org:8080/a.png",
        "http://user@pics.example.org/a.png",
        "http://127.0.0.1/a.png",
        "http://inside.cdn.example.org/a.png",
        "file:///etc/passwd",
        "http://[",
        "/\xe9\x80\x80",
    ],
)
async def test_redirects_to_other_locations_are_not_followed(world: World, to: str) -> None:
    world.names["inside.cdn.example.org"] = [["10.0.0.1"]]
    world.pages["/old"] = redirect(to)
    error = await refusal(world.fetcher(), f"{HOST}/old")
    assert isinstance(error, UnfetchableImage)
    assert all(part not in error.detail for part in ("10.0.0.1", "127.0.0.1", "example"))
    assert world.connected[1:] == [] or to.startswith("/")


async def test_the_number_of_redirects_is_limited(world: World) -> None:
    world.pages["/loop"] = redirect("/loop")
    world.pages["/nowhere"] = answer(status="301 Moved Permanently")
    fetcher = world.fetcher()
    assert "redirects more than" in (await refusal(fetcher, f"{HOST}/loop")).detail
    assert len(world.heads) == 4
    assert isinstance(await refusal(fetcher, f"{HOST}/nowhere"), UnfetchableImage)
    for hop in range(3):
        world.pages[f"/{hop}"] = redirect(f"/{hop + 1}")
    world.pages["/3"] = answer(IMAGE)
    assert await fetch(fetcher, f"{HOST}/0") == IMAGE
