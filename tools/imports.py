"""Who imports whom among this repository's modules, read from their source without running it."""

from __future__ import annotations

import ast
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Imports:
    """What one module imports, by full name: when it is loaded, and at any time."""

    at_load: frozenset[str]
    ever: frozenset[str]


def modules_of(root: Path, packages: Iterable[str]) -> dict[str, Path]:
    """Find the modules of some packages below `root`, by full name."""
    found = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(source: str, modules: Container[str]) -> Imports:
    """Read a module's absolute imports; those for type checking only are left out.

    `from a import b` is an import of `a.b` if that is one of `modules`, otherwise of `a`.
    """
    at_load, ever = set(), set()
    for node, nested in _walk(ast.parse(source), nested=False):
        names = set()
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"Line {node.lineno} has a relative import; this repository has none.")
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = {name if name in modules else str(node.module) for name in inner}
        ever |= names
        if not nested:
            at_load |= names
    return Imports(frozenset(at_load), frozenset(ever))


def circle_in(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Find a circle in a directed graph: its nodes in order, the first one again at the end; empty if there is none."""
    finished: set[str] = set()

    def search(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished:
            return []
        for other in sorted(graph.get(node, ())):
            if circle := search(other, [*path, node]):
                return circle
        finished.add(node)
        return []

    return next((circle for node in sorted(graph) if (circle := search(node, []))), [])


def reached_from(starts: Iterable[str], graph: Mapping[str, Iterable[str]]) -> set[str]:
    """Collect every node that can be reached from some nodes, these included."""
    reached: set[str] = set()
    waiting = list(starts)
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += graph.get(node, ())
    return reached


def _walk(node: ast.AST, nested: bool) -> Iterator[tuple[ast.AST, bool]]:
    yield node, nested
    inside = nested or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        children = node.orelse
    for child in children:
        yield from _walk(child, inside)
