"""Text from outside: JSON whose strings can be stored, logged and sent on."""

from __future__ import annotations

import json
import re
from typing import Any

SURROGATE = re.compile("[\ud800-\udfff]")
ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(raw: bytes | str) -> Any:
    r"""Read JSON in UTF-8 whose strings hold whole characters only.

    Half of a surrogate pair is legal in JSON, and no encoding takes it: neither the store's nor a socket's. It stands
    in the strings as its escape, such as `\ud800`, and bytes that are not UTF-8 as the replacement character.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    text = raw.decode("utf-8-sig", "replace") if isinstance(raw, bytes) else raw
    try:
        value = json.loads(text)
        # pairs are whole characters by now, and most answers hold no escapes of either kind
        return _whole(value) if ESCAPED_SURROGATE.search(text) or SURROGATE.search(text) else value
    except RecursionError as error:
        raise ValueError("The JSON is nested too deeply.") from error


def whole(text: str) -> str:
    """Escape the lone surrogates of a text."""
    return text.encode("utf-8", "backslashreplace").decode() if SURROGATE.search(text) else text


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, list):
        return [_whole(one) for one in value]
    if isinstance(value, dict):
        return {whole(name): _whole(one) for name, one in value.items()}
    return value
