"""Each project's turn: what is due for it is done, and trouble puts it off."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from backend.clients import Clients
from backend.entities import Refusal
from backend.errors import BackendError, LabelStudioError, LabelStudioNotFound, LedgerError
from backend.labelstudio.events import Event
from backend.settings import Settings
from backend.store.store import Store
from backend.sync.project_sync import ProjectSync
from backend.sync.schedule import CONFIRM_PAUSE, Schedule, is_due, sooner

log = logging.getLogger(__name__)

LONGEST_PAUSE = 5.0
"""Seconds without anything due after which it is looked again whether something is, or the store was replaced."""


class Turns:
    """The schedules and syncs of all projects, for one thread; others may read `counts` and call `is_listing`."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        clients: Clients,
        base_version: str,
        clock: Callable[[], float],
        changed: Callable[[], None],
    ):
        """Take what is worked with; see `Coordinator`.

        `changed` is called when there is something new for the worker, or for whoever waits.
        """
        self._settings, self._store, self._clients = settings, store, clients
        self._base_version, self._clock, self._changed = base_version, clock, changed
        self._schedules: dict[int, Schedule] = {}
        self._syncs: dict[int, ProjectSync] = {}
        self.extra_params: dict[int, str] = {}
        """Project -> JSON text of what its connection was given, as the last /setup said."""
        self.counts: Counter[int] = Counter()
        """Project -> full syncs that have ended, failed ones included."""

    def is_listing(self, project: int) -> bool:
        """Whether waiting for a project would be waiting for ourselves; see `ProjectSync.is_listing`."""
        sync = self._syncs.get(project)
        return sync is not None and sync.is_listing

    def seconds_to_next(self) -> float:
        """How long until something is due."""
        now = self._clock()
        times = [moment for schedule in self._schedules.values() for moment in schedule.due_times()]
        return max(0.0, min([*times, now + LONGEST_PAUSE]) - now)

    def refuse(self, refusal: Refusal) -> None:
        """Have another reference chosen."""
        self._store.annotations(refusal.project).refuse(refusal, self._base_version)
        self.take(Event(refusal.project))

    def follow_models(self, base_version: str) -> None:
        """Have every known project synchronised under another version."""
        self._base_version = base_version
        self._syncs.clear()
        for project in self._store.projects.all():
            self.take(Event(project.id, "train"))

    def take(self, event: Event) -> None:
        """Have done what an event asks for."""
        schedule = self._schedules.setdefault(event.project, Schedule())
        schedule.take(event, self._clock(), self._settings.push_interval)

    def begin_anew(self) -> None:
        """Have every project read anew that was worked on: the store is an empty one in place of a damaged one."""
        projects = set(self._schedules) | set(self._clients.granted())
        self._syncs.clear()
        self._schedules = {project: Schedule(sync_at=self._clock()) for project in projects}

    def _sync_of(self, project: int) -> ProjectSync:
        """The project's sync, a new one if Label Studio is reached in another way now."""
        client = self._clients.of(project)
        known = self._syncs.get(project)
        if known is None or known.client is not client:
            known = self._syncs[project] = ProjectSync(
                self._store,
                client,
                project,
                self._settings,
                self._base_version,
                clock=self._clock,
                changed=self._changed,
            )
        return known

    def attend(self, is_stopping: Callable[[], bool]) -> None:
        """Do what is due for each project.

        Raises:
            LedgerError: the ledger cannot be read or written; what is due stays due.
        """
        for project in list(self._schedules):
            if not is_stopping():
                self._attend_one(project)

    def _attend_one(self, project: int) -> None:
        """Do what is due for one project; trouble with Label Studio puts it off."""
        schedule = self._schedules[project]
        if not any(is_due(moment, self._clock()) for moment in schedule.due_times()):
            return
        try:
            self._do_due(self._sync_of(project), schedule)
        except LabelStudioNotFound as error:
            if not self._is_gone(project):
                schedule.gone.clear()
                self._put_off(project, str(error))
            elif self._store.projects.find(project) is None or schedule.is_gone_for_good(self._clock()):
                self._drop(project, str(error))
            else:
                self._put_off(project, f"{error} The project is forgotten if that stays so for ten minutes.")
        except LedgerError as error:
            self._put_off(project, str(error))
            raise
        except BackendError as error:
            self._put_off(project, str(error))
        except Exception as error:
            log.exception("Project %d: the coordinator failed.", project)
            self._put_off(project, f"The backend failed ({type(error).__name__}: {error}).")
        except BaseException:
            schedule.put_off(self._clock())  # the others go on first when the thread is begun again
            raise
        else:
            schedule.failures = 0
            schedule.gone.clear()

    def _do_due(self, sync: ProjectSync, schedule: Schedule) -> None:
        """Do what is due, in the order in which one brings about the next."""
        if is_due(schedule.sync_at, self._clock()):
            self._sync(sync, schedule)
        for task, touched in list(schedule.touched.items()):
            if is_due(touched.at, self._clock()):
                self._read_task(sync, schedule, task)
        if is_due(schedule.choose_at, self._clock()):
            schedule.plan(sync.follow_reference(at_once=schedule.at_once), self._clock())
        if is_due(schedule.confirm_at, self._clock()):
            self._confirm(sync, schedule)
        if is_due(schedule.push_at, self._clock()):
            self._push(sync, schedule)

    def _sync(self, sync: ProjectSync, schedule: Schedule) -> None:
        started = self._clock()
        schedule.sync_at = None
        before = self._store.projects.find(sync.project)
        due = sync.run(
            at_once=schedule.at_once,
            extra_params=self.extra_params.get(sync.project),
            check_webhook=schedule.doubtful,
        )
        self._clients.keep(sync.project)
        schedule.plan(due, self._clock())
        schedule.was_synced(started, self._clock(), self._settings.sync_interval)
        self.counts[sync.project] += 1
        if before is not None and before.error:
            log.info("Project %d: Label Studio answers again.", sync.project)
        self._changed()

    def _read_task(self, sync: ProjectSync, schedule: Schedule, task: int) -> None:
        """Read a task that an event named; one that is not known yet takes a full sync."""
        if schedule.synced_at is None or not sync.knows(task):
            del schedule.touched[task]
            schedule.sync_at = self._clock()
            return
        missing = sync.read_task(task, schedule.touched[task].expected)
        schedule.task_was_read(task, missing, self._clock())
        schedule.plan(sync.follow_reference(at_once=schedule.at_once), self._clock())

    def _confirm(self, sync: ProjectSync, schedule: Schedule) -> None:
        schedule.confirm_at = None
        delivery = sync.delivery()
        delivery.confirm()
        if delivery.is_unconfirmed:
            schedule.confirm_at = self._clock() + CONFIRM_PAUSE
        schedule.push_at = sooner(schedule.push_at, self._clock())

    def _push(self, sync: ProjectSync, schedule: Schedule) -> None:
        schedule.push_at = None
        if sync.delivery().run():
            schedule.push_at = self._clock() + max(self._settings.push_interval, 0.05)
        self._changed()

    # trouble

    def _is_gone(self, project: int) -> bool:
        """Whether it is the project that was not found, and not something in it."""
        try:
            self._clients.of(project).project(project)
        except LabelStudioNotFound:
            return True
        except LabelStudioError:
            return False
        return False

    def _drop(self, project: int, error: str) -> None:
        """Forget a project that is gone, or that the key may not see."""
        if self._store.projects.find(project) is not None:
            log.warning("Project %d is forgotten: %s", project, error)
            self._store.projects.forget(project)
        del self._schedules[project]
        self._syncs.pop(project, None)
        self.counts[project] += 1
        self._changed()

    def _put_off(self, project: int, error: str) -> None:
        schedule = self._schedules[project]
        first = schedule.failures == 0
        schedule.put_off(self._clock())
        self.counts[project] += 1
        self._changed()
        # last, for the ledger itself may be the trouble
        known = self._store.projects.find(project)
        if first or (known is not None and known.error != error):
            log.warning("Project %d: %s", project, error)
        self._store.projects.set_error(project, error)
