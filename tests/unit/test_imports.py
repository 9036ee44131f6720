"""The packages depend on each other in one direction, without circles, and the HTTP layer is free of torch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tools.imports import circle_in, imports_of, modules_of, reached_from


def with_parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


ROOT = Path(__file__).resolve().parents[2]
MODULES = modules_of(ROOT, ["cavsam", "backend", "research", "tools"])
IMPORTS = {name: imports_of(path.read_text(encoding="utf-8"), MODULES) for name, path in MODULES.items()}
# Loading a module loads the packages that it lies in.
AT_LOAD = {
    name: {module for loaded in found.at_load for module in with_parents(loaded)} & MODULES.keys()
    for name, found in IMPORTS.items()
}
EVER = {name: found.ever & MODULES.keys() - {name} for name, found in IMPORTS.items()}
HEAVY = {"torch", "torchvision", "sam2", "diffusers", "transformers", "accelerate"}


def test_imports_are_read_where_they_stand():
    source = (
        "from __future__ import annotations\n"
        "import a.b as c\n"
        "if TYPE_CHECKING:\n    import never\nelse:\n    import instead\n"
        "try:\n    from d import e\nexcept ImportError:\n    pass\n"
        "class C:\n    import f\n    def m(self):\n        from g import h\n"
    )
    found = imports_of(source, {"d.e"})
    assert found.at_load == {"__future__", "a.b", "instead", "d.e", "f"}
    assert found.ever - found.at_load == {"g"}


def test_a_circle_is_found_and_named():
    assert circle_in({"a": ["b", "c"], "b": [], "c": ["d"], "d": ["b"]}) == []
    assert circle_in({"a": ["b"], "b": ["c"], "c": ["d"], "d": ["b"]}) == ["b", "c", "d", "b"]


def test_no_modules_import_each_other_in_a_circle():
    """Not even inside functions: an import that has to wait hides a circle, it does not remove it."""
    assert len(MODULES) > 100
    assert circle_in(EVER) == []


@pytest.mark.parametrize(
    ("package", "strangers"),
    [
        ("cavsam", {"backend", "research", "tools", "tests"}),
        ("backend", {"research", "tools", "tests"}),
        ("research", {"tests"}),
    ],
)
def test_packages_depend_on_each_other_in_one_direction(package: str, strangers: set[str]):
    own = {name: found.ever for name, found in IMPORTS.items() if name.split(".")[0] == package}
    assert own
    wrong = {name: found for name, ever in own.items() if (found := {n for n in ever if n.split(".")[0] in strangers})}
    assert wrong == {}


BACKEND_ROOMS = ["labelstudio", "learning", "store", "sync", "worker", "web", "commands"]
"""Of the rooms of the backend each may use those that stand before it, and none that stands behind it."""


def test_every_room_of_the_backend_has_its_place():
    assert {path.parent.name for path in (ROOT / "backend").glob("*/__init__.py")} == set(BACKEND_ROOMS)


@pytest.mark.parametrize("room", BACKEND_ROOMS)
def test_the_rooms_of_the_backend_stand_on_each_other(room: str):
    above = {f"backend.{name}" for name in BACKEND_ROOMS[BACKEND_ROOMS.index(room) + 1 :]}
    own = [name for name in MODULES if name.startswith(f"backend.{room}.")]
    assert own
    for name in own:
        assert {".".join(found.split(".")[:2]) for found in EVER[name]} & above == set(), name


def test_label_studios_room_knows_nothing_that_the_backend_keeps():
    own = [name for name in MODULES if name.startswith("backend.labelstudio.")]
    assert own
    for name in own:
        known = {
            found
            for found in EVER[name]
            if found.startswith("backend.") and not found.startswith("backend.labelstudio")
        }
        assert known <= {"backend.errors", "backend.text"}, name


@pytest.mark.parametrize("room", ["backend.web", "backend.labelstudio", "backend.store", "backend.sync"])
def test_the_http_layer_loads_no_torch(room: str):
    """Neither itself nor through a module that it loads, packages' own files included."""
    starts = [name for name in MODULES if name == room or name.startswith(f"{room}.")]
    assert len(starts) > 1
    for name in reached_from(starts, AT_LOAD):
        assert {found.split(".")[0] for found in IMPORTS[name].at_load} & HEAVY == set(), name


def test_the_command_line_loads_no_torch():
    for name in reached_from(["cavsam.cli", "cavsam"], AT_LOAD):
        assert {found.split(".")[0] for found in IMPORTS[name].at_load} & HEAVY == set(), name


UNIT_TESTS = sorted((ROOT / "tests" / "unit").rglob("*.py"))
PROCESSES_AND_SOCKETS = {"subprocess", "multiprocessing", "socket", "socketserver", "http", "requests", "urllib"}


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.relative_to(ROOT / "tests" / "unit").as_posix())
def test_unit_tests_start_no_process_open_no_socket_and_do_not_sleep(path: Path):
    source = path.read_text(encoding="utf-8")
    names = [getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(ast.parse(source))]
    outside = {name.split(".")[0] for name in imports_of(source, MODULES).ever} & PROCESSES_AND_SOCKETS
    assert outside == set()
    assert "sleep" not in names
