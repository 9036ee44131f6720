"""Bringing the ledger into line with a project as Label Studio has it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from backend.entities import JudgedAnnotation, Project, ReferenceAnnotation, References, Task
from backend.errors import (
    LabelConfigError,
    LabelStudioDenied,
    LabelStudioError,
    LabelStudioNotFound,
    LabelStudioRejected,
)
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.label_config import LabelConfig, parse_label_config
from backend.settings import Settings
from backend.store.store import Store
from backend.sync.policy import Choice, choose
from backend.sync.references import examine, needs_prediction
from backend.version import VERSION_PREFIX

log = logging.getLogger(__name__)

UNANNOTATED, ANNOTATED, REQUESTED = 0, -10, 10


def store_project(store: Store, project: int, found: Mapping[str, Any], version: str) -> Project:
    """Store what the API `found` of a project; its annotations are judged anew when the configuration changed.

    What the configuration holds that is not supported is told once, when it is first seen. A project that is new to
    the ledger starts under `version`. Returns the project as the ledger had it.

    Raises `LabelConfigError` where the configuration cannot be read.
    """
    if store.projects.add(project, str(found.get("created_at"))):
        store.annotations(project).set_references(version, None)
    known = store.projects.find(project)
    if known is None:
        raise LabelStudioNotFound(f"Project {project} was forgotten.")
    xml = str(found.get("label_config") or "")
    config = parse_label_config(xml)
    if xml != known.label_config:
        for warning in config.warnings:
            log.warning("Project %d: %s", project, warning)
        store.annotations(project).judge_again()
    store.projects.describe(project, str(found.get("title") or ""), xml)
    return known


def known_config(store: Store, project: int) -> LabelConfig | None:
    """The project's configuration as it was last read."""
    known = store.projects.find(project)
    if known is None or not known.label_config:
        return None
    try:
        return parse_label_config(known.label_config)
    except LabelConfigError:
        return None


def known_settings(store: Store, settings: Settings, project: int) -> Settings:
    """The settings with what the project's extra params set."""
    known = store.projects.find(project)
    return settings.for_project(known.extra_params)[0] if known is not None else settings


def read_tasks(store: Store, client: LabelStudio, project: int, config: LabelConfig) -> dict[int, int]:
    """List the project's tasks and judge the annotations that are new or changed since they were last read.

    Returns how many predictions each task has.
    """
    listed = _listed(store, client, project)
    tasks = [Task(project, int(t["id"]), t.get("data") or {}, bool(t.get("total_annotations")), "") for t in listed]
    gone = store.tasks(project).replace(tasks)
    if gone:
        log.info("Project %d: %d tasks were deleted.", project, gone)
    read_under = {task.id: task.annotations_read for task in store.tasks(project).all()}
    for found in listed:
        task = int(found["id"])
        # annotating a task renews its updated_at; the counts tell of deletions that do not
        state = f"{found.get('updated_at')} {found.get('total_annotations')} {found.get('cancelled_annotations')}"
        if read_under[task] == state:
            continue
        if found.get("total_annotations"):
            read_annotations(store, client, project, task, config, read_under=state)
        else:
            store.annotations(project).replace(task, [], state)
    return {int(found["id"]): int(found.get("total_predictions") or 0) for found in listed}


def _listed(store: Store, client: LabelStudio, project: int) -> list[dict[str, Any]]:
    """The project's tasks; one that we know is missing only when it is missing twice.

    Pages are counted anew with each request, so a deletion meanwhile moves a task from a page to come to one that was
    read.
    """
    found = {int(task["id"]): task for task in client.tasks(project)}
    if any(task.id not in found for task in store.tasks(project).all()):
        found |= {int(task["id"]): task for task in client.tasks(project)}
    return [found[number] for number in sorted(found)]


def read_annotations(
    store: Store, client: LabelStudio, project: int, task: int, config: LabelConfig, *, read_under: str = ""
) -> list[JudgedAnnotation]:
    """Judge one task's annotations as they are now."""
    try:
        annotations = client.annotations(task)
    except LabelStudioNotFound:
        annotations = []
    known = {c.annotation: c.key for c in store.annotations(project).judged(task) if c.usable}
    candidates = [_examined(client, one, config, known.get(int(one["id"]), "")) for one in annotations]
    store.annotations(project).replace(task, candidates, read_under)
    present = store.annotations(project).references()
    learned = {one.annotation: one.key for one in present.annotations} if present else {}
    # what is learned from may have gained what is not learned, which leaves the reference as it is
    _tell_left_out(store, project, [c for c in candidates if c.usable and learned.get(c.annotation) == c.key])
    return candidates


def resolve_references(
    store: Store, client: LabelStudio, project: int, config: LabelConfig, settings: Settings
) -> References | None:
    """What the policy chooses now, with its regions; the ledger's own where that is still so."""
    for _ in range(3):
        choice = choose(store.annotations(project).judged(), settings)
        if choice is None:
            _forget_left_out(store, project, frozenset())
            return None
        present = store.annotations(project).references()
        if present is not None and present.key == choice.key:
            return present
        known = {one.annotation: one for one in present.annotations} if present else {}
        annotations = _with_regions(store, client, project, config, choice, known)
        if annotations is not None:
            return References(choice.key, annotations, choice.shots)
    raise LabelStudioError(f"The annotations of project {project} keep changing; trying again later.")


def _with_regions(
    store: Store,
    client: LabelStudio,
    project: int,
    config: LabelConfig,
    choice: Choice,
    known: Mapping[int, ReferenceAnnotation],
) -> tuple[ReferenceAnnotation, ...] | None:
    """The chosen annotations; `None` where one was edited or deleted since it was judged, which it then is again."""
    found = []
    read = []
    for chosen in choice.candidates:
        one = known.get(chosen.annotation)
        if one is None or one.key != chosen.key:
            fresh = _fresh(client, chosen, config)
            if fresh is None or fresh.key != chosen.key:
                read_annotations(store, client, project, chosen.task, config)
                return None
            one = ReferenceAnnotation(project, fresh.key, fresh.annotation, fresh.task, fresh.regions)
            read.append(fresh)
        found.append(one)
    _forget_left_out(store, project, frozenset(one.annotation for one in found))
    _tell_left_out(store, project, read)
    return tuple(found)


def _forget_left_out(store: Store, project: int, chosen: frozenset[int]) -> None:
    """Tell no more of annotations that are not chosen (any more)."""
    topics = {f"annotation {number}" for number in chosen}
    for topic in store.projects.warnings(project):
        if topic.startswith("annotation ") and topic not in topics:
            store.projects.set_warnings(project, topic, [])


def _tell_left_out(store: Store, project: int, chosen: Iterable[JudgedAnnotation]) -> None:
    """Tell once what chosen annotations, just read, hold that is not learned."""
    for one in chosen:
        texts = [f"Annotation {one.annotation} on task {one.task}: {why}; it is left out." for why in one.left_out]
        for text in store.projects.set_warnings(project, f"annotation {one.annotation}", texts):
            log.warning("Project %d: %s", project, text)


def _fresh(client: LabelStudio, chosen: JudgedAnnotation, config: LabelConfig) -> JudgedAnnotation | None:
    try:
        return _examined(client, client.annotation(chosen.annotation), config, chosen.key)
    except LabelStudioNotFound:
        return None


def _examined(
    client: LabelStudio, annotation: Mapping[str, Any], config: LabelConfig, known_key: str
) -> JudgedAnnotation:
    """Judge an annotation, against the prediction that it was made from where that matters."""
    predicted = None
    if needs_prediction(annotation):
        with suppress(LabelStudioNotFound):
            predicted = client.prediction(int(annotation["parent_prediction"])).get("result") or []
    return examine(annotation, config, predicted, known_key)


def ensure_webhook(client: LabelStudio, project: int, backends: Iterable[Mapping[str, Any]]) -> None:
    """Register the webhook of each of our connections that has none.

    Label Studio makes it when a backend is connected, but says nothing where that failed. Events are only the fast
    way: without them news are found by looking.
    """
    connected = [b for b in backends if str(b.get("model_version")).startswith(VERSION_PREFIX)]
    ours = [str(b.get("url", "")).rstrip("/") for b in connected]
    try:
        there = {str(hook.get("url")) for hook in client.webhooks(project)}
        for url in ours:
            if f"{url}/webhook" not in there:
                client.add_webhook(project, f"{url}/webhook")
                log.info("Project %d: registered the missing webhook to %s/webhook.", project, url)
    except (LabelStudioRejected, LabelStudioDenied) as error:
        log.warning("Project %d: there is no webhook, so news are found by looking only. %s", project, error)


def unqueued_tasks(store: Store, project: int, version: str, references: References) -> list[Task]:
    """The tasks that have no job under the version, but the references' own."""
    jobs = store.jobs(project, version).all()
    return [task for task in store.tasks(project).all() if task.id not in references.tasks and task.id not in jobs]


def reopen_missing(
    store: Store, client: LabelStudio, project: int, version: str, counts: Mapping[int, int]
) -> list[int]:
    """Have predictions given again that were given to Label Studio and are not there any more; returns their tasks.

    `counts` says how many predictions each task has; only where a task has fewer than it had is looked closer.
    """
    before = store.tasks(project).predictions_read()
    delivered = [task for task, job in store.jobs(project, version).all().items() if job.delivery == "delivered"]
    if not any(counts.get(task, 0) < max(1, before.get(task, 0)) for task in delivered):
        return []
    there = client.tasks_with_prediction(project, version)
    missing = [task for task in delivered if task not in there]
    store.deliveries(project, version).reopen(missing)  # what /predict has taken up meanwhile is not given twice
    return missing


def queue_tasks(store: Store, project: int, version: str, references: References, limit: int | None = None) -> int:
    """Queue the tasks that have no job yet, those that a person annotated last; returns how many.

    With a `limit`, only so many that a person would meet first.
    """
    tasks = unqueued_tasks(store, project, version, references)[:limit]
    waiting = [task.id for task in tasks if not task.annotated]
    annotated = [task.id for task in tasks if task.annotated]
    jobs = store.jobs(project, version)
    return jobs.queue(waiting, priority=UNANNOTATED) + jobs.queue(annotated, priority=ANNOTATED)
