"""What is written to the pipe is what is read from it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from backend.labelstudio.regions import Brush, Polygon, Rectangle, Region, Slot
from backend.learning.candidates import KeptCandidate, Place
from backend.worker.messages import (
    EVENTS,
    BadReference,
    CorrectMask,
    DrawThumbnail,
    Example,
    Failed,
    Loaded,
    Message,
    ModelSpec,
    NotLoaded,
    Progress,
    Result,
    SegmentTask,
    Thumbnail,
    read_message,
    write_message,
)
from cavsam.scoring.experience import Correction, Experience

DRAWN = Region("tag", "image", ("cat", "Katze"), (64, 96), Brush(bytes(range(256))))
OUTLINED = Region("p", "second", ("dog",), (10, 20), Polygon(((0.5, 1.0), (9.25, 3.0), (4.0, 7.5))), "polygon", "names")
SLOT = Slot("tag", "image", "cat", "brush", "names")
TRIED = KeptCandidate(
    Place("tag", "image", "Köter"), "concat", 0.5, True, 1.0, {"a": 0.25}, False, False, 1.5, "8 mask"
)
MESSAGES: list[Message] = [
    ModelSpec("a.b:open", {"device": "cpu", "recipe": {"mode": "full"}}, "DEBUG", "a.b:Runner", "json"),
    SegmentTask("k", 3, (Example(7, (DRAWN, OUTLINED), {"image": "/a", "second": "/ü"}),), {"image": "/c"}),
    SegmentTask("k", 0, (), {}, Experience({"full": Correction(0.5, 1.0, {"a": 2.0}, {"a": 0.5})}, "full", 12)),
    CorrectMask(
        "/a", Slot("tag", "image", "cat", "brush", "names"), (DRAWN,), ((1.5, 2.0, True),), (Rectangle(1, 2, 3, 4, 90),)
    ),
    DrawThumbnail("/a"),
    DrawThumbnail("", "AAAA", (DRAWN, OUTLINED), "image", {"cat": "#ff0000", "dog": ""}),
    Thumbnail("AAAA"),
    Loaded(1.5, "cuda:0", 10**10),
    NotLoaded("There is no checkpoint."),
    Progress("encode", 1, 4),
    Result(
        ({"id": "r", "value": {"rle": [1, 2]}},), 0.25, 1.5, ("A hole is filled.",), True, ("No dog.",), gpu_bytes=5
    ),
    Result((), 0.0, 0.5, oddities=("It is tiny.",)),
    Result((), 0.0, 0.5, candidates=(TRIED, replace(TRIED, kind="full", chosen=True, shown=True))),
    Failed("It is no picture.", gpu_bytes=7),
    BadReference(9, "It is empty."),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message: Message):
    assert read_message(write_message(message)) == message


def test_each_kind_of_message_is_tried():
    assert {type(message) for message in MESSAGES} == set(EVENTS.values())


def test_the_pipe_carries_json():
    """Nothing that could run code when it is read."""
    for message in MESSAGES:
        assert isinstance(json.loads(write_message(message)), dict)
