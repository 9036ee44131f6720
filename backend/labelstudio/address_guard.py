"""Label Studio's own guard against private addresses, by which it may refuse to connect this backend."""

from __future__ import annotations

import ipaddress
import socket

FIRST_RELEASE = (1, 23, 1)
SWITCHES = (
    "Since 1.23.1 Label Studio answers 403 when a backend on a private address is connected, unless it is started with "
    "LABEL_STUDIO_ML_BLOCK_LOCAL_IP=false and, for the webhooks, LABEL_STUDIO_SSRF_PROTECTION_ENABLED=false. Its users "
    "can then make it call addresses inside your network, so do this only where you trust them."
)


def has_guard(release: str) -> bool:
    """Tell whether a release of Label Studio, such as "1.23.2", has the guard."""
    return tuple(int(part) for part in release.split(".")[:3] if part.isdigit()) >= FIRST_RELEASE


def is_private(host: str) -> bool:
    """Tell whether a host name or address leads into a private network; False for a name that is not known."""
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return any(not ipaddress.ip_address(str(address).partition("%")[0]).is_global for address in addresses)


def listens_privately(host: str) -> bool:
    """Tell whether who listens on `host` is reached at a private address; a wildcard means this machine's own name."""
    return is_private(socket.gethostname() if host in ("0.0.0.0", "::") else host)
