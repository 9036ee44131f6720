"""Every retry, as a value."""

from __future__ import annotations

from itertools import pairwise

import pytest

from backend.entities import ReferenceAnnotation
from backend.errors import (
    BackendError,
    ImageNotKept,
    ImageServerFault,
    ImageUnavailable,
    LabelStudioDenied,
    LabelStudioUnreachable,
)
from backend.worker.decisions import (
    IMAGE_DELAYS,
    MODEL_DELAYS,
    PROCESS_ATTEMPTS,
    Away,
    Cancelled,
    Failure,
    GiveUp,
    ModelNotLoaded,
    NotListed,
    ProcessDied,
    ProcessStopped,
    ReferenceChanged,
    ReferenceFault,
    TaskFault,
    TryAgain,
    decide,
    reference_image_failure,
    task_image_failure,
)

REFERENCE = ReferenceAnnotation(1, "k", 9, 1, ())
OFTEN = 1000


@pytest.mark.parametrize(
    "failure",
    [
        Away("Label Studio is away."),
        ReferenceFault("It is empty.", REFERENCE),
        ReferenceFault("Its image is late.", REFERENCE, passes=True),
        ProcessStopped(),
        ModelNotLoaded("There is no checkpoint."),
        ReferenceChanged(),
        NotListed(),
    ],
)
def test_what_a_task_cannot_help_never_costs_it_a_try(failure: Failure):
    for attempts in (1, 2, OFTEN):
        decision = decide(failure, attempts)
        assert isinstance(decision, TryAgain)
        assert not decision.counts


@pytest.mark.parametrize("failure", [TaskFault("It has none of the images."), Cancelled()])
def test_what_will_not_pass_is_given_up_at_once(failure: Failure):
    assert isinstance(decide(failure, 1), GiveUp)


def test_an_image_that_is_late_is_waited_for_longer_each_time_and_then_given_up():
    late = TaskFault("The host does not answer.", passes=True)
    decisions = [decide(late, attempts) for attempts in range(1, len(IMAGE_DELAYS) + 2)]
    assert decisions.pop() == GiveUp("The host does not answer.")
    delays = [decision.delay for decision in decisions if isinstance(decision, TryAgain)]
    assert len(delays) == len(decisions)
    assert all(0 < sooner < later for sooner, later in pairwise(delays))
    assert {decision.error for decision in decisions} == {"The host does not answer."}


def test_a_model_process_that_dies_again_on_the_same_task_costs_the_task():
    decisions = [decide(ProcessDied("It was killed."), attempts) for attempts in range(1, PROCESS_ATTEMPTS + 1)]
    last = decisions.pop()
    assert decisions == [TryAgain("It was killed.", counts=True)] * (PROCESS_ATTEMPTS - 1)
    assert isinstance(last, GiveUp)
    assert "It was killed." in last.error
    assert f"{PROCESS_ATTEMPTS} times" in last.error


def test_without_a_model_all_jobs_wait_longer_each_time_up_to_a_bound():
    pauses = [decide(ModelNotLoaded("No checkpoint."), attempts) for attempts in (*range(1, len(MODEL_DELAYS)), OFTEN)]
    seconds = [decision.pause for decision in pauses if isinstance(decision, TryAgain)]
    assert seconds == sorted(set(seconds))
    assert seconds[-1] == max(MODEL_DELAYS)


def test_only_a_missing_model_keeps_other_jobs_waiting():
    failures: list[Failure] = [
        Away("a"),
        ProcessDied("b"),
        TaskFault("c", passes=True),
        NotListed(),
        ReferenceFault("d", REFERENCE),
    ]
    decisions = [decide(failure, 1) for failure in failures]
    assert [decision.pause for decision in decisions if isinstance(decision, TryAgain)] == [0.0] * len(failures)


@pytest.mark.parametrize(
    ("error", "for_task", "for_reference"),
    [
        (ImageUnavailable("e"), TaskFault("e", passes=True), ReferenceFault("e", REFERENCE, passes=True)),
        (ImageNotKept("e"), Away("e"), ReferenceFault("e", REFERENCE, passes=True)),
        (ImageServerFault("e"), Away("e"), ReferenceFault("e", REFERENCE, passes=True)),
        (LabelStudioDenied("e"), Away("e"), Away("e")),
        (LabelStudioUnreachable("e"), Away("e"), Away("e")),
    ],
)
def test_an_image_that_is_missing_for_now(error: BackendError, for_task: Failure, for_reference: Failure):
    assert task_image_failure(error) == for_task
    assert reference_image_failure(error, REFERENCE) == for_reference


def test_an_image_that_is_missing_for_good_is_the_fault_of_whose_it_is():
    error = ImageUnavailable("There is no such file.", permanent=True)
    assert task_image_failure(error) == TaskFault("There is no such file.")
    failure = reference_image_failure(error, REFERENCE)
    assert isinstance(failure, ReferenceFault)
    assert (failure.reference, failure.passes) == (REFERENCE, False)
    assert "There is no such file." in failure.message
