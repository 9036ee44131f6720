from __future__ import annotations

import json
from typing import Any

import pytest

from backend.labelstudio.events import read_webhook
from backend.text import read_json


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (rb'{"a": "\ud800.com"}', {"a": "\\ud800.com"}),
        (rb'["\uDFFFx", 1, null, {"\ud800": true}]', ["\\udfffx", 1, None, {"\\ud800": True}]),
        ('["\ud800"]', ["\\ud800"]),
        (b'["\xed\xa0\x80"]', ["\ufffd\ufffd\ufffd"]),
        (rb'["\ud83d\ude00 \u00e9"]', ["\U0001f600 \u00e9"]),
        ('["\U0001f600"]', ["\U0001f600"]),
        (b"\xef\xbb\xbf[1.5]", [1.5]),
    ],
)
def test_every_string_can_be_encoded(raw: bytes | str, value: Any):
    found = read_json(raw)
    assert found == value
    assert json.loads(json.dumps(found, ensure_ascii=False).encode()) == found


@pytest.mark.parametrize("raw", [b"", b"{", b"[" * 100_000, "[" * 100_000])
def test_what_is_no_json_is_a_value_error(raw: bytes | str):
    with pytest.raises(ValueError, match=r".+"):
        read_json(raw)


def test_an_events_texts_can_be_stored():
    assert read_webhook(rb'{"action": "\ud800"}') == {"action": "\\ud800"}
