"""`cavsam-backend doctor`: what is right and what is not, each with what to do about it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from backend.errors import BackendError, LabelConfigError, LabelStudioError
from backend.labelstudio.address_guard import SWITCHES, has_guard, is_private, listens_privately
from backend.labelstudio.brush import encode_mask
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.label_config import parse_label_config
from backend.labelstudio.regions import Brush, Region
from backend.settings import Settings, unknown_variables
from backend.webhook_secret import HEADER, read_webhook_secret
from backend.worker.messages import Example, ModelSpec, Result, SegmentTask
from backend.worker.model_process import CAVSAM, ModelProcess
from cavsam.errors import ModelError
from cavsam.recipe import Recipe
from cavsam.scoring.calibration import Calibration
from cavsam.weights.sources import ModelSources, calibration_file

Verdict = Literal["ok", "note", "fail"]

MIN_FREE_GB = 2.0
WEIGHTS_GB = 6.0
TRIAL_SIZE = 96


@dataclass(frozen=True)
class Finding:
    """One line of the report: `ok`, `note` (worth knowing) or `fail` (does not work like this)."""

    verdict: Verdict
    subject: str
    message: str


def examine(
    settings: Settings,
    project: int | None,
    *,
    environ: Mapping[str, str] | None = None,
    with_model: bool = True,
    segmenter: str = CAVSAM,
) -> Iterator[Finding]:
    """Look at everything that a running backend needs, one finding after the other.

    `environ` is what the settings were read from, to find variables that are misspelt.
    """
    yield from _settings(settings, environ or {})
    yield from _data_folder(settings)
    yield from _weights(settings)
    if settings.label_studio_url:
        yield from _label_studio(settings, project)
    if with_model:
        yield from _model(settings, segmenter)


def _settings(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    sources = settings.sources()
    kind = "try-out models, not for real work" if sources.is_nano else "real models"
    yield Finding("ok", "settings", f"model {sources.name} ({kind}), recipe {settings.method().described()}")
    for name in unknown_variables(environ):
        yield Finding("note", "settings", f"{name} means nothing; `cavsam-backend settings` lists the names there are.")
    if not settings.label_studio_url:
        yield Finding(
            "note",
            "settings",
            "LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY are not set. The backend then uses the address and the legacy "
            "token that Label Studio hands over, which works only where legacy tokens are enabled; set both.",
        )
    elif not settings.label_studio_api_key:
        yield Finding(
            "note",
            "settings",
            "LABEL_STUDIO_API_KEY is not set. The backend then uses the legacy token that Label Studio hands over, "
            "which works only where legacy tokens are enabled; set it to a personal access token.",
        )


def _data_folder(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield Finding("fail", "data folder", f"{folder} cannot be written ({error.strerror}); set CAVSAM_DATA_DIR.")
        return
    free = shutil.disk_usage(folder).free / 1e9
    if free < MIN_FREE_GB:
        yield Finding("fail", "data folder", f"{folder} has {free:.1f} GB left; make room or set CAVSAM_DATA_DIR.")
    else:
        yield Finding("ok", "data folder", f"{folder}, {free:.0f} GB free")


def _weights(settings: Settings) -> Iterator[Finding]:
    """Where weights from the hub are kept; local files and the bundled models need no room."""
    sources = settings.sources()
    yield from _calibration(sources, settings.method())
    from_hub = [
        name for name in (sources.sam2, sources.diffusion, sources.features) if name and not Path(name).exists()
    ]
    if not from_hub:
        return
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    missing = [name for name in from_hub if not (folder / f"models--{name.replace('/', '--')}").exists()]
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free / 1e9
    if not missing:
        yield Finding("ok", "weights", f"{' and '.join(from_hub)} are in {folder}")
    elif free < WEIGHTS_GB:
        yield Finding(
            "fail",
            "weights",
            f"{' and '.join(missing)} must be fetched to {folder}, which has {free:.1f} GB left and needs some "
            f"{WEIGHTS_GB:.0f}; make room or set HF_HOME.",
        )
    else:
        yield Finding(
            "note",
            "weights",
            f"{' and '.join(missing)} will be fetched to {folder} ({free:.0f} GB free) when the model is loaded first; "
            "`cavsam download` does it ahead.",
        )


def _calibration(sources: ModelSources, recipe: Recipe) -> Iterator[Finding]:
    """What the scores are worth; nothing is said before SAM2's weights are on this machine."""
    file = calibration_file(sources)
    if file is None:
        return
    try:
        doubts = Calibration.load(file).doubts(recipe)
    except ModelError as error:
        yield Finding("fail", "calibration", str(error))
        return
    yield Finding("note", "calibration", doubts) if doubts else Finding("ok", "calibration", str(file))


def _label_studio(settings: Settings, project: int | None) -> Iterator[Finding]:
    client = LabelStudio(
        settings.label_studio_url, settings.label_studio_api_key, timeout=min(settings.api_timeout, 10)
    )
    try:
        release = str(client.version().get("release", ""))
    except LabelStudioError as error:
        yield Finding("fail", "Label Studio", str(error))
        return
    yield Finding("ok", "Label Studio", f"{settings.label_studio_url} answers, release {release}")
    if not settings.label_studio_api_key:
        return
    kind = "personal access token" if client.has_personal_token else "legacy token"
    try:
        user = client.user()
    except LabelStudioError as error:
        yield Finding("fail", "API key", str(error))
        return
    yield Finding("ok", "API key", f"{kind} of {user.get('email')}")
    guarded = has_guard(release)
    if project is None:
        if guarded:
            yield from _address_guard(settings)
        yield Finding("note", "project", "give a project's number (--project 12) to have it looked at")
    else:
        yield from _project(settings, client, project, guarded=guarded)


def _address_guard(settings: Settings) -> Iterator[Finding]:
    """Since 1.23.1 Label Studio does not connect to private addresses unless it is told to."""
    if listens_privately(settings.host):
        yield Finding(
            "note",
            "private address",
            f"The backend listens on a private address. {SWITCHES}",
        )


def _project(settings: Settings, client: LabelStudio, project: int, *, guarded: bool) -> Iterator[Finding]:
    subject = f"project {project}"
    try:
        found = client.project(project)
        config = parse_label_config(str(found.get("label_config") or ""))
    except (LabelStudioError, LabelConfigError) as error:
        yield Finding("fail", subject, str(error))
        return
    labels = ", ".join(dict.fromkeys(label for control in config.controls for label in control.labels))
    if config.controls:
        yield Finding("ok", subject, f"{found.get('title')!r}: labels {labels or 'from the tasks'}")
    for warning in config.warnings:
        yield Finding("note" if config.controls else "fail", subject, warning)
    try:
        backends = client.backends(project)
    except LabelStudioError as error:
        yield Finding("note", subject, f"Whether a backend is connected cannot be seen. {error}")
        return
    if not backends:
        yield Finding(
            "fail", subject, "No backend is connected; add this one's address under Settings, Model, Connect Model."
        )
        if guarded:
            yield from _address_guard(settings)
    for backend in backends:
        yield from _connection(client, project, backend, guarded=guarded)
        yield from _webhook(settings, client, project, str(backend.get("url", "")))


def _connection(client: LabelStudio, project: int, backend: dict[str, Any], *, guarded: bool) -> Iterator[Finding]:
    subject, url = f"project {project}", str(backend.get("url", ""))
    if backend.get("state") in ("DI", "ER"):
        reason = backend.get("error_message") or "Label Studio cannot reach it"
        hint = f" {SWITCHES}" if guarded and is_private(urlsplit(url).hostname or "") else ""
        yield Finding(
            "fail",
            subject,
            f"The connected backend {url} is not in order: {reason}. Is it running at that address?{hint}",
        )
    else:
        yield Finding("ok", subject, f"backend {url} is connected, version {backend.get('model_version')}")


def _webhook(settings: Settings, client: LabelStudio, project: int, url: str) -> Iterator[Finding]:
    subject = f"project {project}"
    try:
        hooks = [hook for hook in client.webhooks(project) if str(hook.get("url")) == url.rstrip("/") + "/webhook"]
    except LabelStudioError as error:
        yield Finding("note", subject, f"Whether its webhook is registered cannot be seen. {error}")
        return
    active = [hook for hook in hooks if hook.get("is_active")]
    if active:
        yield Finding("ok", subject, "its webhook is registered")
        try:
            secret = read_webhook_secret(settings)
        except OSError as error:
            yield Finding("note", subject, f"The webhook's secret cannot be read ({error.strerror}).")
            return
        if secret and not any((hook.get("headers") or {}).get(HEADER) == secret for hook in active):
            yield Finding(
                "note",
                subject,
                "Its webhook does not carry this backend's secret (yet), so its events are followed with a delay. The "
                "backend sets it at the next full sync, with a key whose user may manage the project.",
            )
        return
    host = urlsplit(url).hostname or ""
    why = f" Label Studio makes none for a host name without a dot, such as {host!r}." if "." not in host else ""
    yield Finding(
        "note",
        subject,
        f"There is no active webhook to {url}/webhook.{why} Everything works, but news are found only when a task is "
        "opened or at the next full sync (CAVSAM_SYNC_INTERVAL).",
    )


def _model(settings: Settings, segmenter: str) -> Iterator[Finding]:
    # every step of the method, but few rounds of each: whether it runs, not how well
    recipe = settings.method().replace(lora_steps=2, ddim_steps=2, ttga_steps=2, frames=2)
    options = {"sources": asdict(settings.sources()), "recipe": recipe.to_dict(), "device": settings.device}
    process = ModelProcess(ModelSpec(segmenter, options, "WARNING"))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as at_end:
        at_end.callback(process.stop)
        try:
            started = time.monotonic()
            process.load(_silent)
            device = process.device or settings.device
            yield Finding("ok", "model", f"loads in {time.monotonic() - started:.0f} s on device {device}")
            if device == "cpu" and not settings.sources().is_nano:
                yield Finding("note", "model", "On a CPU a task takes minutes to hours; see docs/hardware.md.")
            started = time.monotonic()
            answer = process.run(_trial_job(Path(folder)), _silent)
        except BackendError as error:
            yield Finding("fail", "model", str(error))
            return
    if isinstance(answer, Result):
        yield Finding("ok", "trial prediction", f"every step runs, {time.monotonic() - started:.0f} s")
    else:
        yield Finding("fail", "trial prediction", answer.message)


def _trial_job(folder: Path) -> SegmentTask:
    """A disc on a plain ground to learn, and the same disc elsewhere to find."""
    grid_y, grid_x = np.mgrid[:TRIAL_SIZE, :TRIAL_SIZE]
    masks = {}
    for name, (y, x) in (("reference", (40, 40)), ("target", (52, 56))):
        masks[name] = (grid_y - y) ** 2 + (grid_x - x) ** 2 < 20**2
        image = np.where(masks[name][..., None], (220, 60, 50), (40, 70, 90))
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{name}.png")
    size, code = (TRIAL_SIZE, TRIAL_SIZE), Brush(bytes(encode_mask(masks["reference"])))
    region = Region("mask", "image", ("disc",), size, code)
    example = Example(0, (region,), {"image": str(folder / "reference.png")})
    return SegmentTask("trial", 0, (example,), {"image": str(folder / "target.png")})


def _silent(step: str, done: int, total: int) -> None:
    pass
