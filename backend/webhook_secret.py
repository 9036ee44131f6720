"""The secret by which Label Studio's events are distinguished from those of others.

Label Studio puts it as a header on each event of the webhook that it made for us, once we have asked for that
(`sync/connection.py`). It lies in the data folder and is made at the first start, unless a setting gives one.
"""

from __future__ import annotations

import hmac
import os
import secrets
from dataclasses import replace
from pathlib import Path

from backend.errors import BackendError
from backend.settings import Settings

HEADER = "X-CavSam-Webhook-Secret"
FILE = "webhook-secret"


def with_webhook_secret(settings: Settings) -> Settings:
    """The same settings with a secret: the one that they name, else the data folder's, which may be new.

    Raises:
        BackendError: the data folder cannot be read or written.
    """
    if settings.webhook_secret:
        return settings
    path = settings.data_dir / FILE
    try:
        secret = read_webhook_secret(settings) or _made(path)
    except OSError as error:
        raise BackendError(
            f"The file {path} cannot be read or written ({error.strerror}); set CAVSAM_DATA_DIR to a folder of the "
            "backend's own, or CAVSAM_WEBHOOK_SECRET."
        ) from error
    return replace(settings, webhook_secret=secret)


def read_webhook_secret(settings: Settings) -> str:
    """The secret that a backend with these settings has; empty before its first start. Raises `OSError`."""
    if settings.webhook_secret:
        return settings.webhook_secret
    try:
        return (settings.data_dir / FILE).read_bytes().decode("ascii", "ignore").strip()
    except FileNotFoundError:
        return ""


def is_webhook_secret(given: str, settings: Settings) -> bool:
    """Whether a header's value is the secret; takes as long whatever is wrong with it."""
    secret = settings.webhook_secret
    return bool(secret) and hmac.compare_digest(given.encode(), secret.encode())


def _made(path: Path) -> str:
    """A new secret, in a file that is there or is whole."""
    secret = secrets.token_urlsafe(32)
    part = path.with_name(f"{FILE}.part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secret + "\n")
    part.replace(path)
    return secret
