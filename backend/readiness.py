"""Whether the backend can work now, and if not, why and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

from backend.service import Service

DEAD_THREAD = "The backend's {} has ended unexpectedly; the log says why. Start the backend again."
REBUILDING = (
    "The ledger was damaged. It is kept as {} in the data folder, and a new one is being filled from Label Studio; "
    "look after the disk."
)
LOADING = "The model is being loaded; tasks wait until it is there."


@dataclass(frozen=True)
class Problem:
    """One reason why nothing is predicted now: its subject as `doctor` names it, and the fact with its remedy."""

    subject: str
    message: str


def problems(service: Service) -> list[Problem]:
    """All that keeps the backend from working, what stands before all else first; empty if it can work.

    Only what is known already: neither Label Studio nor the store is asked, so the answer comes at once.
    """
    dead = service.dead_threads()
    activity, damaged = service.worker.activity, service.store.damaged_file
    model = LOADING if activity.state == "loading the model" else ""
    if activity.state == "no model":
        model = activity.error
    found = [
        ("backend", DEAD_THREAD.format(" and ".join(dead)) if dead else ""),
        *(("backend", thread.trouble) for thread in service.threads()),
        ("data folder", service.store.trouble),
        ("data folder", REBUILDING.format(damaged) if damaged is not None else ""),
        ("model", model),
        ("Label Studio", service.reachability.trouble),
    ]
    return [Problem(subject, message) for subject, message in found if message]
