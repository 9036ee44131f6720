"""The loop of docs/active-learning.md on generated images: the real Label Studio, the real backend, the nano models."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.backend import wait_for
from tools import brush
from tools.backend_server import Backend, backend
from tools.demo.pictures import Picture, label_config, names_in, pictures
from tools.label_studio_server import ROOT, LabelStudio

pytestmark = pytest.mark.integration

LABELS = ("bricked flower", "checked bar")
TASKS, CORRECTIONS = 9, 3
SETTINGS = {"CAVSAM_MODE": "concat", "CAVSAM_QUIET_PERIOD": "0.5", "CAVSAM_SYNC_INTERVAL": "2"}
EXTRA_PARAMS = {"reference_policy": "latest-k", "reference_shots": 4, "review_below": 0.9}


class Loop:
    """A project in which one person annotates, reviews and corrects; `tasks` is task id -> picture."""

    def __init__(self, server: LabelStudio, cavsam: Backend, shown: list[Picture]):
        self.server, self.cavsam = server, cavsam
        self.config = label_config(ROOT / "label_config" / "brush.xml", LABELS)
        self.project = server.create_project("active learning", self.config)
        uploaded = server.upload(self.project, {picture.name: picture.png() for picture in shown})
        self.tasks = {uploaded[picture.name]: picture for picture in shown}
        body = {"project": self.project, "url": cavsam.url, "extra_params": EXTRA_PARAMS}
        assert server.call("POST", "/api/ml/", json=body)["state"] == "CO"
        server.call("PATCH", f"/api/projects/{self.project}/", json={"sampling": "Uncertainty sampling"})

    def annotate(self, task: int, **fields: Any) -> None:
        """Submit the true masks."""
        from_name, to_name = names_in(self.config)
        regions = brush.regions(self.tasks[task].truth, from_name=from_name, to_name=to_name)
        origin = "prediction-changed" if fields else "manual"
        body = {"result": [region | {"origin": origin} for region in regions], "was_cancelled": False} | fields
        self.server.call("POST", f"/api/tasks/{task}/annotations/", json=body)

    def wait_for_predictions(self, annotated: set[int], after: set[str]) -> dict[int, dict[str, Any]]:
        """Predictions by task of a version that is not one of `after`, on all tasks but the annotated ones.

        Waits until Label Studio sorts and samples by that version.
        """
        found: dict[int, dict[str, Any]] = {}

        def complete() -> bool:
            version = self.server.call("GET", f"/api/projects/{self.project}/")["model_version"]
            new = [p for p in self.server.predictions(self.project) if p["model_version"] not in after]
            found.clear()
            found.update({p["task"]: p for p in new if p["model_version"] == version})
            return set(found) == set(self.tasks) - annotated

        try:
            wait_for(complete, "predictions of a new version", 400)
        except AssertionError:
            print(self.cavsam.log.read_text()[-4000:])
            raise
        return found

    def miou(self, predictions: dict[int, dict[str, Any]], tasks: list[int]) -> float:
        """Mean IoU over the labels and over some tasks."""
        ious = []
        for task in tasks:
            masks = brush.masks(predictions[task]["result"])
            for label, truth in self.tasks[task].truth.items():
                ious.append(brush.iou(masks.get(label, np.zeros_like(truth)), truth))
        return float(np.mean(ious))

    def judged(self, task: int) -> str | None:
        """Why the task's annotation teaches nothing, as the ledger has it; `None` where none is known."""
        with closing(sqlite3.connect(f"file:{self.cavsam.data / 'ledger.sqlite3'}?mode=ro", uri=True)) as ledger:
            row = ledger.execute(
                "SELECT reason FROM annotations WHERE project = ? AND task = ?", (self.project, task)
            ).fetchone()
        return row[0] if row else None


def test_the_loop(server: LabelStudio, tmp_path: Path):
    """Annotate one, review what is least sure, correct it; the rest is predicted again from all that was corrected."""
    shown = pictures("textures", LABELS, TASKS, first_seed=300, size=128)
    with backend(tmp_path, settings=SETTINGS) as cavsam:
        loop = Loop(server, cavsam, shown)
        annotated = [next(iter(loop.tasks))]
        loop.annotate(annotated[0])
        rounds = [loop.wait_for_predictions(set(annotated), after=set())]
        for _ in range(CORRECTIONS):
            scores = {task: prediction["score"] for task, prediction in rounds[-1].items()}
            lowest = loop.server.call("GET", f"/api/projects/{loop.project}/next/")["id"]
            assert scores[lowest] == min(scores.values())
            query = json.dumps({"ordering": ["tasks:predictions_score"]})
            listed = loop.server.call("GET", "/api/tasks", params={"project": loop.project, "query": query})["tasks"]
            shown_scores = [task["predictions_score"] for task in listed if task["id"] in scores]
            assert shown_scores == pytest.approx(sorted(scores.values()))

            annotated.append(lowest)
            loop.annotate(lowest, parent_prediction=rounds[-1][lowest]["id"])
            versions = {p["model_version"] for found in rounds for p in found.values()}
            rounds.append(loop.wait_for_predictions(set(annotated), after=versions))

        flagged = [region for p in rounds[-1].values() for region in p["result"] if region["score"] < 0.9]
        assert flagged
        assert all("check this mask" in region["meta"]["text"][0] for region in flagged)

        # what is accepted as it is teaches nothing, so nothing is predicted again
        accepted = next(iter(rounds[-1]))
        copied = {"result": rounds[-1][accepted]["result"], "parent_prediction": rounds[-1][accepted]["id"]}
        loop.server.call("POST", f"/api/tasks/{accepted}/annotations/", json=copied)
        wait_for(lambda: loop.judged(accepted) is not None, "the accepted prediction to be judged")
        assert "accepted unchanged" in (loop.judged(accepted) or "")
        present = rounds[-1][accepted]["model_version"]
        assert server.call("GET", f"/api/projects/{loop.project}/")["model_version"] == present

        never_corrected = [task for task in loop.tasks if task not in annotated]
        report = {
            "tasks never corrected": len(never_corrected),
            "mean IoU on them with 1, 2, ... annotated tasks": [loop.miou(r, never_corrected) for r in rounds],
            "mean score on them": [float(np.mean([r[t]["score"] for t in never_corrected])) for r in rounds],
        }
        (tmp_path / "active-learning.json").write_text(json.dumps(report, indent=1))
        print(json.dumps(report))
