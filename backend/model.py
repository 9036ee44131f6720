"""The same backend behind label-studio-ml's own application, for those who run their models with it.

    from label_studio_ml.api import init_app
    from backend.model import CavSam
    app = init_app(CavSam)

Needs label-studio-ml 2.x, and `LABEL_STUDIO_URL` and `LABEL_STUDIO_API_KEY`: that application does not pass on what
Label Studio hands over. It has no status page and no `/versions`, and lets few events through; the backend looks at
each project by itself all the same. `label-studio-ml start backend` runs `_wsgi.py`, which serves the backend's own
application.
"""

from __future__ import annotations

import atexit
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from label_studio_ml.model import LabelStudioMLBase

from backend.errors import InvalidRequest
from backend.server import configure_logging
from backend.service import Service
from backend.settings import Settings


@functools.cache
def running_service() -> Service:
    """The one service of this process, started when it is first asked for: after any fork."""
    settings = Settings.from_environment()
    configure_logging(settings)
    service = Service(settings)
    service.start()
    atexit.register(service.stop)
    return service


class CavSam(LabelStudioMLBase):
    """What label-studio-ml makes for each request; all state is in the service."""

    service: Callable[[], Service] = staticmethod(running_service)

    def setup(self) -> None:
        """Take note of the project; called when the object is made."""
        self.set("model_version", self.service().setup(self._project(), "", ""))

    def set_extra_params(self, extra_params: Any) -> None:
        """Settings of this project alone, as an object or its JSON text."""
        self.service().setup(self._project(), "", "", extra_params)

    def predict(
        self, tasks: Sequence[Mapping[str, Any]], context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """One prediction per task, or an empty list where there is none yet; with a context, what was clicked."""
        service, project = self.service(), self._project()
        if context and tasks:
            regions, score = service.interactive.answer(project, tasks[0], str(self.label_config or ""), context)
            return [{"result": regions, "score": score, "model_version": service.version_of(project)}]
        return [json.loads(text) for text in service.predict(project, [int(task["id"]) for task in tasks])]

    def fit(self, event: str, data: Mapping[str, Any], **additional_params: Any) -> dict[str, str]:
        """Take note of an event; returns at once, and what it brings about happens in the background."""
        self.service().coordinator.take_doubtful_webhook({**data, "action": event})  # no headers come with it
        return {"status": "noted"}

    def _project(self) -> int:
        number = str(self.project_id)
        if not number.isdigit():
            raise InvalidRequest("The request names no project.")
        return int(number)
