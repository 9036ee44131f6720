"""Whether a port can be listened on, and who holds it if not."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from backend.errors import PortBusy

LISTENING = "0A"
"""State of a listening socket, as Linux writes it in /proc/net."""


def check_free(host: str, port: int) -> None:
    """Try to listen on a port for a moment; 0 stands for any free one.

    Raises:
        PortBusy: somebody else listens there, or the host is no address of this machine.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gunicorn does
        try:
            trial.bind(address)
            trial.listen(1)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise PortBusy(
                    f"Port {port} of {host} cannot be listened on ({error.strerror}); choose another --host or --port."
                ) from error
            raise PortBusy(
                f"Port {port} of {host} is in use{_by_whom(port)}; stop it or choose another --port (CAVSAM_PORT)."
            ) from error


def _by_whom(port: int) -> str:
    pid = holder(port)
    if pid is None:
        return ""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        name = ""
    return f" by process {pid}" + (f" ({name})" if name else "")


def holder(port: int) -> int | None:
    """Find the process that listens on a port; None if it cannot be known, as of other users' or without Linux."""
    sockets = _listening(port)
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            for link in folder.iterdir():
                if os.readlink(link) in sockets:
                    return int(folder.parent.name)
        except OSError:  # it ended meanwhile, or is not ours to look into
            continue
    return None


def _listening(port: int) -> set[str]:
    """The sockets that listen on a port, as links in /proc name them."""
    found = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found
