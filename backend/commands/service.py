"""`cavsam-backend service`: a systemd unit that runs the backend as it is installed here."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path

UNIT = """\
# Save as /etc/systemd/system/cavsam-backend.service, then:
#   systemctl daemon-reload && systemctl enable --now cavsam-backend
[Unit]
Description=CAV-SAM, a machine learning backend of Label Studio
After=network-online.target
Wants=network-online.target

[Service]
User={user}
WorkingDirectory={folder}
# the settings, one NAME=value a line; readable by this user only, for it holds the key
EnvironmentFile={environment}
Environment=OMP_WAIT_POLICY=PASSIVE
ExecStart={program} serve
# open requests have eight seconds to end, then the models' processes go
TimeoutStopSec=30
Restart=always
RestartSec=10
# status 2: a setting is wrong or the port is taken, which starting again does not mend
RestartPreventExitStatus=2
NoNewPrivileges=yes
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
"""


def unit(folder: Path, program: Path | None = None) -> str:
    """Write the unit for this user.

    Args:
        folder: where the backend works, and looks for its settings in `.env`.
        program: the command; the one that lies beside the running Python when None.
    """
    program = program or Path(sys.executable).with_name("cavsam-backend")
    places = {"folder": folder, "environment": folder / ".env", "program": program}
    return UNIT.format(user=getpass.getuser(), **{name: _escaped(path) for name, path in places.items()})


def _escaped(path: Path) -> str:
    """A path as systemd reads it: `%` begins a specifier, and quotes hold a space together."""
    text = str(path.absolute()).replace("%", "%%")
    return f'"{text}"' if " " in text else text
