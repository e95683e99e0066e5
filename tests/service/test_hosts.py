"""Host headers, the allow-list of hosts to fetch from, and the classification of public addresses."""

import ipaddress
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core import Core
from service.errors import SettingsError
from service.hosts import is_addressed, is_listed, is_public, parse_host
from service.http.app import create_app
from service.http.envelope import Envelope
from service.settings import Settings, load_settings

LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)


@pytest.mark.parametrize(
    ("entry", "scheme", "name", "port", "listed"),
    [
        ("example.org", "https", "example.org", None, True),
        ("example.org", "https", "example.org", 443, True),
        ("EXAMPLE.org", "https", "example.org", None, True),
        ("example.org", "http", "example.org", None, False),
        ("example.org", "http", "example.org", 443, False),
        ("example.org", "https", "example.org", 8443, False),
        ("example.org", "https", "example.org", 0, False),
        ("example.org", "ftp", "example.org", 443, False),
        ("example.org", "ftp", "example.org", None, False),
        ("example.org", "https", "a.example.org", None, False),
        ("example.org", "https", "badexample.org", None, False),
        ("example.org", "https", "example.org.", None, False),
        ("example.org", "https", "example.org.evil.com", None, False),
        ("example.org:8443", "https", "example.org", 8443, True),
        ("example.org:8443", "https", "example.org", None, False),
        ("http://example.org", "http", "example.org", None, True),
        ("http://example.org", "https", "example.org", None, False),
        ("http://*.example.org:8080", "http", "a.example.org", 8080, True),
        ("*.example.org", "https", "a.example.org", None, True),
        ("*.example.org", "https", "a.b.example.org", None, True),
        ("*.example.org", "https", "example.org", None, False),
        ("*.example.org", "https", ".example.org", None, False),
        ("*.example.org", "https", "a..example.org", None, False),
        ("*.example.org", "https", "%31.example.org", None, False),
        ("*.example.org", "https", "aexample.org", None, False),
        ("*.example.org", "https", "evil.com#.example.org", None, False),
    ],
)
def test_an_entry_lists_its_scheme_name_and_port(
    entry: str, scheme: str, name: str, port: int | None, listed: bool
) -> None:
    assert is_listed([parse_host(entry)], scheme, name, port) == listed


@pytest.mark.parametrize(
    "entry",
    [
        "*",
        "*.org",
        "a.*.org",
        "*example.org",
        "ftp://example.org",
        "https://example.org/",
        "user@example.org",
        "example.org:0",
        "example.org:65536",
        "[::1]",
        "exam ple.org",
        "example..org",
        "-a.org",
        "bücher.example",
    ],
)
def test_invalid_entries_are_refused(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"example\.org:8443"):
        parse_host(entry)
    monkeypatch.setenv("UIE_URL_HOSTS", f"example.org,{entry}")
    with pytest.raises(SettingsError, match="UIE_URL_HOSTS"):
        load_settings()


def test_the_setting_is_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().url_hosts == ()
    monkeypatch.setenv("UIE_URL_HOSTS", " example.org, *.example.org ,")
    assert load_settings().url_hosts == ("example.org", "*.example.org")


@settings(deadline=None)
@given(NAMES, NAMES)
def test_a_name_lists_itself_and_a_wildcard_its_subdomains(name: str, other: str) -> None:
    exact = [parse_host(name)]
    assert is_listed(exact, "https", name, None)
    assert is_listed(exact, "https", other, None) == (name == other)
    subdomains = [parse_host(f"*.x.{name}")]
    assert is_listed(subdomains, "https", f"{other}.x.{name}", None)
    assert not is_listed(subdomains, "https", f"{other}x.{name}", None)


REFUSED = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",  # noqa: S104 (an address to refuse)
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "100.100.100.200",  # metadata, like the next three
    "169.254.169.254",
    "192.0.0.192",
    "168.63.129.16",
    "192.0.0.9",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::93.184.215.14",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:93.184.215.14",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:5db8:d70e::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "localhost",
    "127.1",
    "",
]


@pytest.mark.parametrize("address", REFUSED)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "8.8.8.8", "2606:4700:4700::1111", "64:ff9b::93.184.215.14"]
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@settings(deadline=None)
@given(st.ip_addresses(v=4))
def test_no_ipv6_form_makes_an_ipv4_address_public(address: ipaddress.IPv4Address) -> None:
    assert is_public(f"64:ff9b::{address}") == is_public(str(address))
    packed = int(address)
    six_to_four, teredo = (0x2002 << 112) | packed << 80, (0x20010000 << 96) | packed
    mapped, compatible = (0xFFFF << 32) | packed, packed
    for embedded in (mapped, compatible, six_to_four, teredo):
        assert not is_public(str(ipaddress.IPv6Address(embedded)))


@settings(deadline=None)
@given(st.ip_addresses())
def test_a_public_address_is_not_private_local_or_multicast(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    kinds = ("is_private", "is_multicast", "is_link_local", "is_loopback", "is_unspecified")
    assert not is_public(str(address)) or not any(getattr(address, kind) for kind in kinds)


LOOPBACK = [
    "localhost",
    "LocalHost.:80",
    "a.b.localhost:",
    "127.0.0.1:3000",
    "127.9.8.7",
    "[::1]",
    "[0:0::1]:80",
]


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_hosts_are_accepted(host: str) -> None:
    assert is_addressed((), host)


@pytest.mark.parametrize(
    "host",
    ["", ":80", "x", "localhost.x", "notlocalhost", "127.0.0.1.x", "10.0.0.1", "[::2]", "::1", "a@localhost"],
)
def test_other_hosts_are_not(host: str) -> None:
    assert not is_addressed((), host)


@pytest.mark.parametrize(
    ("entry", "accepted", "refused"),
    [
        ("Example.org.", ["example.org", "EXAMPLE.org.:8443"], ["a.example.org", "example.com"]),
        ("*.example.org", ["a.example.org", "a.b.example.org:1"], ["example.org", "aexample.org"]),
        ("service", ["service:3000"], ["service.x"]),
        ("192.0.2.1", ["192.0.2.1:3000"], ["192.0.2.10"]),
        ("[2001:db8::1]", ["[2001:DB8:0::1]:80"], ["[2001:db8::2]"]),
        ("2001:db8::1", ["[2001:db8::1]"], []),
        ("*", ["any.example.org", "192.0.2.1"], ["", "a b]"]),
    ],
)
def test_an_entry_of_the_settings_accepts_its_hosts(
    entry: str, accepted: list[str], refused: list[str]
) -> None:
    allowed = Settings(allowed_hosts=f" {entry}, other").allowed_hosts
    assert all(is_addressed(allowed, host) for host in accepted)
    assert not any(is_addressed(allowed, host) for host in refused)


@pytest.mark.parametrize("entry", ["http://example.org", "example.org:80", "*.", "a b", "exa*mple.org", "-a"])
def test_other_entries_are_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="form"):
        Settings(allowed_hosts=entry)


async def test_keys_replace_the_check_of_hosts_unless_hosts_are_set(tmp_path: Path) -> None:
    for hosts, status in (((), 503), (("example.org",), 421)):  # 503: it has not started
        core = Core(Settings(data_dir=tmp_path, api_keys=("k",), allowed_hosts=hosts))
        transport = httpx.ASGITransport(Envelope(create_app(core), core))
        headers = {"Authorization": "Bearer k", "Origin": "https://pages.example.org"}
        async with httpx.AsyncClient(transport=transport, headers=headers) as client:
            assert (await client.post("http://192.0.2.1/x")).status_code == status
            assert (await client.post("http://example.org/x")).status_code == 503
