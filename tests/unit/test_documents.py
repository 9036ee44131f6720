"""What the documents say about the code is what the code says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from backend.settings import settings_table
from cavsam.cli import build_parser
from cavsam.evaluation.runs import Method
from tools.imports import modules_of

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = ("cavsam", "backend", "research", "tools", "tests", "docs", "requirements", "label_config")
RETIRED = {
    r"lanes?": "model process",
    r"(?:a|an|the|its|each|every|next|last|first|full|two|by) looks?(?!-)": "sync",
    r"ways? back": "backward tracking",
    r"signs|(?:a|the|each|one|another) sign": "cue",
    r"told|notices?": "warning, or a sentence with its subject",
    r"(?<!ground )truth": "ground truth",
    r"agendas?": "schedule",
    r"notes|(?:a|the|each|no|one|this|its) note": "event, warning or text",
    r"shall": "should",
}
"""Words for which there is another one in docs/glossary.md. The verbs "to look", "to note" and "to sign" stay."""
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def found_in_documents(pattern: str) -> list[tuple[Path, str]]:
    """Find what the only group of a pattern matches, with the document that says it."""
    return [
        (document, found)
        for document in DOCUMENTS
        for found in re.findall(pattern, document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]


def test_the_document_of_the_settings_lists_every_one():
    """After a change: `make readme`."""
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"<!-- settings -->\n(.*?)\n<!-- end of settings -->", text, flags=re.DOTALL)
    assert table == settings_table()


def test_links_lead_somewhere():
    links = [(document, link) for document, link in found_in_documents(r"\]\(([^)\s]+)\)") if "://" not in link]
    assert {README, ROOT / "docs" / "method.md"} <= {document for document, _ in links}
    for document, link in links:
        path, _, heading = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), (document.name, link)
        if heading:
            assert heading in headings_of(target), (document.name, link)


def test_the_index_leads_to_every_document():
    index = ROOT / "docs" / "index.md"
    linked = set(re.findall(r"\]\(([\w./-]+\.md)\)", index.read_text(encoding="utf-8")))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"} <= linked


def test_the_readme_is_read_in_a_minute():
    assert len(README.read_text(encoding="utf-8").splitlines()) < 120


def headings_of(document: Path) -> set[str]:
    """List the names by which links reach a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_files_that_are_named_exist():
    named = [
        (document, path)
        for document, path in found_in_documents(r"`([\w./-]+)`")
        if "/" in path and path.split("/")[0] in ROOMS
    ]
    assert len({path for _, path in named}) > 5
    for document, path in named:
        assert (ROOT / path).exists(), (document.name, path)


def test_modules_that_are_run_exist():
    modules = modules_of(ROOT, ["cavsam", "backend", "research", "tools"])
    own = [
        (document, name)
        for document, name in found_in_documents(r"python -m ([\w.]+)")
        if name.split(".")[0] in {module.split(".")[0] for module in modules}
    ]
    assert "research.bench" in {name for _, name in own}
    for document, name in own:
        assert name in modules or f"{name}.__main__" in modules, (document.name, name)


def test_the_make_targets_that_are_named_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = found_in_documents(r"(?:^|`)make ([a-z]+)\b")
    assert {"demo", "test"} <= {name for _, name in named}
    for document, name in named:
        assert name in targets, (document.name, name)


@pytest.mark.parametrize("word", RETIRED)
def test_no_document_uses_a_word_that_has_left(word: str):
    pattern = re.compile(rf"\b(?:{word})\b", flags=re.IGNORECASE)
    for document in DOCUMENTS:
        for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
            found = pattern.search(line)
            assert found is None, f"{document.name}:{number}: {found and found[0]!r} -> {RETIRED[word]}"


def test_the_words_that_have_left_are_found():
    """A word of each kind, so that no pattern is broken."""
    old = "The lane told the next look of a note: the way back has signs of truth; the agenda shall tell."
    assert all(re.search(rf"\b(?:{word})\b", old) for word in RETIRED)
    kept = "Note that it looks at the ground truth of a look-alike, signed and sealed; look there."
    assert not any(re.search(rf"\b(?:{word})\b", kept) for word in RETIRED)


def test_the_lock_files_cover_the_package_s_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pinned = "\n".join(path.read_text(encoding="utf-8") for path in LOCKS)
    assert needed
    for requirement in needed:
        name = re.split(r"[<>=\[; ]", requirement)[0].lower().replace("_", "-")
        assert re.search(rf"^{re.escape(name)}==\S+$", pinned, flags=re.MULTILINE), requirement


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_no_lock_file_names_a_host(path: Path):
    text = path.read_text(encoding="utf-8")
    assert "==" in text
    assert "://" not in text


def test_the_image_gets_what_the_package_is_built_from_and_no_more():
    copied = {
        source
        for line in re.findall(r"^COPY (.+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        for source in line.split()[:-1]
        if not source.startswith("--")
    }
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {name for name in project["tool"]["setuptools"]["packages"]["find"]["include"] if "." not in name}
    described = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert copied == allowed == packages | described | {"requirements", "tools/setup.sh"}
    for source in copied:
        assert (ROOT / source).exists(), source


def test_the_protocol_s_commands_run_the_published_recipe():
    """The values are those of the method's specification, for the weights and the sets of the paper."""
    text = (ROOT / "docs" / "paper-protocol.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    cavsam (evaluate .*)$", text, flags=re.MULTILINE)
    assert {command.split()[2] for command in commands} == {"fss1000", "deepglobe", "isic", "chest"}
    for command in commands:
        options = build_parser().parse_args(command.split())
        method = Method.of(options)
        assert method.sources.sam2 == "facebook/sam2-hiera-tiny"
        assert method.modes == ("full",)
        recipe = method.recipe
        assert (recipe.frames, recipe.alpha_min, recipe.alpha_max, recipe.ddim_steps) == (9, 0.2, 0.8, 20)
        assert (recipe.lora_rank, recipe.lora_steps, recipe.lora_lr, recipe.lora_weight_decay) == (16, 200, 2e-4, 1e-2)
        assert (recipe.ttga_steps, recipe.ttga_lr, recipe.ttga_weight_decay) == (100, 1e-3, 5e-4)
        assert (recipe.activation_stride, recipe.temperature, recipe.prompted_fraction) == (16, 1.0, 0.5)
        assert (recipe.propagate_with, recipe.reference_prompt, recipe.cycle_mask) == ("tuned", "mask", "predicted")
        assert (recipe.target_prompt, recipe.region_fallback, recipe.min_separation) == ("none", False, 0.0)
