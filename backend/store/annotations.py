"""Annotations as they were judged, and the references that were chosen from them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from backend.entities import JudgedAnnotation, ReferenceAnnotation, References, Refusal
from backend.errors import UnusableRegion
from backend.labelstudio.regions import Region
from backend.store.database import Database, Transaction


class Annotations:
    """The annotations of one project."""

    def __init__(self, database: Database, project: int):
        self._db, self.project = database, project

    def replace(self, task: int, annotations: Sequence[JudgedAnnotation], read_under: str) -> None:
        """Store what a task's annotations are; `read_under` is the task's `updated_at` they were read under."""
        with self._db.transaction() as db:
            db.change("forget_annotations", self.project, task)
            db.change_each(
                "add_annotation",
                [
                    (
                        one.annotation,
                        self.project,
                        task,
                        one.created_at,
                        one.key,
                        one.reason,
                        json.dumps(sorted(one.labels)),
                        one.ground_truth,
                    )
                    for one in annotations
                ],
            )
            db.change("set_annotations_read", read_under, self.project, task)

    def clear(self, read_under: Mapping[int, str]) -> None:
        """Store that some tasks have no annotations; `read_under` is the state that each was read under."""
        with self._db.transaction() as db:
            db.change_each("forget_annotations", [(self.project, task) for task in read_under])
            db.change_each("set_annotations_read", [(state, self.project, task) for task, state in read_under.items()])

    def judge_again(self) -> None:
        """Have all annotations read and judged again, as after a change of the labelling configuration."""
        with self._db.transaction() as db:
            db.change("forget_annotations_read", self.project)

    def judged(self, task: int | None = None) -> list[JudgedAnnotation]:
        """All annotations, or those of one task, as the policies see them, without their regions."""
        rows = (
            self._db.rows("annotations", self.project)
            if task is None
            else self._db.rows("annotations_of_task", self.project, task)
        )
        return [
            JudgedAnnotation(
                row["id"],
                row["task"],
                row["created_at"],
                row["key"],
                row["reason"] or row["refused"] or "",
                labels=frozenset(tuple(label) for label in json.loads(row["labels"])),
                ground_truth=bool(row["ground_truth"]),
            )
            for row in rows
        ]

    def refuse(self, refusal: Refusal, version: str) -> None:
        """Have an annotation count as unusable until it is edited.

        If the project learns from it as it is, it learns from nothing under `version` until another is chosen.
        """
        refused = (refusal.annotation, refusal.key)
        with self._db.transaction() as db:
            db.change("refuse_annotation", *refused, refusal.reason, self.project)
            if any((row["annotation"], row["key"]) == refused for row in db.rows("references", self.project)):
                self._set_references(db, version, None)

    def set_references(self, version: str, references: References | None) -> None:
        """Have the project learn from `references` under `version`; unfinished jobs of other versions are dropped."""
        with self._db.transaction() as db:
            self._set_references(db, version, references)

    def _set_references(self, db: Transaction, version: str, references: References | None) -> None:
        key, shots = (references.key, references.shots) if references else (None, 0)
        db.change("forget_references", self.project)
        db.change_each(
            "add_reference",
            [
                (self.project, one.annotation, position, one.task, one.key, _packed(one.regions))
                for position, one in enumerate(references.annotations if references else ())
            ],
        )
        db.change("set_version", key, shots, version, self.project)
        db.change("forget_unfinished", self.project, version)

    def references(self) -> References | None:
        """What the project's predictions are learned from now."""
        rows = self._db.rows("references", self.project)
        annotations = tuple(
            ReferenceAnnotation(self.project, row["key"], row["annotation"], row["task"], _regions(row["regions"]))
            for row in rows
        )
        return References(rows[0]["reference_key"], annotations, rows[0]["reference_shots"]) if rows else None


def _packed(regions: Iterable[Region]) -> bytes:
    return zlib.compress(json.dumps([region.to_json() for region in regions], separators=(",", ":")).encode())


def _regions(packed: bytes) -> tuple[Region, ...]:
    """Unpack regions; damaged ones are left out, and the next sync finds that the reference has changed."""
    regions = []
    for held in json.loads(zlib.decompress(packed)):
        with suppress(UnusableRegion):
            regions.append(Region.from_json(held))
    return tuple(regions)
