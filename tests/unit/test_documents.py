"""What the documents say about the code is what the code says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from backend.settings import settings_table

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readme_lists_every_setting():
    """After a change: `make readme`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"<!-- settings -->\n(.*?)\n<!-- end of settings -->", text, flags=re.DOTALL)
    assert table == settings_table()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (document.parent / target).exists(), target


def test_the_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?m)(?:^|`)make ([a-z]+)\b", (ROOT / "README.md").read_text(encoding="utf-8"))):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_lock_files_cover_the_package_s_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pinned = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "requirements").glob("*.txt"))
    for requirement in needed:
        name = re.split(r"[<>=\[; ]", requirement)[0].lower().replace("_", "-")
        assert re.search(rf"^{re.escape(name)}==\S+$", pinned, flags=re.MULTILINE), requirement


def test_no_lock_file_names_a_host():
    for path in (ROOT / "requirements").glob("*.txt"):
        assert "://" not in path.read_text(encoding="utf-8"), path.name


@pytest.mark.parametrize("name", ["architecture.md", "glossary.md", "faq.md"])
def test_the_files_that_a_document_names_exist(name: str):
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    named = re.findall(r"`((?:backend|cavsam|research|tests|tools)/[\w./-]+)`", text)
    assert named, name
    for path in named:
        assert (ROOT / path).exists(), path
