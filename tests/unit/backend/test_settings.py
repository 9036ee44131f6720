from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from backend.errors import SettingsError
from backend.settings import Settings, setting_rows, settings_table, unknown_variables
from backend.version import base_version
from cavsam.scoring.calibration import Calibration


def test_defaults_are_valid_and_complete():
    settings = Settings.from_environment({})
    assert settings.sources().name == "default"
    assert settings.method().mode == "full"
    assert (settings.port, settings.predict_deadline) == (9090, 80.0)


def test_reads_both_names_of_the_address_and_prefers_ours():
    environ = {"LABEL_STUDIO_URL": "http://a:1/", "LABEL_STUDIO_API_KEY": " key\n"}
    settings = Settings.from_environment(environ)
    assert (settings.label_studio_url, settings.label_studio_api_key) == ("http://a:1", "key")
    settings = Settings.from_environment(environ | {"CAVSAM_LABEL_STUDIO_URL": "http://b:2"})
    assert settings.label_studio_url == "http://b:2"


def test_reads_every_type_and_takes_overrides_first():
    environ = {
        "CAVSAM_PORT": "1234",
        "CAVSAM_PREDICT_DEADLINE": "2.5",
        "CAVSAM_DATA_DIR": "/some/folder",
        "CAVSAM_RECIPE": '{"lora_steps": 7, "ddim_steps": 5}',
        "CAVSAM_MODE": "ttga",
        "CAVSAM_DEVICE": "cuda:1",
        "CAVSAM_API_TIMEOUT": "",
    }
    settings = Settings.from_environment(environ, port=4321, data_dir="/other")
    assert settings.port == 4321
    assert settings.data_dir == Path("/other")
    assert settings.predict_deadline == 2.5
    assert settings.api_timeout == 30.0  # an empty variable is none
    assert (settings.method().mode, settings.method().lora_steps) == ("ttga", 7)


@pytest.mark.parametrize(
    ("host", "written"),
    [
        ("127.0.0.1", "127.0.0.1:80"),
        ("my-box.example", "my-box.example:80"),
        ("::", "[::]:80"),
        ("[::1]", "[::1]:80"),
        ("::ffff:10.0.0.1", "[::ffff:10.0.0.1]:80"),
        ("fe80::1%eth0", "[fe80::1%eth0]:80"),
    ],
)
def test_an_ipv6_host_is_written_in_brackets(host: str, written: str):
    assert Settings(host=host, port=80).address() == written


def test_own_weights_replace_the_pairs():
    environ = {"CAVSAM_SAM2": "facebook/sam2.1-hiera-large", "CAVSAM_DIFFUSION_REVISION": "abc"}
    sources = Settings.from_environment(environ).sources()
    assert sources.sam2 == "facebook/sam2.1-hiera-large"
    assert sources.diffusion_revision == "abc"
    assert not sources.is_nano


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"LABEL_STUDIO_URL": "localhost:8080"}, "LABEL_STUDIO_URL must be a web address"),
        ({"LABEL_STUDIO_URL": "http://a:port"}, "LABEL_STUDIO_URL must be a web address"),
        ({"LABEL_STUDIO_API_KEY": "abc"}, "LABEL_STUDIO_API_KEY needs LABEL_STUDIO_URL"),
        ({"LABEL_STUDIO_URL": "http://a", "LABEL_STUDIO_API_KEY": "a b"}, "one token without spaces"),
        ({"CAVSAM_PORT": "ninety"}, "CAVSAM_PORT must be a whole number, not 'ninety'"),
        ({"CAVSAM_PREDICT_DEADLINE": "soon"}, "CAVSAM_PREDICT_DEADLINE must be a number"),
        ({"CAVSAM_PREDICT_DEADLINE": "nan"}, "CAVSAM_PREDICT_DEADLINE must be between 0 and 95"),
        ({"CAVSAM_PREDICT_DEADLINE": "200"}, "CAVSAM_PREDICT_DEADLINE must be between 0 and 95"),
        ({"CAVSAM_DEVICE": "gpu"}, "CAVSAM_DEVICE must be auto"),
        ({"CAVSAM_MODEL": "huge"}, "choose one of"),
        ({"CAVSAM_MODE": "fast"}, "mode must be one of"),
        ({"CAVSAM_RECIPE": "lora_steps=3"}, "CAVSAM_RECIPE must be a JSON object"),
        ({"CAVSAM_RECIPE": "[1]"}, "CAVSAM_RECIPE must be a JSON object"),
        ({"CAVSAM_RECIPE": '{"steps": 3}'}, "no option 'steps'"),
        ({"CAVSAM_ALLOWED_HOSTS": "a.example, https://b.example"}, "without scheme and port, not 'https://b.example'"),
        ({"CAVSAM_HOST": "http://[::1]:9090"}, "CAVSAM_HOST must be an IP address or a host name"),
        ({"CAVSAM_HOST": "localhost:9090"}, "CAVSAM_HOST must be an IP address or a host name"),
        ({"CAVSAM_ALLOWED_HOSTS": "b.example:9090"}, "without scheme and port, not 'b.example:9090'"),
        ({"CAVSAM_OLD_PREDICTIONS": "maybe"}, "CAVSAM_OLD_PREDICTIONS must be one of"),
        ({"CAVSAM_LOG_LEVEL": "loud"}, "CAVSAM_LOG_LEVEL must be one of"),
        ({"CAVSAM_BASIC_AUTH_USER": "me"}, "Set both"),
    ],
)
def test_says_what_is_wrong_with_a_setting(environ: dict[str, str], words: str):
    with pytest.raises(SettingsError, match=words):
        Settings.from_environment(environ)


def test_reports_all_problems_at_once():
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({"CAVSAM_DEVICE": "gpu", "CAVSAM_PORT": "70000", "CAVSAM_MODE": "fast"})
    assert len(str(caught.value).splitlines()) == 3


def test_secrets_are_not_in_the_representation():
    settings = Settings(
        label_studio_url="http://a",
        label_studio_api_key="topsecret",
        basic_auth_user="u",
        basic_auth_password="hidden",
    )
    assert "topsecret" not in repr(settings)
    assert "hidden" not in repr(settings)


def test_table_has_a_row_and_a_sentence_for_every_setting():
    rows = setting_rows()
    assert {"LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY", "CAVSAM_MODEL", "CAVSAM_RECIPE"} <= {r.variable for r in rows}
    assert all(row.description.endswith(".") for row in rows)
    assert len(settings_table().splitlines()) == len(rows) + 2


def test_finds_misspelt_variables():
    assert unknown_variables({"CAVSAM_MODLE": "nano", "CAVSAM_MODEL": "nano", "PATH": ""}) == ["CAVSAM_MODLE"]


def test_the_environment_does_not_set_constants():
    environ = {"CAVSAM_THREADS": "3", "CAVSAM_PUSH_BATCH": "7"}
    assert Settings.from_environment(environ) == Settings()
    assert unknown_variables(environ) == ["CAVSAM_PUSH_BATCH", "CAVSAM_THREADS"]


@pytest.mark.parametrize(
    ("extra", "changed"),
    [
        (None, {}),
        ("", {}),
        ({}, {}),
        (
            {"reference_policy": "latest-k", "reference_shots": 5},
            {"reference_policy": "latest-k", "reference_shots": 5},
        ),
        ('{"review_below": 1}', {"review_below": 1}),
        ({"quiet_period": 0.5, "old_predictions": "remove"}, {"quiet_period": 0.5, "old_predictions": "remove"}),
    ],
)
def test_a_project_may_have_settings_of_its_own(extra: object, changed: dict):
    found, problems = Settings(review_below=0.3).for_project(extra)
    assert problems == []
    assert found == dataclasses.replace(Settings(review_below=0.3), **changed)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("latest-k", "must be a JSON object"),
        ([1], "must be a JSON object"),
        ({"reference_policy": "best"}, "reference_policy must be one of first, pinned"),
        ({"reference_policy": 3}, "reference_policy must be a text"),
        ({"reference_shots": 0}, "reference_shots must be between 1 and 64"),
        ({"reference_shots": 2.5}, "reference_shots must be a whole number"),
        ({"reference_shots": True}, "reference_shots must be a whole number"),
        ({"review_below": "low"}, "review_below must be a number"),
        ({"review_below": float("nan")}, "review_below must be between 0 and 1"),
        ({"label_studio_api_key": "x"}, "'label_studio_api_key' is not known; there are reference_policy"),
    ],
)
def test_what_a_project_sets_wrongly_is_said_and_the_rest_counts(extra: object, words: str):
    settings = Settings()
    good: dict[str, Any] = {"quiet_period": 1.0}
    found, problems = settings.for_project(extra | good if isinstance(extra, dict) else extra)
    (problem,) = problems
    assert words in problem
    assert "CAVSAM" not in problem
    assert found == (dataclasses.replace(settings, **good) if isinstance(extra, dict) else settings)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "backend.example.org"])
def test_no_network_is_listened_on_without_a_password_unless_told_to(host: str):
    with pytest.raises(SettingsError, match="CAVSAM_OPEN_TO_NETWORK=yes"):
        Settings(host=host).check_listening()
    Settings(host=host, open_to_network="yes").check_listening()
    Settings(host=host, basic_auth_user="me", basic_auth_password="x").check_listening()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "[::1]", "localhost"])
def test_this_machine_alone_needs_no_password(host: str):
    Settings(host=host).check_listening()


def test_a_calibration_is_read_at_the_start(tmp_path: Path):
    file = tmp_path / "mine.json"
    with pytest.raises(SettingsError, match=r"CAVSAM_CALIBRATION: There is no calibration .*mine\.json"):
        Settings.from_environment({"CAVSAM_CALIBRATION": str(file)})
    file.write_text("{}")
    with pytest.raises(SettingsError, match="not a calibration that can be read"):
        Settings.from_environment({"CAVSAM_CALIBRATION": str(file)})
    Calibration(fitted="here").save(file)
    settings = Settings.from_environment({"CAVSAM_CALIBRATION": str(file), "CAVSAM_MODEL": "nano"})
    assert settings.sources().calibration == str(file)
    assert settings.method() == Settings(model="nano").method()
    assert base_version(settings) != base_version(Settings(model="nano"))
