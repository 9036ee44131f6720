"""Every setting of the backend, read once from the environment and checked before anything starts."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints
from urllib.parse import urlsplit

from backend.errors import SettingsError
from backend.labelstudio.image_hosts import PrivateHosts
from backend.logs import FORMATS
from backend.text import read_json
from cavsam.errors import CavSamError
from cavsam.recipe import Recipe
from cavsam.scoring.calibration import Calibration
from cavsam.weights.sources import ModelSources

PREFIX = "CAVSAM_"
DATA_DIR = Path("cavsam-data")
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?|mps")
WEBHOOK_SECRET = re.compile(r"[A-Za-z0-9._~+/=-]{16,200}")
HOST_NAME = re.compile(r"[\w.-]+")
IP_OR_NAME = re.compile(r"[\w.-]+|[\da-fA-F]*:[\da-fA-F:.]*(%[\w.-]+)?")
OLD_PREDICTIONS = ("keep", "remove")
REFERENCE_POLICIES = ("first", "pinned", "latest-k", "nearest-k")
PROJECT_VERSION = ("follow", "leave")
EXTRA_PARAMS_LIMIT = 10_000
LEARN = ("on", "off")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def _setting(
    default: Any, description: str, *, aliases: tuple[str, ...] = (), secret: bool = False, per_project: bool = False
) -> Any:
    """A field of `Settings`: its default, one sentence for the table, other names in the environment.

    A project's extra params may set those that are `per_project`.
    """
    metadata = {"description": description, "aliases": aliases, "secret": secret, "per_project": per_project}
    return dataclasses.field(default=default, metadata=metadata, repr=not secret)


def _constant(default: Any) -> Any:
    """A field of `Settings` that nobody needs to change: only tests do, and the environment does not."""
    return dataclasses.field(default=default, metadata={"constant": True})


@dataclass(frozen=True)
class Settings:
    """The settings of one backend process; the environment variable of `name` is `CAVSAM_NAME`.

    Constants come last: `threads` answer requests, `answer_lease` seconds has Label Studio to store what /predict
    answered before it is pushed instead, `push_batch` predictions go in one call, `push_interval` seconds lie between
    two pushes, and an answer of /predict has at most `max_answer_mb`.
    """

    label_studio_url: str = _setting(
        "",
        "Address of Label Studio as this machine reaches it, such as `http://label-studio:8080`; everyone sets it. "
        "Without it the address that Label Studio names when it connects is used.",
        aliases=("LABEL_STUDIO_URL",),
    )
    label_studio_api_key: str = _setting(
        "",
        "Key for Label Studio's API, a personal access token or a legacy token; everyone sets it. Without it the "
        "legacy token that Label Studio hands over is used, which works only if legacy tokens are enabled.",
        aliases=("LABEL_STUDIO_API_KEY",),
        secret=True,
    )
    model: str = _setting(
        "default",
        "Model pair: `default` (SAM2.1 tiny, SD 2.1-base), `paper`, or `nano` (bundled, for trying out); "
        "everyone chooses.",
    )
    sam2: str = _setting(
        "", "SAM2 weights instead of the pair's, for your own or larger ones: hub id, folder or checkpoint file."
    )
    sam2_revision: str = _setting("", "Revision (branch, tag or commit) of `CAVSAM_SAM2` on the hub, to pin it.")
    sam2_config: str = _setting("", "SAM2 configuration, for a checkpoint whose name does not tell it.")
    diffusion: str = _setting(
        "",
        "Diffusion weights instead of the pair's, such as a model of your domain: hub id, folder or checkpoint file.",
    )
    diffusion_revision: str = _setting("", "Revision of `CAVSAM_DIFFUSION` on the hub, to pin it.")
    features: str = _setting(
        "",
        "Backbone of the DINO family whose features the candidates `activation` and `linear` use in place of SAM2's, "
        "for whoever measured that it helps on their pictures: hub id such as `facebook/dinov2-small`, or folder.",
    )
    calibration: str = _setting(
        "",
        "File that makes estimates of the IoU of the scores, for whoever fitted one to their weights "
        "(`research.fit_calibration`). Without it `calibration.json` beside local SAM2 weights counts.",
    )
    device: str = _setting(
        "auto", "Where the model runs, to choose among several GPUs: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`."
    )
    preset: str = _setting(
        "",
        "A whole recipe: `published` (the paper's), `bundled` (chosen on the bundled models) or `quick` (the same with "
        "few steps). Without it the pair's own: `bundled` for `nano`, `published` for every other. Whoever measured on "
        "their own pictures that another is better changes it.",
    )
    mode: str = _setting(
        "",
        "How much of the method runs: `concat`, `ttga`, `dbst`, `full`, or `auto` (`full` only for targets that need "
        "it). Without it `auto` for `nano`, `full` for every other pair. A machine without a GPU needs a quicker one.",
    )
    recipe: str = _setting(
        "",
        'Hyperparameters of the method as a JSON object, such as `{"lora_steps": 100}`, for whoever measured '
        "that they help.",
    )
    data_dir: Path = _setting(  # noqa: RUF009 - a field
        DATA_DIR, "Folder of the ledger and of images in work, to keep them on a disk that stays."
    )
    host: str = _setting(
        "127.0.0.1", "Address to listen on; `0.0.0.0`, all of the machine's, if Label Studio runs on another machine."
    )
    port: int = _setting(9090, "Port to listen on, if the usual one is taken; `0` takes a free one.")
    predict_deadline: float = _setting(
        80.0,
        "Seconds after which /predict answers with what is finished; less if a proxy or Label Studio's "
        "`ML_TIMEOUT_PREDICT` gives up earlier.",
    )
    sync_interval: float = _setting(
        60.0, "Seconds between two full syncs, to catch missed webhooks; more for many or large projects."
    )
    reference_policy: str = _setting(
        "first",
        "What is learned from: `first`, `pinned`, `latest-k` or `nearest-k`; see docs/active-learning.md; "
        "other than `first` for a team whose corrections should teach.",
        per_project=True,
    )
    reference_shots: int = _setting(
        3,
        "The K of `latest-k` and `nearest-k`; `pinned` takes no more; more for classes that vary much.",
        per_project=True,
    )
    reference_candidates: int = _setting(
        8,
        "Annotated tasks, the latest, that `nearest-k` picks from; each costs as much as a reference; "
        "more for projects of mixed pictures.",
        per_project=True,
    )
    reference_task: int = _setting(
        0,
        "Number of the task that `pinned` learns from; `0` for annotations marked as ground truth; for "
        "whoever names the task to learn from.",
        per_project=True,
    )
    quiet_period: float = _setting(
        5.0,
        "Seconds without further edits before a *changed* reference is learned anew; the first is at once; "
        "more if annotators submit often while they draw.",
        per_project=True,
    )
    old_predictions: str = _setting(
        "keep",
        "What becomes of the predictions of earlier versions once all tasks have new ones: `keep` or `remove`, "
        "for whoever wants one prediction a task.",
        per_project=True,
    )
    project_version: str = _setting(
        "follow",
        "`follow`: once all tasks are predicted, the project's model version in Label Studio becomes ours, so that it "
        "sorts and samples by our scores; `leave` it alone, if "
        "another model's scores should sort.",
        per_project=True,
    )
    review_below: float = _setting(
        0.5,
        "Score below which a prediction is pushed but flagged for review; `0` flags none. Of scores without a "
        "calibration, which are an order only, the lowest tenth is flagged. Whoever reviews "
        "more or less of the predictions changes it.",
        per_project=True,
    )
    learn: str = _setting(
        "on",
        "`on`: corrections teach what scores mean in their project, and in mode `auto` which steps are worth their "
        "time, see docs/learning.md; `off` keeps to what the models say, for whoever compares models.",
        per_project=True,
    )
    api_timeout: float = _setting(30.0, "Seconds to wait for an answer of Label Studio's API; more for a slow one.")
    max_image_mb: float = _setting(200.0, "Largest image file that is fetched, in MB; more for uncompressed pictures.")
    max_request_mb: float = _setting(
        64.0,
        "Largest request body that is accepted, in MB; more if tasks carry long texts, for Label Studio sends "
        "whole tasks.",
    )
    private_image_hosts: str = _setting(
        "",
        "Hosts inside your own network from which images may be fetched, comma-separated names, addresses or networks "
        "such as `minio,10.1.0.0/16`, or `*`; for tasks that name images there. Public hosts and Label Studio's own "
        "always may.",
    )
    basic_auth_user: str = _setting(
        "", "User name that Label Studio must give (HTTP basic auth), for a port that others can reach; empty for none."
    )
    basic_auth_password: str = _setting(
        "", "Password to `CAVSAM_BASIC_AUTH_USER`; whoever sets the one sets both.", secret=True
    )
    open_to_network: str = _setting(
        "no",
        "`yes` listens beyond this machine without a password, for a network in which nobody else can reach the port; "
        "else `CAVSAM_HOST` other than loopback needs `CAVSAM_BASIC_AUTH_USER` and `_PASSWORD`.",
    )
    webhook_secret: str = _setting(
        "",
        "What Label Studio's events carry, so that nobody else's pass for them, for whoever replaces the data folder; "
        "without it the backend makes one and keeps it there.",
        secret=True,
    )
    allowed_hosts: str = _setting(
        "",
        "Host names, comma-separated, under which the backend answers without basic auth; for a backend that has a "
        "public name. IP addresses, `localhost`, names without a dot or in `.local` or `.internal`, `CAVSAM_HOST` and "
        "the host of `LABEL_STUDIO_URL` always do.",
    )
    log_level: str = _setting(
        "INFO", "`DEBUG`, `INFO`, `WARNING` or `ERROR`; `DEBUG` for whoever reports a fault, `WARNING` for a quiet log."
    )
    log_format: str = _setting("text", "`text`, or `json` for a program that collects logs: one object per line.")
    threads: int = _constant(16)
    answer_lease: float = _constant(120.0)
    push_batch: int = _constant(50)
    push_interval: float = _constant(1.0)
    max_answer_mb: float = _constant(32.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "label_studio_url", self.label_studio_url.strip().rstrip("/"))
        object.__setattr__(self, "label_studio_api_key", self.label_studio_api_key.strip())
        object.__setattr__(self, "host", self.host.strip().removeprefix("[").removesuffix("]"))
        object.__setattr__(self, "log_level", self.log_level.upper())
        problems = [*self._problems(), *self._method_problems()]
        if problems:
            raise SettingsError("\n".join(problems))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Settings from the environment, `overrides` first; empty variables count as not set.

        Raises `SettingsError` with one line per problem.
        """
        environ = os.environ if environ is None else environ
        types = get_type_hints(cls)
        values: dict[str, Any] = {}
        problems: list[str] = []
        for field in _tunable():
            if overrides.get(field.name) is not None:
                values[field.name] = types[field.name](overrides[field.name])
                continue
            for variable in (variable_of(field.name), *field.metadata["aliases"]):
                text = environ.get(variable, "").strip()
                if not text:
                    continue
                try:
                    values[field.name] = types[field.name](text)
                except ValueError:
                    kind = "a whole number" if types[field.name] is int else "a number"
                    problems.append(f"{variable} must be {kind}, not {text!r}.")
                break
        if problems:
            raise SettingsError("\n".join(problems))
        return cls(**values)

    def for_project(self, extra_params: Any) -> tuple[Settings, list[str]]:
        """These settings with what a project's extra params set, and what is wrong with them in plain sentences.

        The names are those of the settings in lower case, such as `{"reference_policy": "latest-k"}`. What cannot be
        used is left as it was.
        """
        if len(str(extra_params)) > EXTRA_PARAMS_LIMIT:
            return self, [f"The project's extra params are longer than {EXTRA_PARAMS_LIMIT} characters and ignored."]
        if isinstance(extra_params, str) and extra_params.strip():
            try:
                extra_params = read_json(extra_params)
            except ValueError:
                extra_params = [extra_params]
        if not extra_params:
            return self, []
        example = '{"reference_policy": "latest-k"}'
        if not isinstance(extra_params, Mapping):
            return self, [f"The project's extra params must be a JSON object such as {example}; they are ignored."]
        found, problems = self, []
        types = get_type_hints(Settings)
        allowed = [field.name for field in _tunable() if field.metadata["per_project"]]
        for name, value in extra_params.items():
            if name not in allowed:
                problems.append(f"The extra param {str(name)[:60]!r} is not known; there are {', '.join(allowed)}.")
                continue
            accepted = (int, float) if types[name] is float else types[name]
            if isinstance(value, bool) or not isinstance(value, accepted):
                kind = {int: "a whole number", float: "a number", str: "a text"}[types[name]]
                problems.append(f"The extra param {name} must be {kind}, not {str(value)[:60]!r}.")
                continue
            changed: dict[str, Any] = {name: value}
            try:
                found = dataclasses.replace(found, **changed)
            except SettingsError as error:
                problems.append(f"The extra param {str(error).replace(variable_of(name), name)}")
        return found, problems

    def check_listening(self) -> None:
        """Refuse to be open to a network by accident, as a container is that listens on all of its addresses.

        Raises:
            SettingsError: the backend would listen beyond this machine without a password, and nobody asked for it.
        """
        if self.basic_auth_user or self.open_to_network == "yes" or _is_loopback(self.host):
            return
        raise SettingsError(
            f"CAVSAM_HOST={self.host} lets others reach the backend without a password. Set CAVSAM_BASIC_AUTH_USER and "
            "CAVSAM_BASIC_AUTH_PASSWORD, and give both to Label Studio when you connect the model; or set "
            "CAVSAM_OPEN_TO_NETWORK=yes if nobody else can reach the port."
        )

    def sources(self) -> ModelSources:
        """Where the weights come from."""
        return ModelSources.named(self.model).replace(
            sam2=self.sam2 or None,
            sam2_revision=self.sam2_revision or None,
            sam2_config=self.sam2_config or None,
            diffusion=self.diffusion or None,
            diffusion_revision=self.diffusion_revision or None,
            calibration=self.calibration or None,
            features=self.features or None,
        )

    def address(self, host: str | None = None) -> str:
        """Host and port as an address is written, an IPv6 host in brackets; `host` instead of where we listen."""
        host = self.host if host is None else host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def method(self) -> Recipe:
        """The method's hyperparameters."""
        overrides = json.loads(self.recipe) if self.recipe else {}
        if not isinstance(overrides, dict):
            raise ValueError("not a JSON object")
        return self.sources().recipe(self.preset, **{"mode": self.mode, **overrides})

    def _problems(self) -> list[str]:
        problems = []
        if self.label_studio_url and not _is_http_url(self.label_studio_url):
            problems.append(
                f"LABEL_STUDIO_URL must be a web address such as http://localhost:8080, not {self.label_studio_url!r}."
            )
        if self.label_studio_api_key and not self.label_studio_url:
            # an address named by whoever calls us must not be sent a key that was configured here
            problems.append("LABEL_STUDIO_API_KEY needs LABEL_STUDIO_URL: the address that the key belongs to.")
        if not self.label_studio_api_key.isascii() or any(c.isspace() for c in self.label_studio_api_key):
            problems.append("LABEL_STUDIO_API_KEY must be one token without spaces; copy it again from Label Studio.")
        if self.webhook_secret and not WEBHOOK_SECRET.fullmatch(self.webhook_secret):
            problems.append(
                "CAVSAM_WEBHOOK_SECRET must be at least 16 letters, digits or any of - _ . ~ + / =; "
                "`openssl rand -hex 20` makes one."
            )
        if not DEVICE.fullmatch(self.device):
            problems.append(f"CAVSAM_DEVICE must be auto, cpu, cuda, cuda:1 or mps, not {self.device!r}.")
        if not IP_OR_NAME.fullmatch(self.host):
            problems.append(f"CAVSAM_HOST must be an IP address or a host name, such as 127.0.0.1, not {self.host!r}.")
        problems += _not_one_of("log_level", self.log_level, LOG_LEVELS)
        problems += _not_one_of("open_to_network", self.open_to_network, ("no", "yes"))
        problems += _not_one_of("log_format", self.log_format, FORMATS)
        problems += _not_one_of("old_predictions", self.old_predictions, OLD_PREDICTIONS)
        problems += _not_one_of("reference_policy", self.reference_policy, REFERENCE_POLICIES)
        problems += _not_one_of("learn", self.learn, LEARN)
        problems += _not_one_of("project_version", self.project_version, PROJECT_VERSION)
        problems += _not_between("reference_shots", self.reference_shots, 1, 64)
        problems += _not_between("reference_candidates", self.reference_candidates, 1, 64)
        problems += _not_between("reference_task", self.reference_task, 0, 2**63 - 1)
        problems += _not_between("review_below", self.review_below, 0.0, 1.0)
        problems += _not_between("port", self.port, 0, 65535)
        problems += _not_between("predict_deadline", self.predict_deadline, 0.0, 95.0)
        problems += _not_between("sync_interval", self.sync_interval, 1.0, 86400.0)
        problems += _not_between("quiet_period", self.quiet_period, 0.0, 3600.0)
        problems += _not_between("api_timeout", self.api_timeout, 0.5, 600.0)
        for name in ("max_image_mb", "max_request_mb"):
            problems += _not_between(name, getattr(self, name), 0.1, 4096.0)
        for name in self.allowed_hosts.split(","):
            if name.strip() and not HOST_NAME.fullmatch(name.strip()):
                problems.append(
                    "CAVSAM_ALLOWED_HOSTS must be names such as cavsam.example.org, without scheme and port, not "
                    f"{name.strip()!r}."
                )
        try:
            PrivateHosts.parse(self.private_image_hosts)
        except ValueError as error:
            problems.append(
                "CAVSAM_PRIVATE_IMAGE_HOSTS must be names, addresses or networks such as minio,10.1.0.0/16, without "
                f"scheme and port, not {str(error)!r}."
            )
        if bool(self.basic_auth_user) != bool(self.basic_auth_password):
            problems.append("Set both CAVSAM_BASIC_AUTH_USER and CAVSAM_BASIC_AUTH_PASSWORD, or neither.")
        return problems

    def _method_problems(self) -> list[str]:
        try:
            self.sources()
            self.method()
        except CavSamError as error:
            return [str(error)]
        except ValueError:
            return [f'CAVSAM_RECIPE must be a JSON object such as {{"lora_steps": 100}}, not {self.recipe!r}.']
        try:
            if self.calibration:
                Calibration.load(Path(self.calibration), must_exist=True)
        except CavSamError as error:
            return [f"CAVSAM_CALIBRATION: {error}"]
        return []


class SettingRow(NamedTuple):
    """One line of the table of settings."""

    variable: str
    default: str
    description: str


def setting_rows() -> list[SettingRow]:
    """Every setting in the order of the table, with its default as it would be written."""
    rows = []
    for field in _tunable():
        names = (*field.metadata["aliases"], variable_of(field.name))
        rows.append(SettingRow(names[0], _written(field.default), field.metadata["description"]))
    return rows


def settings_table() -> str:
    """The settings as a Markdown table."""
    lines = ["| Variable | Default | Meaning |", "|---|---|---|"]
    for row in setting_rows():
        default = f"`{row.default}`" if row.default else ""
        lines.append(f"| `{row.variable}` | {default} | {row.description} |")
    return "\n".join(lines)


def variable_of(name: str) -> str:
    """The environment variable of a setting: `data_dir` -> `CAVSAM_DATA_DIR`."""
    return PREFIX + name.upper()


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Variables with our prefix that mean nothing: most likely misspelt."""
    known = {variable_of(field.name) for field in _tunable()}
    return sorted(name for name in environ if name.startswith(PREFIX) and name not in known)


def _tunable() -> list[dataclasses.Field[Any]]:
    """The fields of `Settings` that the environment may set."""
    return [field for field in dataclasses.fields(Settings) if "constant" not in field.metadata]


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_http_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises on a port that is no number
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _not_one_of(name: str, value: str, choices: tuple[str, ...]) -> list[str]:
    if value in choices:
        return []
    return [f"{variable_of(name)} must be one of {', '.join(choices)}, not {value!r}."]


def _not_between(name: str, value: float, low: float, high: float) -> list[str]:
    if low <= value <= high:  # false for NaN
        return []
    return [f"{variable_of(name)} must be between {_written(low)} and {_written(high)}, not {_written(value)}."]
