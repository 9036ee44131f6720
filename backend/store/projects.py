"""Projects, and what people want of them and are told about them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable

from backend.entities import ALL_PROJECTS, Project
from backend.labelstudio.label_config import LabelConfig
from backend.labelstudio.project_keys import SPAN
from backend.settings import Settings
from backend.store.database import Database, Transaction


class Projects:
    """All projects of the ledger."""

    def __init__(self, database: Database):
        self._db = database

    def add(self, project: int, uid: str) -> bool:
        """Remember a project; returns whether it was new.

        A known number with another `uid` is another project (Label Studio was set up afresh), so all that was
        remembered under that number is forgotten.
        """
        with self._db.transaction() as db:
            known = db.row("project_uid", project)
            if known is not None and known["uid"] == uid:
                return False
            if known is not None:
                _forget(db, project)
            db.change("add_project", project, uid)
            return True

    def forget(self, project: int) -> None:
        """Drop a project and all that belongs to it."""
        with self._db.transaction() as db:
            _forget(db, project)
            db.change("forget_value", f"grant:{project}")

    def all(self) -> list[Project]:
        """All known projects by number."""
        return [_project(row) for row in self._db.rows("projects")]

    def numbers(self) -> list[int]:
        """The numbers of all known projects."""
        return [row["id"] for row in self._db.rows("project_numbers")]

    def is_known(self, project: int) -> bool:
        """Whether the ledger has a project."""
        return bool(self._db.rows("project_uid", project))

    def of_number(self, number: int) -> dict[int, str]:
        """The projects that some Label Studio counts as `number`: key -> moment of creation."""
        return {row["id"]: row["uid"] for row in self._db.rows("projects_of_number", SPAN, number)}

    def find(self, project: int) -> Project | None:
        """One project, if it is known."""
        rows = self._db.rows("project", project)
        return _project(rows[0]) if rows else None

    def config(self, project: int) -> LabelConfig | None:
        """The project's labelling configuration as it was last read; `None` if there is none that can be read."""
        known = self.find(project)
        return known.config if known is not None else None

    def settings(self, project: int, settings: Settings) -> Settings:
        """The backend's settings with what the project's extra params set."""
        known = self.find(project)
        return known.settings(settings) if known is not None else settings

    def describe(self, project: int, title: str, label_config: str) -> None:
        """Store what the API says of a project."""
        with self._db.transaction() as db:
            db.change("describe_project", title, label_config, project)

    def set_extra_params(self, project: int, text: str) -> None:
        """Store the JSON text of what a project's connection was given."""
        with self._db.transaction() as db:
            db.change("set_extra_params", text, project)

    def set_shown_version(self, project: int, version: str) -> None:
        """Store which version Label Studio was told to show."""
        with self._db.transaction() as db:
            db.change("set_shown_version", version, project)

    def set_error(self, project: int, error: str | None) -> None:
        """Store why a project cannot be worked on, or that it can."""
        with self._db.transaction() as db:
            db.change("set_error", error, project)

    def mark_synced(self, project: int) -> None:
        """Store that the ledger agreed with Label Studio just now."""
        with self._db.transaction() as db:
            db.change("mark_synced", db.now, project)

    # what Label Studio handed over

    def grants(self) -> dict[int, tuple[str, str]]:
        """The address and the token that /setup handed over, by project."""
        rows = self._db.rows("grants")
        return {int(row["name"].partition(":")[2]): tuple(json.loads(row["value"])) for row in rows}

    def set_grant(self, project: int, hostname: str, token: str) -> None:
        """Keep the address and the token of a project for the next start."""
        with self._db.transaction() as db:
            db.change("set_value", f"grant:{project}", json.dumps([hostname, token]))

    # what people are told and want

    def set_warnings(self, project: int, topic: str, texts: Iterable[str]) -> list[str]:
        """Make `texts` all there is to tell people of a project on one topic; returns those that are new, for the log.

        This is the one place for what the status page and /api/projects warn of: unsupported tags, unknown labels,
        extra params that cannot be read. Whoever finds out calls it each time, with an empty list once all is well;
        a topic belongs to one caller. It writes, so not from /setup or /health. The project need not be known yet.
        """
        wanted = list(dict.fromkeys(texts))
        known = self.warnings(project).get(topic, [])
        if wanted == known:
            return []
        with self._db.transaction() as db:
            db.change("forget_topic", project, topic)
            db.change_each("add_warning", [(project, topic, number, text) for number, text in enumerate(wanted)])
        return [text for text in wanted if text not in known]

    def warnings(self, project: int) -> dict[str, list[str]]:
        """What there is to tell people of a project, by topic."""
        found: dict[str, list[str]] = {}
        for row in self._db.rows("warnings", project):
            found.setdefault(row["topic"], []).append(row["text"])
        return found

    def set_paused(self, project: int, paused: bool) -> None:
        """Have no job of a project (or of any, `ALL_PROJECTS`) taken until it is resumed, restarts included."""
        with self._db.transaction() as db:
            if project != ALL_PROJECTS:
                db.change("set_project_paused", paused, project)
            else:
                db.change("pause_all" if paused else "resume_all")

    def is_paused(self, project: int = ALL_PROJECTS) -> bool:
        """Whether a project's jobs, or all projects' jobs, are not taken."""
        return bool(self._db.rows("is_paused", project))

    def want_again(self, project: int) -> None:
        """Ask for a project's present predictions to be replaced; kept until `Jobs.begin_again` or `forget_again`."""
        with self._db.transaction() as db:
            db.change("set_value", f"again:{project}", "1")

    def wanted_again(self) -> set[int]:
        """The projects of `want_again`."""
        return {int(row["name"].partition(":")[2]) for row in self._db.rows("wanted_again")}

    def forget_again(self, project: int) -> None:
        """Forget `want_again`; what was computed stays."""
        with self._db.transaction() as db:
            db.change("forget_value", f"again:{project}")


def _forget(db: Transaction, project: int) -> None:
    db.change("forget_project", project)
    db.change("forget_warnings", project)
    db.change("forget_value", f"again:{project}")


def _project(row: sqlite3.Row) -> Project:
    return Project(**dict(zip(row.keys(), row, strict=True)) | {"paused": bool(row["paused"])})
