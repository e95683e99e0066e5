"""Images by URL: a real server on loopback, behind names and addresses that the test controls."""

import pytest

from service.errors import InvalidRequest, UnfetchableImage
from tests.support.remote import (
    HOST,
    IMAGE,
    PUBLIC,
    UNREACHABLE,
    URL,
    FakeNetwork,
    answer,
    counts,
    fetch,
    redirect,
    refusal,
    silence,
)


async def test_an_image_is_fetched_from_the_checked_address(network: FakeNetwork) -> None:
    fetcher = network.fetcher()
    assert await fetch(fetcher, f"{URL}?size=1#part") == IMAGE
    assert network.connected == [(PUBLIC, 80)]
    first, *lines = network.heads[0].lower().splitlines()
    assert first == "get /a.png?size=1 http/1.1"
    assert "host: pics.example.org" in lines
    assert "accept-encoding: identity" in lines
    assert not {"cookie", "authorization", "referer"} & {line.split(":")[0] for line in lines}
    assert counts(fetcher) == {"fetched": 1}


async def test_proxies_and_cookies_are_ignored(network: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    network.pages["/a.png"] = answer(IMAGE, set_cookie="who=somebody; Path=/")
    fetcher = network.fetcher()
    assert [await fetch(fetcher) for _ in range(2)] == [IMAGE, IMAGE]
    assert "cookie" not in network.heads[1].lower()


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
async def test_names_that_are_not_listed_are_not_resolved(network: FakeNetwork, url: str) -> None:
    fetcher = network.fetcher()
    assert isinstance(await refusal(fetcher, url), InvalidRequest)
    assert (network.lookups, network.connected) == ([], [])
    assert counts(fetcher) == {"refused": 1}


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["10.1.2.3", "fe80::1%eth0"], ["169.254.169.254"], ["::1"], ["::ffff:10.0.0.1"], []],
)
async def test_a_name_without_a_public_address_is_not_connected_to(
    network: FakeNetwork, addresses: list[str]
) -> None:
    network.names["pics.example.org"] = [addresses]
    fetcher = network.fetcher()
    error = await refusal(fetcher)
    assert isinstance(error, UnfetchableImage)
    assert error.problem()["detail"] == UNREACHABLE
    assert network.connected == []
    assert counts(fetcher) == {"refused": 1}


async def test_only_public_addresses_are_tried(network: FakeNetwork) -> None:
    network.names["pics.example.org"] = [["10.0.0.1", "8.8.8.8", "127.0.0.1", PUBLIC, "::1"]]
    network.dead = {"8.8.8.8"}
    assert await fetch(network.fetcher()) == IMAGE
    assert network.connected == [("8.8.8.8", 80), (PUBLIC, 80)]


async def test_dns_rebinding_has_no_effect(network: FakeNetwork) -> None:
    network.names["pics.example.org"] = [[PUBLIC], ["127.0.0.1"]]
    fetcher = network.fetcher()
    assert await fetch(fetcher) == IMAGE
    assert network.lookups == ["pics.example.org"]  # once: the checked address is used
    assert (await refusal(fetcher)).detail == UNREACHABLE  # and connections are not reused
    assert network.connected == [(PUBLIC, 80)]


async def test_all_failures_have_the_same_detail(network: FakeNetwork) -> None:
    details = set()
    network.names["a.cdn.example.org"] = [["192.168.0.1"]]
    details.add((await refusal(network.fetcher(), "http://a.cdn.example.org/")).detail)
    details.add((await refusal(network.fetcher(), "http://unknown.cdn.example.org/")).detail)
    details.add((await refusal(network.fetcher(), f"http://{'a' * 63}.{'b.' * 90}cdn.example.org/")).detail)
    network.pages["/a.png"] = b"SSH-2.0-OpenSSH_9.2\r\n"
    details.add((await refusal(network.fetcher())).detail)
    network.pages["/a.png"] = b""
    details.add((await refusal(network.fetcher())).detail)
    network.pages["/a.png"] = answer(IMAGE, content_length=1000)  # then closes
    details.add((await refusal(network.fetcher())).detail)
    network.pages["/a.png"] = silence
    details.add((await refusal(network.fetcher(url_timeout_s=0.1))).detail)
    network.dead = {PUBLIC}
    details.add((await refusal(network.fetcher())).detail)
    assert details == {UNREACHABLE}


@pytest.mark.parametrize("to", ["/a.png", f"{HOST}:80/a.png", "//pics.example.org/a.png", "a.png"])
async def test_redirects_are_followed(network: FakeNetwork, to: str) -> None:
    network.pages["/old"] = redirect(to)
    assert await fetch(network.fetcher(), f"{HOST}/old") == IMAGE
    assert network.lookups == ["pics.example.org"] * 2  # once per connection


async def test_a_redirect_to_another_listed_host_is_followed(network: FakeNetwork) -> None:
    network.names["b.cdn.example.org"] = [["8.8.8.8"]]
    network.pages["/old"] = redirect("http://b.cdn.example.org/a.png")
    assert await fetch(network.fetcher(), f"{HOST}/old") == IMAGE
    assert network.connected == [(PUBLIC, 80), ("8.8.8.8", 80)]


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
async def test_redirects_to_other_locations_are_not_followed(network: FakeNetwork, to: str) -> None:
    network.names["inside.cdn.example.org"] = [["10.0.0.1"]]
    network.pages["/old"] = redirect(to)
    error = await refusal(network.fetcher(), f"{HOST}/old")
    assert isinstance(error, UnfetchableImage)
    assert all(part not in error.detail for part in ("10.0.0.1", "127.0.0.1", "example"))
    assert network.connected[1:] == [] or to.startswith("/")


async def test_the_number_of_redirects_is_limited(network: FakeNetwork) -> None:
    network.pages["/loop"] = redirect("/loop")
    network.pages["/nowhere"] = answer(status="301 Moved Permanently")
    fetcher = network.fetcher()
    assert "redirects more than" in (await refusal(fetcher, f"{HOST}/loop")).detail
    assert len(network.heads) == 4
    assert isinstance(await refusal(fetcher, f"{HOST}/nowhere"), UnfetchableImage)
    for hop in range(3):
        network.pages[f"/{hop}"] = redirect(f"/{hop + 1}")
    network.pages["/3"] = answer(IMAGE)
    assert await fetch(fetcher, f"{HOST}/0") == IMAGE
