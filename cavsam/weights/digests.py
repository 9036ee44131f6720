"""Digests of files by their content, computed once and kept beside the files; free of torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from cavsam.errors import ModelError

log = logging.getLogger(__name__)

KEPT = ".cavsam-digests.json"
"""Name of the file, in the folder of the files it speaks of: name -> size, moment of the last change, digest."""

KEPT_FROM = 32 << 20
"""Bytes from which a file's digest is kept: a smaller one is read again in a moment."""

_BLOB = re.compile("[0-9a-f]{64}")


def content_digest(file: Path) -> str:
    """Compute the SHA-256 of a file, 64 hex digits.

    Large files are read once: their digest is kept beside them, if their folder can be written, for as long as their
    size and the moment of their last change stay. One in the hub's cache is not read at all: it is a link to a blob
    that the hub named by this digest.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        blob = file.resolve(strict=True)
        if blob.parent.name == "blobs" and _BLOB.fullmatch(blob.name):
            return blob.name
        status = file.stat()
        state = [status.st_size, status.st_mtime_ns]
        if status.st_size < KEPT_FROM:
            return _sha256(file)
        kept = _read_kept(file.parent)
        if kept.get(file.name, [])[:2] != state:
            log.info("Computing the digest of %s; it is kept for the next start.", file)
            kept = {**kept, file.name: [*state, _sha256(file)]}
            _keep(kept, file.parent)
        return str(kept[file.name][2])
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror or error}); make it readable.") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_kept(folder: Path) -> dict[str, list[Any]]:
    """Read the digests kept in a folder; what is not as we wrote it is left out."""
    try:
        held = json.loads((folder / KEPT).read_text())
        return {
            name: entry
            for name, entry in held.items()
            if isinstance(entry, list) and len(entry) == 3 and _BLOB.fullmatch(str(entry[2]))
        }
    except (OSError, ValueError, AttributeError):
        return {}


def _keep(entries: dict[str, list[Any]], folder: Path) -> None:
    """Write the digests of a folder's files; a folder that cannot be written goes without."""
    partial = folder / f"{KEPT}.{os.getpid()}"
    try:
        partial.write_text(json.dumps(entries, indent=1) + "\n")
        os.replace(partial, folder / KEPT)
    except OSError as error:
        log.info("%s cannot be written (%s); digests there are computed at every start.", folder, error.strerror)
        with contextlib.suppress(OSError):
            partial.unlink()
