"""Which addresses images are fetched from: public ones, and those inside our network that a setting names.

Whoever may import tasks chooses the addresses of images, and a redirect chooses the next one. A name is resolved once
for each connection, what it resolves to is checked, and the connection goes to the address that was checked: a name
that leads elsewhere the next moment (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util import Retry

from backend.errors import ImageUnavailable
from backend.text import whole

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

HOST_NAME = re.compile(r"[\w.-]+")
EVERYTHING = "*"
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class PrivateHosts:
    """The names and networks inside our own network that images may come from."""

    names: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()
    everything: bool = False

    @classmethod
    def parse(cls, text: str) -> PrivateHosts:
        """Read a comma-separated list of host names, addresses and networks, or `*` for all but link-local ones.

        Raises:
            ValueError: an entry is none of these; the message is the entry.
        """
        names: set[str] = set()
        networks: list[Network] = []
        entries = {entry.strip() for entry in text.split(",")} - {""}
        for entry in sorted(entries - {EVERYTHING}):
            try:
                networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                if not HOST_NAME.fullmatch(entry) or not re.search("[A-Za-z]", entry):
                    raise ValueError(entry) from None
                names.add(_plain(entry))
        return cls(frozenset(names), tuple(networks), EVERYTHING in entries)

    def with_names(self, *names: str) -> PrivateHosts:
        """These and some more names."""
        return PrivateHosts(self.names | {_plain(name) for name in names}, self.networks, self.everything)

    def allow(self, name: str, address: str) -> bool:
        """Tell whether an image may come from an `address` (IPv4 or IPv6) that a host `name` resolved to."""
        if _plain(name) in self.names:
            return True
        number = _carried(ipaddress.ip_address(address.partition("%")[0]))
        if any(number in network for network in self.networks):
            return True
        if number.is_global and not number.is_multicast:
            return True
        return self.everything and not number.is_link_local  # where clouds keep a machine's keys


class GuardedAdapter(HTTPAdapter):
    """Connections of `requests` to allowed addresses only; others raise `ImageUnavailable`.

    Calls that go through a proxy of the environment (`HTTP_PROXY`) are the proxy's to refuse.
    """

    def __init__(self, hosts: PrivateHosts, retry: Retry | None):
        self._hosts = hosts
        super().__init__(max_retries=retry if retry is not None else 0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Have the pools make guarded connections."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _guarded_pools(self._hosts)


def resolve(host: str, port: int, hosts: PrivateHosts) -> list[str]:
    """The addresses of a host that images may come from.

    Raises:
        ImageUnavailable: all of its addresses are inside our network, and the setting does not name it.
        socket.gaierror: there is no such host.
    """
    found = list(dict.fromkeys(str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
    allowed = [address for address in found if hosts.allow(host, address)]
    if not allowed:
        raise ImageUnavailable(
            f"The image's host {whole(host[:200])} is inside the backend's own network ({', '.join(found[:3])}), where "
            "images are not fetched; if they are kept there, add it to CAVSAM_PRIVATE_IMAGE_HOSTS.",
            permanent=True,
        )
    return allowed


def _guarded_pools(hosts: PrivateHosts) -> dict[str, type[HTTPConnectionPool]]:
    """urllib3's pools for each scheme, whose connections resolve, check and connect by the same address."""

    class Guarded(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            name = self._dns_host
            try:
                addresses = resolve(name, self.port, hosts)
            except (socket.gaierror, UnicodeError) as error:
                failure = error if isinstance(error, socket.gaierror) else socket.gaierror(str(error))
                raise NameResolutionError(self.host, self, failure) from error
            try:
                return self._connect_to_one(addresses)
            finally:
                self._dns_host = name  # what the Host header and the certificate are about

        def _connect_to_one(self, addresses: Iterable[str]) -> socket.socket:
            *others, last = addresses
            for address in others:
                self._dns_host = address
                try:
                    return super()._new_conn()
                except (NewConnectionError, ConnectTimeoutError):
                    continue
            self._dns_host = last
            return super()._new_conn()

    class GuardedTLS(Guarded, HTTPSConnection):
        pass

    class Plain(HTTPConnectionPool):
        ConnectionCls = Guarded

    class Encrypted(HTTPSConnectionPool):
        ConnectionCls = GuardedTLS

    return {"http": Plain, "https": Encrypted}


def _carried(address: Address) -> Address:
    """The IPv4 address that an IPv6 one leads to, if it is of a kind that does."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _plain(name: str) -> str:
    return name.lower().rstrip(".")
