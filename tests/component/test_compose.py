"""`docker-compose.yml` against the Compose specification's schema, and against what the backend and its image say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from backend.errors import SettingsError
from backend.labelstudio.address_guard import SWITCHES
from backend.settings import Settings, unknown_variables

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
REQUIRED = re.compile(r"\$\{(\w+):\?(.+?)\}")


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]


def check(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_it_follows_the_specification(tmp_path: Path):
    done = check(COMPOSE)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(COMPOSE.read_text(encoding="utf-8").replace("healthcheck:", "heathcheck:", 1))
    assert check(wrong).returncode == 1  # so the check does look


def test_no_secret_stands_in_it_and_what_is_missing_is_named(services: dict[str, dict[str, Any]]):
    variables = {name: value for service in services.values() for name, value in service["environment"].items()}
    secret = {name for name in variables if re.search("PASSWORD|USER_TOKEN|API_KEY|SECRET", name)}
    assert {"POSTGRES_PASSWORD", "POSTGRE_PASSWORD", "LABEL_STUDIO_API_KEY"} <= secret
    for name in secret:
        found = REQUIRED.fullmatch(variables[name])
        assert found, f"{name} may be left unset, or is written down"
        assert ".env.example" in found[2]
    for name in {found[0] for value in variables.values() for found in REQUIRED.findall(value)}:
        assert re.search(rf"^{name}=$", EXAMPLE, flags=re.MULTILINE), f"{name} is not in .env.example, or not empty"


def test_every_service_has_a_health_check_and_waits_for_what_it_needs(services: dict[str, dict[str, Any]]):
    for name, service in services.items():
        assert "healthcheck" in service or ("build" in service and "HEALTHCHECK" in DOCKERFILE), name
    assert services["label-studio"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert services["cavsam"]["depends_on"] == {"label-studio": {"condition": "service_healthy"}}


def test_what_must_last_lies_on_volumes(services: dict[str, dict[str, Any]]):
    declared = set(yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["volumes"])
    mounts = {name: dict(v.split(":") for v in service["volumes"]) for name, service in services.items()}
    assert {volume for mounted in mounts.values() for volume in mounted} == declared
    ledger, weights = re.search(r"CAVSAM_DATA_DIR=(\S+)", DOCKERFILE), re.search(r"HF_HOME=(\S+)", DOCKERFILE)
    assert ledger
    assert weights
    assert set(mounts["cavsam"].values()) == {ledger[1], weights[1]}


def test_the_backend_can_do_little_harm(services: dict[str, dict[str, Any]]):
    cavsam = services["cavsam"]
    assert cavsam["read_only"] is True
    assert cavsam["cap_drop"] == ["ALL"]
    assert cavsam["security_opt"] == ["no-new-privileges:true"]
    assert "/tmp" in cavsam["tmpfs"]  # gunicorn's heartbeat
    assert "ports" not in cavsam  # so that it may do without a password
    assert cavsam["environment"]["CAVSAM_OPEN_TO_NETWORK"] == "yes"


def test_the_image_alone_does_not_start_without_a_password():
    found = re.search(r"CAVSAM_HOST=(\S+)", DOCKERFILE)
    assert found
    assert "OPEN_TO_NETWORK=" not in DOCKERFILE
    with pytest.raises(SettingsError, match="CAVSAM_BASIC_AUTH_USER"):
        Settings(host=found[1]).check_listening()


def test_the_two_servers_find_each_other(services: dict[str, dict[str, Any]]):
    cavsam, label_studio = services["cavsam"], services["label-studio"]
    assert cavsam["environment"]["LABEL_STUDIO_URL"] == "http://label-studio:8080"
    assert cavsam["environment"]["LABEL_STUDIO_API_KEY"] == label_studio["environment"]["LABEL_STUDIO_USER_TOKEN"]
    assert unknown_variables(cavsam["environment"]) == []
    (alias,) = cavsam["networks"]["default"]["aliases"]
    assert "." in alias  # else Label Studio makes no webhook for it
    documents = "".join(path.read_text(encoding="utf-8") for path in (COMPOSE, ROOT / "docs" / "connecting.md"))
    assert documents.count(f"http://{alias}:9090") >= 2
    switches = re.findall(r"(LABEL_STUDIO_\w+)=(false)", SWITCHES)
    assert switches
    for switch, value in switches:
        assert label_studio["environment"][switch] == value
