"""Label Studio's HTTP API, as far as the backend needs it.

Only `requests` is used: the SDK's client would cost the web process 130 MB, and it sends personal access tokens as
they are where Label Studio wants them exchanged first.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import requests

from backend.errors import LabelStudioNotFound
from backend.labelstudio.auth import KeyAuth
from backend.labelstudio.image_hosts import GuardedAdapter, PrivateHosts
from backend.labelstudio.project_keys import number_of
from backend.labelstudio.transport import RETRY, check_status, json_of, session, unreachable

PAGE_SIZE = 200
REDIRECTS = 5
"""How often a file may be sent on; a storage's address is one or two away."""
TASK_FIELDS = "id,data,updated_at,total_annotations,cancelled_annotations,total_predictions"


class LabelStudio:
    """A connection to one Label Studio with one API key; may be used by several threads.

    Its methods take projects by their keys (`project_keys.py`).
    `public_url` is the address under which people and tasks know the same Label Studio, where it differs from `url`.
    `private_hosts` are those inside our own network from which images may be fetched; Label Studio's own host is.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        timeout: float = 30.0,
        public_url: str = "",
        private_hosts: PrivateHosts = PrivateHosts(),  # noqa: B008 - frozen
    ):
        self.url = url.rstrip("/")
        self._private_hosts = private_hosts
        self.public_url = public_url.rstrip("/")
        self._timeout = timeout
        self._auth = KeyAuth(self.url, key, timeout)
        self._local = threading.local()

    # projects, tasks, annotations

    def project(self, project: int, *, timeout: float | None = None) -> dict[str, Any]:
        """The project's description; its `label_config` is the XML."""
        return self._get(f"/api/projects/{number_of(project)}/", timeout=timeout)

    def projects(self) -> Iterator[int]:
        """The numbers of all projects that the key may see."""
        page, seen = 1, 0
        while True:
            answer = self._get("/api/projects/", {"page": page, "page_size": PAGE_SIZE})
            found = answer["results"]
            yield from (int(project["id"]) for project in found)
            seen += len(found)
            if not found or seen >= answer["count"]:
                return
            page += 1

    def set_model_version(self, project: int, version: str) -> None:
        """Have the project show, sort and sample by the predictions of one version."""
        self._request("PATCH", f"/api/projects/{number_of(project)}/", json={"model_version": version})

    def tasks(self, project: int) -> Iterator[dict[str, Any]]:
        """All tasks of a project, without annotations and predictions; addresses in their data are resolved."""
        yield from self._task_pages(project, {"include": TASK_FIELDS})

    def tasks_with_prediction(
        self, project: int, version: str, *, between: tuple[int, int] | None = None, timeout: float | None = None
    ) -> set[int]:
        """The tasks that hold a prediction of `version`, all of them or those with numbers in `between`."""
        items: list[dict[str, Any]] = [
            {
                "filter": "filter:tasks:predictions_model_versions",
                "operator": "contains",
                "type": "List",
                "value": [version],
            }
        ]
        if between is not None:
            low, high = between
            items.append(
                {"filter": "filter:tasks:id", "operator": "in", "type": "Number", "value": {"min": low, "max": high}}
            )
        query = json.dumps({"filters": {"conjunction": "and", "items": items}})
        pages = self._task_pages(project, {"include": "id", "query": query}, timeout=timeout)
        return {int(task["id"]) for task in pages}

    def annotations(self, task: int) -> list[dict[str, Any]]:
        """A task's annotations with their results; Label Studio leaves the cancelled ones out."""
        found = self._get(f"/api/tasks/{task}/annotations/")
        return [dict(annotation, task=task) for annotation in found]

    def annotation(self, annotation: int) -> dict[str, Any]:
        """One annotation with its result."""
        return self._get(f"/api/annotations/{annotation}/")

    def backends(self, project: int, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """The machine learning backends connected to the project; Label Studio calls each of them to answer this."""
        return self._get("/api/ml", {"project": number_of(project)}, timeout=timeout)

    def webhooks(self, project: int) -> list[dict[str, Any]]:
        """The project's webhooks."""
        return self._get("/api/webhooks/", {"project": number_of(project)})

    def add_webhook(self, project: int, url: str, headers: Mapping[str, str]) -> None:
        """Have Label Studio send the project's events to `url`; raises `LabelStudioRejected` where it will not."""
        body = {"project": number_of(project), "url": url, "headers": dict(headers)}
        always = {"send_payload": True, "send_for_all_actions": True, "is_active": True}
        self._request("POST", "/api/webhooks/", json=body | always)

    def set_webhook_headers(self, webhook: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        """Have a webhook, as it was listed, send these headers and no others."""
        # Label Studio takes a change that does not name the actions for one to none
        body = {"headers": dict(headers), "actions": webhook.get("actions") or []}
        self._request("PATCH", f"/api/webhooks/{int(webhook['id'])}/", json=body)

    def version(self) -> dict[str, Any]:
        """What runs there, with `release`; needs no key."""
        return json_of(self._request("GET", "/api/version", auth=None))

    @property
    def has_personal_token(self) -> bool:
        """Whether the key is a personal access token."""
        return self._auth.personal

    def user(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The user whose key this is."""
        return self._get("/api/current-user/whoami", timeout=timeout)

    # predictions

    def import_predictions(self, project: int, body: str) -> int:
        """Store predictions, given as the JSON text of a list; returns how many Label Studio says it created.

        Raises `LabelStudioRejected` where it found fault with one, and `LabelStudioUnreachable` with `sent` set where
        it may have stored them although no answer came.
        """
        answer = self._request(
            "POST",
            f"/api/projects/{number_of(project)}/import/predictions",
            data=body.encode(),
            headers={"Content-Type": "application/json"},
        )
        return int(json_of(answer)["created"])

    def predictions(self, task: int) -> list[dict[str, Any]]:
        """A task's predictions with their results."""
        return self._get("/api/predictions/", {"task": task})

    def prediction(self, prediction: int) -> dict[str, Any]:
        """One prediction with its result."""
        return self._get(f"/api/predictions/{prediction}/")

    def delete_prediction(self, prediction: int) -> None:
        """Remove one prediction."""
        self._request("DELETE", f"/api/predictions/{prediction}/")

    def delete_version(self, project: int, version: str) -> int:
        """Remove all predictions of a version from a project; returns how many there were."""
        path = f"/api/projects/{number_of(project)}/model-versions/"
        return int(json_of(self._request("DELETE", path, json={"model_version": version}))["deleted_predictions"])

    # requests

    def open(self, url: str, *, with_key: bool) -> requests.Response:
        """Begin to download a file; the key goes with the call only if `with_key`.

        Label Studio's own file may be on, and be sent on to, any port of Label Studio's host. Every other host inside
        our network has to be among the private hosts.

        Raises whatever `requests` raises, and `ImageUnavailable` for a host that is not allowed.
        """
        key = self._auth if with_key else None
        opened = self._session("own files" if with_key else "files")
        return opened.get(url, auth=key, timeout=(5.0, self._timeout), stream=True)

    def _session(self, purpose: str) -> requests.Session:
        """A session of this thread: for calls that are repeated if they fail, for calls that are not, or for files."""
        sessions: dict[str, requests.Session] = self._local.__dict__.setdefault("sessions", {})
        if purpose not in sessions:
            opened = session(None if purpose == "once" else RETRY)
            if purpose in ("own files", "files"):
                own = [_host(self.url)] if purpose == "own files" else []
                opened.max_redirects = REDIRECTS
                for scheme in ("http://", "https://"):
                    opened.mount(scheme, GuardedAdapter(self._private_hosts.with_names(*own), RETRY))
            sessions[purpose] = opened
        return sessions[purpose]

    def _task_pages(
        self, project: int, params: dict[str, Any], timeout: float | None = None
    ) -> Iterator[dict[str, Any]]:
        page, seen = 1, 0
        while True:
            which = {"project": number_of(project), "page": page, "page_size": PAGE_SIZE}
            try:
                answer = self._get("/api/tasks", {**which, "fields": "task_only", **params}, timeout=timeout)
            except LabelStudioNotFound:
                if page == 1:
                    raise
                return  # tasks were deleted while we read: there is no such page any more
            tasks = answer["tasks"]
            yield from tasks
            seen += len(tasks)
            if not tasks or seen >= answer["total"]:
                return
            page += 1

    def _get(self, path: str, params: dict[str, Any] | None = None, *, timeout: float | None = None) -> Any:
        """The answer's JSON; with a `timeout` of its own the call is tried once."""
        return json_of(self._request("GET", path, params=params, timeout=timeout))

    def _request(self, method: str, path: str, *, timeout: float | None = None, **kwargs: Any) -> requests.Response:
        wait = self._timeout if timeout is None else timeout
        opened = self._session("repeating" if method == "GET" and timeout is None else "once")
        arguments: dict[str, Any] = {"auth": self._auth, "timeout": (min(5.0, wait), wait), "allow_redirects": False}
        arguments |= kwargs
        try:
            response = opened.request(method, self.url + path, **arguments)
            if response.status_code == 401 and self._auth.renew():
                response = opened.request(method, self.url + path, **arguments)
        except (requests.RequestException, ValueError) as error:  # ValueError: the address cannot be encoded
            raise unreachable(self.url, error) from error
        check_status(response, path)
        return response


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
