from __future__ import annotations

from pathlib import Path

import pytest

from backend.errors import BackendError, SettingsError
from backend.settings import Settings
from backend.webhook_secret import FILE, is_webhook_secret, read_webhook_secret, with_webhook_secret


def test_a_secret_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path):
    settings = Settings(data_dir=tmp_path)
    assert read_webhook_secret(settings) == ""
    first = with_webhook_secret(settings)
    assert len(first.webhook_secret) >= 32
    assert with_webhook_secret(settings) == first
    assert read_webhook_secret(settings) == first.webhook_secret
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    other = tmp_path / "other"
    other.mkdir()
    assert with_webhook_secret(Settings(data_dir=other)).webhook_secret != first.webhook_secret
    assert first.webhook_secret not in repr(first)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe"])
def test_a_file_without_a_secret_gets_one(tmp_path: Path, content: bytes):
    (tmp_path / FILE).write_bytes(content)
    made = with_webhook_secret(Settings(data_dir=tmp_path)).webhook_secret
    assert (tmp_path / FILE).read_text().strip() == made
    assert len(made) >= 32


def test_a_setting_is_taken_instead_and_nothing_is_written(tmp_path: Path):
    settings = Settings(data_dir=tmp_path / "none", webhook_secret="given-by-somebody")
    assert with_webhook_secret(settings) == settings
    assert not (tmp_path / "none").exists()
    for wrong in ("short", "with spaces in between", "päss" * 5, "x" * 300):
        with pytest.raises(SettingsError, match="CAVSAM_WEBHOOK_SECRET"):
            Settings(webhook_secret=wrong)


def test_a_folder_that_cannot_be_written_is_told_in_words(tmp_path: Path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(BackendError, match="CAVSAM_WEBHOOK_SECRET"):
        with_webhook_secret(Settings(data_dir=tmp_path))


def test_only_the_whole_secret_is_right_and_none_is_never():
    settings = Settings(webhook_secret="0123456789abcdef")
    assert is_webhook_secret("0123456789abcdef", settings)
    for wrong in ("", "0123456789abcde", "0123456789abcdefg", "0123456789abcdeF", "ÿ" * 16):
        assert not is_webhook_secret(wrong, settings)
    assert not is_webhook_secret("", Settings())
