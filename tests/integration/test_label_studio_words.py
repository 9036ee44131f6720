"""The words of Label Studio that the documents quote are those of its release, so that people find them."""

from __future__ import annotations

from functools import cache

import pytest

from tools.label_studio_server import ENVIRONMENT, ROOT

pytestmark = pytest.mark.integration

PACKAGES = ENVIRONMENT / "lib" / "python3.11" / "site-packages"
SOURCES = ("label_studio/core", "label_studio/data_manager", "label_studio/io_storages", "label_studio/ml")
PAGE = "web/dist/apps/labelstudio"
SHOWN = {
    "URL resolves to a reserved network address (block: ": "connecting.md",
    "Connect Model": "workflows.md",
    "Prelabeling": "faq.md",
    "Use predictions to prelabel tasks": "faq.md",
    "Retrieve Predictions": "faq.md",
    "Delete Predictions": "faq.md",
    "Create Annotations From Predictions": "annotators.md",
    "Prediction score": "annotators.md",
    "Uncertainty sampling": "active-learning.md",
    "Start Training": "active-learning.md",
    "Interactive preannotations": "control-tags.md",
    "Auto-Annotation": "control-tags.md",
    "Auto-Accept Suggestions": "control-tags.md",
    "Personal Access Token": "connecting.md",
    "Legacy Token": "connecting.md",
    "Use pre-signed URLs (On) / Proxy through the platform (Off)": "storages.md",
    "Serving local files can be dangerous, so it's disabled by default": "storages.md",
    "LOCAL_FILES_SERVING_ENABLED": "storages.md",
    "LOCAL_FILES_DOCUMENT_ROOT": "storages.md",
}


@cache
def release() -> str:
    """Everything that Label Studio's programs and pages hold."""
    files = [path for folder in SOURCES for path in sorted((PACKAGES / folder).rglob("*.py"))]
    files += sorted((PACKAGES / PAGE).glob("*.js"))
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)


@pytest.mark.parametrize(("words", "document"), SHOWN.items(), ids=SHOWN)
def test_quoted_words_are_shown(words: str, document: str):
    said = (ROOT / "docs" / document).read_text(encoding="utf-8")
    assert words in " ".join(said.split())
    assert words in release()
