"""The picture of the architecture: complete, drawn from the imports that are there, and the one that is committed."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from tools.architecture import FILLS, PICTURE, ROOT, Drawing, draw, read
from tools.imports import modules_of

SVG = "{http://www.w3.org/2000/svg}"


def arrows(drawing: Drawing, kind: str) -> set[tuple[tuple[str, ...], tuple[str, ...]]]:
    return {(drawing.boxes[a].modules, drawing.boxes[b].modules) for a, b in getattr(drawing, kind)}


def write(root: Path, sources: dict[str, str]) -> Drawing:
    for name, source in sources.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return read(root)


def test_the_committed_picture_is_the_code_s():
    assert PICTURE.read_text(encoding="utf-8") == draw(read()), "Run `python -m tools.architecture`."


def test_every_room_is_in_the_picture_with_every_module():
    rooms: dict[str, set[str]] = {}
    for name, path in modules_of(ROOT, FILLS).items():
        rooms.setdefault(name if path.name == "__init__.py" else name.rpartition(".")[0], set()).add(name)
    shown: dict[str, set[str]] = {}
    for text in ElementTree.parse(PICTURE).iter(f"{SVG}text"):
        if text.get("font-weight") == "bold":
            names = shown.setdefault(text.text, {text.text})
            room = text.text
        else:
            names |= {f"{room}.{name.strip()}" for name in text.text.split(",") if name.strip()}
    assert shown.keys() == rooms.keys()
    for room, modules in rooms.items():
        assert modules <= shown[room]


def test_arrows_lead_down_and_a_longer_way_replaces_one(tmp_path: Path):
    drawing = write(
        tmp_path,
        {
            "cavsam/types.py": "",
            "cavsam/parts/__init__.py": "from cavsam import types",
            "cavsam/pipeline.py": "import cavsam.types\nimport cavsam.parts",
            "backend/app.py": "def later():\n    from cavsam import pipeline, types",
        },
    )
    assert arrows(drawing, "down") == {
        (("backend.app",), ("cavsam.pipeline",)),
        (("cavsam.pipeline",), ("cavsam.parts",)),
        (("cavsam.parts",), ("cavsam.types",)),
    }
    assert arrows(drawing, "up") == set()
    assert all(drawing.boxes[a].row > drawing.boxes[b].row for a, b in drawing.down)


def test_the_rarer_import_of_a_circle_leads_upwards(tmp_path: Path):
    drawing = write(
        tmp_path,
        {
            "backend/store/ledger.py": "import backend.sync.policy",
            "backend/sync/policy.py": "",
            "backend/sync/project.py": "import backend.store.ledger",
            "backend/sync/delivery.py": "import backend.store.ledger",
        },
    )
    sync = ("backend.sync.delivery", "backend.sync.policy", "backend.sync.project")
    assert arrows(drawing, "down") == {(sync, ("backend.store.ledger",))}
    assert arrows(drawing, "up") == {(("backend.store.ledger",), sync)}
    red = [
        path
        for path in ElementTree.fromstring(draw(drawing)).iter(f"{SVG}path")
        if path.get("marker-end") == "url(#up)"
    ]
    assert len(red) == 1
