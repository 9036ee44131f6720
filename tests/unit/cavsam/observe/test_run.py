"""What a run tells its callers, and what it keeps to itself if nobody asks."""

from __future__ import annotations

import pytest
import torch

from cavsam.instances import Objects
from cavsam.observe.run import Run
from cavsam.observe.trace import Trace
from cavsam.tracking import Prompt

OBJECTS = Objects((0, 0, 1), torch.zeros(1, 3, 4, 4, dtype=torch.bool))
"""Two objects of the first label, one of the second."""


def report(run: Run) -> None:
    """Everything that happens to one candidate."""
    run.candidate("concat", 2, OBJECTS)
    with run.step("track"):
        run.tracked(1, torch.tensor([1.0, 3.0, -2.0])[:, None, None].expand(3, 4, 4))
    run.tracked_backward(0, torch.tensor([False, True, False])[:, None, None].expand(3, 4, 4))
    run.proposed([Prompt(0, 1, box=(0, 0, 1, 1))], torch.ones(2, 4, 4, dtype=torch.bool))


def test_seconds_of_a_step_add_up_within_the_total() -> None:
    run = Run()
    for _ in range(2):
        with run.step("encode"):
            torch.ones(100, 100).sum()
    with run.step("track"):
        pass
    assert set(run.seconds) == {"encode", "track"}
    assert run.seconds["encode"] > 0
    assert sum(run.seconds.values()) <= run.total()


def test_a_run_that_nobody_watches_observes_nothing() -> None:
    run = Run()
    report(run)
    assert run.trace is None
    assert run.within("track") is None
    assert not run.is_cancelled()


def test_progress_is_told_of_steps_and_of_what_is_within() -> None:
    told: list[tuple[str, int, int]] = []
    run = Run(progress=lambda *step: told.append(step))
    with run.step("align"):
        within = run.within("align")
        assert within is not None
        within(2, 5)
    assert told == [("align", 0, 1), ("align", 2, 5), ("align", 1, 1)]


def test_a_step_that_fails_is_counted_and_its_error_is_not_the_callers() -> None:
    run = Run(progress=lambda *_: None)
    error = ValueError("too large")
    with pytest.raises(ValueError, match="too large"), run.step("track"):
        raise error
    assert "track" in run.seconds
    assert not run.raised(error)


def test_what_the_callback_raises_is_the_callers() -> None:
    error = ValueError("enough")

    def stop(*_: object) -> None:
        raise error

    run = Run(progress=stop)
    with pytest.raises(ValueError, match="enough"), run.step("track"):
        pass
    assert run.raised(error)
    assert not run.raised(ValueError("enough"))


def test_cancellation_is_asked_each_time() -> None:
    answers = iter([False, True])
    run = Run(cancelled=lambda: next(answers))
    assert [run.is_cancelled(), run.is_cancelled()] == [False, True]


def test_a_trace_knows_labels_where_the_run_is_told_of_objects() -> None:
    trace = Trace()
    run = Run(trace=trace)
    report(run)
    (candidate,) = trace.candidates
    assert (candidate.name, candidate.frames) == ("concat", 2)
    assert candidate.tracked[1][:, 0, 0].tolist() == [3, -2]
    assert candidate.backward[0][:, 0, 0].tolist() == [True, False]
    assert [(prompt.frame, prompt.label) for prompt in candidate.prompts] == [(0, 0)]
    assert [step.name for step in trace.steps] == ["track"]


def test_what_happens_outside_a_candidate_belongs_to_none() -> None:
    trace = Trace()
    run = Run(trace=trace)
    run.tracked(0, torch.zeros(3, 4, 4))
    report(run)
    run.tracked(5, torch.zeros(3, 4, 4))
    assert sorted(trace.candidates[0].tracked) == [1]
