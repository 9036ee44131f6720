"""The application for another WSGI server: `gunicorn --workers 1 --threads 16 backend._wsgi:app`.

`cavsam-backend serve` is the ordinary way; run as a program, as `label-studio-ml start backend` does, this is the same.
With another server, too, exactly one worker process may run, and nothing may be loaded before the fork (no
`--preload`): the service's threads and the model's process belong to the process that answers.
"""

from __future__ import annotations

import argparse
import atexit
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from backend.errors import SettingsError
from backend.server import configure_logging, serve
from backend.service import Service
from backend.settings import Settings
from backend.web.app import create_app


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve as the settings say; label-studio-ml passes these options on."""
    parser = argparse.ArgumentParser(description="CAV-SAM for Label Studio; see `cavsam-backend settings`.")
    parser.add_argument("-p", "--port", type=int)
    parser.add_argument("--host")
    parser.add_argument("--log-level", type=str.upper)
    parser.add_argument("--basic-auth-user")
    parser.add_argument("--basic-auth-pass", dest="basic_auth_password")
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    try:
        return serve(dataclasses.replace(Settings.from_environment(), **given))
    except SettingsError as error:
        print(f"cavsam-backend: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).resolve().parent))  # where modules would be found by the wrong names
    sys.exit(main())
else:
    settings = Settings.from_environment()
    configure_logging(settings)
    service = Service(settings)
    service.start()
    atexit.register(service.stop)
    app = create_app(settings, service)
    application = app
