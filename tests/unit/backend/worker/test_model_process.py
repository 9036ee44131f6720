from __future__ import annotations

import pytest

from backend.worker.model_process import without_secrets


@pytest.mark.parametrize(
    "name",
    [
        "LABEL_STUDIO_API_KEY",
        "CAVSAM_LABEL_STUDIO_API_KEY",
        "CAVSAM_BASIC_AUTH_PASSWORD",
        "POSTGRES_PASSWORD",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "django_secret",
    ],
)
def test_secrets_are_left_out(name: str):
    assert without_secrets({name: "x", "PATH": "/bin"}) == {"PATH": "/bin"}


@pytest.mark.parametrize("name", ["HF_TOKEN", "HF_HOME", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "HTTPS_PROXY"])
def test_what_a_model_needs_stays(name: str):
    assert without_secrets({name: "x"}) == {name: "x"}
