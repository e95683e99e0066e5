"""Where the service may go for an image: to the hosts that are listed, at public addresses."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

_DEFAULT_PORTS = {"https": 443, "http": 80}
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_ENTRY = re.compile(rf"(?:(https?)://)?(\*\.(?={_LABEL}\.))?({_NAME.pattern})(?::([1-9][0-9]{{0,4}}))?")

# Global by the registries that `ipaddress` follows, and still not somebody's web server.
_NOT_FOR_US = [
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's metadata and DNS, inside each virtual machine's own host
        "192.0.0.0/24",  # protocol assignments: the nearest NAT device answers at two of them
        "192.88.99.0/24",  # 6to4 relays
        "2002::/16",  # 6to4: an IPv4 address of anybody's choice in it
        "3fff::/20",  # documentation, since RFC 9637
    )
]
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # not in it: mapped and compatible IPv4, local, multicast
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # all of IPv4, where a network has IPv6 alone


@dataclass(frozen=True, slots=True)
class Host:
    """One entry of the allow-list: `name`, or all names below it, at one port by one scheme."""

    scheme: str
    name: str
    port: int
    below: bool = False

    def takes(self, scheme: str, name: str, port: int) -> bool:
        """Whether a URL of these parts is one of this entry's."""
        if (scheme, port) != (self.scheme, self.port) or not _NAME.fullmatch(name):
            return False
        return name.endswith(f".{self.name}") if self.below else name == self.name


def parse_host(entry: str) -> Host:
    """`[http://][*.]name[:port]`. Raises ValueError."""
    found = _ENTRY.fullmatch(entry.lower())
    if not found or int(found[4] or 0) > 65535:
        raise ValueError(
            f"{entry!r} is not example.org, *.example.org, example.org:8443 or http://example.org"
        )
    scheme = found[1] or "https"
    return Host(scheme, found[3], int(found[4] or _DEFAULT_PORTS[scheme]), below=bool(found[2]))


def is_listed(hosts: Sequence[Host], scheme: str, name: str, port: int | None) -> bool:
    """Whether an image may be fetched from there, as far as the parts of its URL say where that is."""
    port = _DEFAULT_PORTS.get(scheme) if port is None else port
    return port is not None and any(host.takes(scheme, name, port) for host in hosts)


def is_public(address: str) -> bool:
    """Whether it is on the public internet. What is no address at all is not."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip not in _GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOT_FOR_US)
