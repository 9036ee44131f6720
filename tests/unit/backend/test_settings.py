from __future__ import annotations

from pathlib import Path

import pytest

from backend.errors import SettingsError
from backend.settings import Settings, setting_rows, settings_table, unknown_variables


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
        "CAVSAM_THREADS": "",
    }
    settings = Settings.from_environment(environ, port=4321, data_dir="/other")
    assert settings.port == 4321
    assert settings.data_dir == Path("/other")
    assert settings.predict_deadline == 2.5
    assert settings.threads == 16  # an empty variable is none
    assert (settings.method().mode, settings.method().lora_steps) == ("ttga", 7)


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
