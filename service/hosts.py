"""Host names: those by which clients may address the service, and those that images may be fetched from."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

_DEFAULT_PORTS = {"https": 443, "http": 80}
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_HOST_HEADER = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+?)\.?(?::[0-9]{0,5})?", re.IGNORECASE)
_ENTRY = re.compile(rf"(?:(https?)://)?(\*\.(?={_LABEL}\.))?({_NAME.pattern})(?::([1-9][0-9]{{0,4}}))?")

# `ipaddress` regards these as global, but no public web server has such an address.
_NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's metadata and DNS, inside each virtual machine's own host
        "192.0.0.0/24",  # protocol assignments: the nearest NAT device answers at two of them
        "192.88.99.0/24",  # 6to4 relays
        "2002::/16",  # 6to4: embeds an arbitrary IPv4 address
        "3fff::/20",  # documentation, since RFC 9637
    )
]
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # excludes mapped and compatible IPv4, local, multicast
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # embeds an IPv4 address, in IPv6-only networks


def parse_name(entry: str) -> str:
    """Return an entry of `UIE_ALLOWED_HOSTS` in the form that `is_addressed` takes. Raises ValueError."""
    if entry == "*":
        return entry
    name = entry.lower().removesuffix(".")
    if address := _address(name):
        return str(address)
    if not _NAME.fullmatch(name.removeprefix("*.")):
        raise ValueError(
            f"{entry!r} is not of the form example.org, *.example.org, 192.0.2.1 or *, without a port"
        )
    return name


def is_addressed(allowed: Sequence[str], host: str) -> bool:
    """Return True if a Host header names the loopback interface or an allowed host, on any port."""
    match = _HOST_HEADER.fullmatch(host)
    if not match:
        return False
    name = match[1].lower()
    if address := _address(name):
        if address.is_loopback:
            return True
        name = str(address)
    elif name == "localhost" or name.endswith(".localhost"):
        return True
    return "*" in allowed or any(
        name.endswith(entry[1:]) if entry.startswith("*.") else name == entry for entry in allowed
    )


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Host:
    """An entry of the allow-list: `name`, or its subdomains, with one scheme and port."""

    scheme: str
    name: str
    port: int
    subdomains: bool = False

    def matches(self, scheme: str, name: str, port: int) -> bool:
        """Return True if this entry allows a URL of these parts."""
        if (scheme, port) != (self.scheme, self.port) or not _NAME.fullmatch(name):
            return False
        return name.endswith(f".{self.name}") if self.subdomains else name == self.name


def parse_host(entry: str) -> Host:
    """Parse `[http://][*.]name[:port]`. Raises ValueError."""
    match = _ENTRY.fullmatch(entry.lower())
    if not match or int(match[4] or 0) > 65535:
        raise ValueError(
            f"{entry!r} is not of the form example.org, *.example.org, example.org:8443 or http://example.org"
        )
    scheme = match[1] or "https"
    return Host(scheme, match[3], int(match[4] or _DEFAULT_PORTS[scheme]), subdomains=bool(match[2]))


def is_listed(hosts: Sequence[Host], scheme: str, name: str, port: int | None) -> bool:
    """Return True if an entry allows a URL of these parts."""
    port = _DEFAULT_PORTS.get(scheme) if port is None else port
    return port is not None and any(host.matches(scheme, name, port) for host in hosts)


def is_public(address: str) -> bool:
    """Return True if this is an IP address on the public internet."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip not in _GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOT_PUBLIC)


def is_cross_site(site: str | None, origin: str | None, host: str) -> bool:
    """Return True if a browser's Sec-Fetch-Site or Origin names another site than the Host header."""
    if site is not None:
        return site not in ("same-origin", "none")
    if origin is None:  # sent by older browsers, and by pages without TLS that are not on loopback
        return False
    scheme, _, name = origin.lower().partition("://")
    port = f":{_DEFAULT_PORTS.get(scheme)}"  # a proxy may add it to the host; browsers leave it out
    return name.removesuffix(port) != host.lower().removesuffix(port)
