"""The command `cavsam-backend`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from backend.errors import BackendError
from backend.settings import Settings, settings_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.command == "settings":
            print(settings_table())
            return 0
        settings = Settings.from_environment(
            os.environ,
            host=options.host,
            port=options.port,
            model=options.model,
            data_dir=options.data_dir,
            device=options.device,
        )
        from backend.server import serve

        return serve(settings)
    except BackendError as error:
        print(f"cavsam-backend: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cavsam-backend", description="CAV-SAM as a machine learning backend of Label Studio."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser(
        "serve", help="answer Label Studio", description="Every option is also a setting; see the command `settings`."
    )
    serving.add_argument("--host", help="address to listen on (CAVSAM_HOST)")
    serving.add_argument("--port", type=int, help="port to listen on, 0 for a free one (CAVSAM_PORT)")
    serving.add_argument("--model", help="default, paper or nano (CAVSAM_MODEL)")
    serving.add_argument("--data-dir", help="folder of the ledger (CAVSAM_DATA_DIR)")
    serving.add_argument("--device", help="auto, cpu, cuda or mps (CAVSAM_DEVICE)")
    commands.add_parser("settings", help="print all settings as a table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
