"""Threads whose work fails, with a clock that only their pauses move."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from backend.supervision import PAUSES, WINDOW, LastingThread
from tests.support.fake_client import FakeClock


class Absurd(BaseException):
    """What no `except Exception` sees."""


class Stopping(threading.Event):
    """An event that nobody waits for in earnest."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock
        self.waited: list[float | None] = []
        self.at_wait: Callable[[], object] = lambda: None

    def wait(self, timeout: float | None = None) -> bool:
        self.at_wait()
        self.waited.append(timeout)
        self.clock.advance(timeout or 0.0)
        return self.is_set()


class Scene:
    """A thread whose work is a list of steps; after the last it is told to stop."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.stopping = Stopping(self.clock)
        self.steps: Iterator[BaseException | Callable[[], None]] = iter(())
        self.recovered = 0
        self.recovery_fails = False
        self.last_words: list[str] = []
        self.thread = LastingThread(
            "juggler",
            self.work,
            self.stopping,
            recover=self.recover,
            give_up=self.last_words.append,
            clock=self.clock,
        )

    def work(self) -> None:
        step = next(self.steps, None)
        if isinstance(step, BaseException):
            raise step
        if step is None:
            self.stopping.set()
        else:
            step()

    def recover(self) -> None:
        self.recovered += 1
        if self.recovery_fails:
            raise OSError("nothing can be put right")

    def run(self, *steps: BaseException | Callable[[], None]) -> None:
        self.steps = iter(steps)
        self.thread.start()
        self.thread.join(30)
        assert not self.thread.is_alive


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.mark.parametrize("failure", [RuntimeError("x"), MemoryError("x"), SystemExit("x"), Absurd("x")])
def test_work_that_fails_is_logged_put_right_and_begun_again_after_a_pause(
    scene: Scene, failure: BaseException, caplog: pytest.LogCaptureFixture
):
    scene.run(failure)
    assert scene.last_words == []
    assert (scene.stopping.waited, scene.recovered) == ([PAUSES[0]], 1)
    assert "The juggler failed." in caplog.text
    assert "Traceback" in caplog.text
    assert type(failure).__name__ in caplog.text


def test_work_that_keeps_failing_has_its_pauses_and_then_the_process_is_given_up(scene: Scene):
    scene.run(*[Absurd("once more")] * (len(PAUSES) + 1))
    assert scene.stopping.waited == list(PAUSES)
    (sentence,) = scene.last_words
    assert "juggler" in sentence
    assert "Absurd: once more" in sentence


def test_what_failed_long_ago_counts_no_more(scene: Scene):
    def go_well_for_long() -> None:
        scene.clock.advance(WINDOW)
        raise Absurd("again")

    scene.run(*[Absurd("first")] * len(PAUSES), go_well_for_long, *[Absurd("later")] * (len(PAUSES) - 1))
    assert scene.last_words == []
    assert scene.stopping.waited == [*PAUSES, *PAUSES]


def test_a_recovery_that_fails_counts_as_a_failure_of_the_work(scene: Scene):
    scene.recovery_fails = True
    scene.run(Absurd("x"))
    assert scene.recovered == len(PAUSES)
    assert len(scene.last_words) == 1


def test_work_that_returns_before_its_time_is_begun_again(scene: Scene, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.ERROR)
    scene.run(lambda: None)
    assert scene.stopping.waited == [PAUSES[0]]
    assert "juggler" in caplog.text


def test_trouble_is_told_during_the_pause_and_not_after(scene: Scene):
    told = []
    scene.stopping.at_wait = lambda: told.append(scene.thread.trouble)
    scene.run(Absurd("a stumble"), lambda: told.append(scene.thread.trouble))
    assert "juggler failed by Absurd: a stumble" in told[0]
    assert told[1] == ""
